"""How a pool opens connections: a few at a time, later after a failure, and not all of one age."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import URL

from app.database import Database, PoolOptions, make_engine
from app.database.pool import MAX_OPENING, MAX_RETRY_SECONDS, RECYCLE_JITTER
from app.database.pool_events import NullObserver
from app.errors import DatabaseUnavailable
from tests.integration.database.helpers import PID, checked_out, pool_of, state, wait_until
from tests.support.proxy import Proxy

NewDatabase = Callable[..., AbstractAsyncContextManager[Database]]


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Openings(NullObserver):
    """Counts the connections that were opened, and the attempts that failed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def opened(self, *_: object) -> None:
        self.counts["opened"] += 1

    def open_failed(self, *_: object) -> None:
        self.counts["failed"] += 1


@pytest.fixture
def openings() -> Openings:
    return Openings()


@pytest.fixture
def new_database(proxy: Proxy, openings: Openings) -> NewDatabase:
    """Create databases behind the proxy, with ten connections and no ping."""

    @asynccontextmanager
    async def new(url: URL = proxy.url, **options: Any) -> AsyncIterator[Database]:
        options = {"size": 10, "max_overflow": 0, "timeout": 30, "ping_after": None} | options
        observer: Any = openings
        engine = make_engine(
            url=url, application_name="headroom:opening", observer=observer, pool=PoolOptions(**options)
        )
        try:
            yield Database(engine)
        finally:
            await engine.dispose()

    return new


def count_connects(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the driver's connects that run at the same time. Return a function with the most until then."""
    dialect: Any = database.engine.dialect
    connect = dialect.connect
    running = most = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return connect(*args, **kwargs)
        finally:
            running -= 1

    monkeypatch.setattr(dialect, "connect", counted)
    return lambda: most


async def test_few_connections_are_opened_at_the_same_time(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_database() as database, AsyncExitStack() as holders:
        most = count_connects(database, monkeypatch)

        await asyncio.gather(*(holders.enter_async_context(checked_out(database)) for _ in range(10)))

        assert most() == MAX_OPENING
        assert state(database).used == 10


async def test_broken_connections_are_replaced_a_few_at_a_time(
    new_database: NewDatabase, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_database() as database:
        async with AsyncExitStack() as holders:
            await asyncio.gather(*(holders.enter_async_context(checked_out(database)) for _ in range(10)))
        await proxy.cut()
        most = count_connects(database, monkeypatch)

        async with AsyncExitStack() as holders:
            await asyncio.gather(*(holders.enter_async_context(checked_out(database)) for _ in range(10)))
            assert most() == MAX_OPENING
            assert state(database).used == 10


async def test_connection_that_no_caller_needs_any_more_is_not_opened(
    new_database: NewDatabase, openings: Openings
) -> None:
    """Ten callers arrive, and the first connections serve all of them."""
    async with new_database() as database:
        assert all(await asyncio.gather(*(database.read.first(PID) for _ in range(10))))
        await wait_until(lambda: state(database).used == 0)

        assert MAX_OPENING <= openings.counts["opened"] < 10


async def test_failed_attempts_become_rare_and_callers_get_their_error(
    new_database: NewDatabase, proxy: Proxy, openings: Openings
) -> None:
    await proxy.close()
    slowest = 0.0

    async def call(database: Database) -> None:
        nonlocal slowest
        while monotonic() < end:
            started = monotonic()
            with pytest.raises(DatabaseUnavailable, match="cannot connect"):
                await database.read.first(PID)
            slowest = max(slowest, monotonic() - started)

    async with new_database() as database:
        end = monotonic() + 2
        await asyncio.gather(*(call(database) for _ in range(20)))

    # Waits of at least 0.05, 0.1, 0.2, 0.4, 0.5, 0.5 s; MAX_OPENING attempts after each.
    assert 3 <= openings.counts["failed"] <= 8 * MAX_OPENING
    assert slowest < MAX_RETRY_SECONDS + 5


async def test_attempt_after_an_outage_succeeds_within_a_retry(new_database: NewDatabase, proxy: Proxy) -> None:
    url = proxy.url
    await proxy.close()
    async with new_database(url) as database:
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable):
                await database.read.first(PID)
        await proxy.listen_again()

        started = monotonic()
        assert await database.read.first(PID) is not None
        assert monotonic() - started < MAX_RETRY_SECONDS + 5
        assert pool_of(database)._failed_opens == 0


async def test_failed_open_is_raised_in_one_waiter_while_connections_are_held(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(size=2) as database:
        async with checked_out(database):
            await proxy.stop_listening()
            waiters = [asyncio.create_task(database.read.first(PID)) for _ in range(3)]
            done, waiting = await asyncio.wait(waiters, return_when=asyncio.FIRST_EXCEPTION)
            assert len(waiting) >= 1, "the held connection may come back"
            await proxy.listen_again()
        for caller in done:
            assert isinstance(caller.exception(), DatabaseUnavailable)
        assert all(await asyncio.gather(*waiting))


async def test_connections_opened_together_are_not_recycled_together(new_database: NewDatabase) -> None:
    async with new_database(recycle=1000) as database:
        async with AsyncExitStack() as holders:
            await asyncio.gather(*(holders.enter_async_context(checked_out(database)) for _ in range(10)))
        ages = [
            record.info["headroom.recycle_at"] - record.info["headroom.opened_at"] for record in pool_of(database)._idle
        ]

        assert all(1000 * (1 - RECYCLE_JITTER) <= age <= 1000.1 for age in ages)
        assert max(ages) - min(ages) > 1
