"""More clients than server connections, behind PgBouncer."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import URL, func, select

from app.database import Database, PoolOptions, make_engine
from app.errors import PoolExhausted
from tests.integration.database.helpers import PID, SLEEP
from tests.support.contacts import Contact
from tests.support.postgres import PgBouncer, Server, run_pgbouncer

CLIENTS = 6
SERVER_CONNECTIONS = 2
COUNT = select(func.count().label("count")).select_from(Contact)


@pytest.fixture(scope="module")
def small_pgbouncer(
    request: pytest.FixtureRequest, postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PgBouncer]:
    """Run a PgBouncer with few server connections. The parameter is its `query_wait_timeout`, in seconds."""
    limits = {"default_pool_size": SERVER_CONNECTIONS, "reserve_pool_size": 0, "query_wait_timeout": request.param}
    with run_pgbouncer(postgres, tmp_path_factory.mktemp("pgbouncer"), **limits) as pgbouncer:
        yield pgbouncer


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def database(small_pgbouncer: PgBouncer, database_url: URL) -> AsyncIterator[Database]:
    engine = make_engine(
        url=small_pgbouncer.url(database_url),
        application_name="headroom:test",
        pool=PoolOptions(size=CLIENTS, max_overflow=0, timeout=30),
    )
    yield Database(engine)
    await engine.dispose()


@pytest.mark.parametrize("small_pgbouncer", [30], indirect=True)
async def test_six_clients_share_two_server_connections(database: Database) -> None:
    async def client(number: int) -> set[int]:
        pids = set()
        for write in range(20):
            async with database.write() as session:
                session.add(Contact(email=f"{number}.{write}@example.com", name="n"))
            row = await database.read.first(PID)
            assert row is not None
            pids.add(row["pid"])
        return pids

    pids = set().union(*await asyncio.gather(*(client(number) for number in range(CLIENTS))))
    row = await database.read.first(COUNT)

    assert row is not None
    assert row["count"] == CLIENTS * 20
    assert len(pids) <= SERVER_CONNECTIONS


@pytest.mark.parametrize("small_pgbouncer", [1], indirect=True)
async def test_query_wait_timeout_of_pgbouncer_is_pool_exhausted(database: Database) -> None:
    """Each statement takes longer than PgBouncer lets a client wait, so PgBouncer serves two of six."""
    results = await asyncio.gather(
        *(database.read.first(SLEEP, seconds=2) for _ in range(CLIENTS)), return_exceptions=True
    )

    errors = [result for result in results if isinstance(result, BaseException)]
    assert {type(error) for error in errors} == {PoolExhausted}
    assert 0 < len(errors) < CLIENTS
