"""The pool for code that knows SQLAlchemy's pools: methods, errors, events, and returns from other threads."""

import asyncio
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import URL, event, exc, select
from sqlalchemy.pool import QueuePool

from app.database import Database, PoolOptions, make_engine
from app.errors import PoolExhausted
from tests.integration.database.helpers import PID, change_options, checked_out, pool_of, state, wait_until
from tests.support.contacts import Contact

POOL_EVENTS = ("connect", "first_connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate", "close")


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[Database]:
    """Create a database with a pool of two connections and one more, and no ping."""
    options = PoolOptions(size=2, max_overflow=1, timeout=30, ping_after=None)
    engine = make_engine(url=database_url, application_name="headroom:compatibility", pool=options)
    yield Database(engine)
    await engine.dispose()


def numbers(pool: Any) -> tuple[int, int, int, int, float]:
    return pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow(), pool.timeout()


async def test_methods_of_queue_pool_have_its_arithmetic(database: Database) -> None:
    """SQLAlchemy's own pool serves as the reference, with connections that are never used."""

    class Connection:
        def close(self) -> None: ...

        rollback = close

    reference = QueuePool(Connection, pool_size=2, max_overflow=1, timeout=30)  # type: ignore[arg-type]
    pool = pool_of(database)
    assert numbers(pool) == numbers(reference)
    held = [reference.connect()]
    async with checked_out(database):
        assert numbers(pool) == numbers(reference)
        held.append(reference.connect())
        async with checked_out(database):
            assert numbers(pool) == numbers(reference)
            held.append(reference.connect())
            async with checked_out(database):
                assert numbers(pool) == numbers(reference)
        held.pop(0).close()
        held.pop(0).close()
    held.pop(0).close()
    # Surplus connections are closed later than by QueuePool.
    assert numbers(pool) == (2, 3, 0, 1, 30)
    assert "size=2" in pool.status()


async def test_exhausted_pool_raises_the_timeout_error_of_sqlalchemy(database: Database) -> None:
    change_options(database, max_overflow=0)
    async with checked_out(database), checked_out(database):
        change_options(database, timeout=0.1)
        with pytest.raises(exc.TimeoutError) as caught:
            await database.read.first(PID)

    assert isinstance(caught.value, PoolExhausted)
    assert str(caught.value) == "no connection after 0.1 s (size=2 overflow=0 in_use=2 waiting=0)"


async def test_pool_events_fire_on_every_path(database: Database) -> None:
    events: Counter[str] = Counter()

    def count(name: str) -> None:
        event.listen(database.engine.sync_engine, name, lambda *_: events.update([name]))

    for name in POOL_EVENTS:
        count(name)

    await database.read.first(PID)
    assert events == {"connect": 1, "first_connect": 1, "checkout": 1, "checkin": 1, "reset": 1}
    await database.read.entities(select(Contact))
    async with database.write() as session:
        await session.execute(PID)
    assert events == {"connect": 1, "first_connect": 1, "checkout": 3, "checkin": 3, "reset": 3}

    async with database.engine.connect() as connection:
        await connection.invalidate()
    assert (events["invalidate"], events["close"], events["checkin"]) == (1, 1, 4)
    await database.read.first(PID)
    assert (events["connect"], events["checkout"]) == (2, 5)
    await database.engine.dispose()
    assert events["close"] == 2


async def test_checkout_listener_may_reject_a_connection(database: Database) -> None:
    rejected: list[object] = []

    @event.listens_for(database.engine.sync_engine, "checkout")
    def reject_first(connection: Any, *_: object) -> None:
        if not rejected:
            rejected.append(connection)
            raise exc.DisconnectionError

    assert await database.read.first(PID) is not None
    await database.read.first(PID)
    assert state(database).used == 0


@pytest.mark.parametrize("path", ["proxy", "fast path"])
async def test_connection_collected_in_another_thread_serves_a_waiter(database: Database, path: str) -> None:
    """The garbage collector runs in any thread, and the event loop has to be woken from there."""
    change_options(database, size=1, max_overflow=0)
    await database.read.first(PID)
    held: list[Any] = []
    driver_connection: Any = None
    if path == "proxy":
        held.append(await database.engine.raw_connection())
        driver_connection = held[0].driver_connection
    else:
        reading = database.read.first(PID)
        reading.send(None)
        held.append(reading)
        del reading
    waiter = asyncio.create_task(database.read.first(PID))
    await wait_until(lambda: state(database).waiting == 1, waiter)

    asyncio.get_running_loop().set_debug(True)  # refuses calls from another thread that do not wake the loop
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy warns about the garbage-collected connection
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()
        assert await asyncio.wait_for(waiter, 30) is not None
    finally:
        asyncio.get_running_loop().set_debug(False)
    await wait_until(lambda: state(database).used == 0)
    assert (state(database).idle, state(database).waiting) == (1, 0)
    if driver_connection is not None:
        await driver_connection.close()  # SQLAlchemy cannot close psycopg's
