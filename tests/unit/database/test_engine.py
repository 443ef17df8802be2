import pytest
from sqlalchemy import make_url

from app.database import PoolOptions, make_engine
from app.database.pool import BoundedPool, pool_state
from app.database.pool_events import PoolState


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_engine_has_a_bounded_pool_with_the_given_options(driver: str) -> None:
    engine = make_engine(
        url=make_url(f"postgresql+{driver}://db/headroom"),
        application_name="headroom:test",
        pool=PoolOptions(size=2, max_overflow=3, recycle=60),
    )

    assert isinstance(engine.pool, BoundedPool)
    assert pool_state(engine) == PoolState(size=2, max_overflow=3, idle=0, used=0, waiting=0)
    assert engine.pool._recycle == 60


def test_engine_for_sqlite_has_no_bounded_pool() -> None:
    engine = make_engine(url=make_url("sqlite+aiosqlite://"), application_name="headroom:test")

    assert pool_state(engine) is None


@pytest.mark.parametrize(
    ("idle", "used", "overflow"),
    [(0, 0, 0), (5, 0, 0), (0, 5, 0), (2, 3, 0), (0, 6, 1), (0, 15, 10), (5, 10, 10)],
)
def test_overflow_is_the_number_of_connections_beyond_size(idle: int, used: int, overflow: int) -> None:
    assert PoolState(size=5, max_overflow=10, idle=idle, used=used, waiting=0).overflow == overflow
