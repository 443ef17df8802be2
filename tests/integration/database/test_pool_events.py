"""What a pool reports to its observer, on a real PostgreSQL server: each event once, with its duration."""

import asyncio
import gc
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from app.database import Database, PoolOptions, make_engine
from app.database.pool import leak_suspects
from app.database.pool_events import NullObserver
from app.errors import DatabaseUnavailable, HeadroomError, PoolExhausted
from tests.integration.database.helpers import PID, SLEEP, change_options, checked_out, state, wait_until
from tests.support.proxy import Proxy


class Recorder:
    """An observer that records every event by name and labels, and every duration by name."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, ...]] = Counter()
        self.seconds: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert hasattr(NullObserver, name)

        def record(*arguments: Any) -> None:
            labels = [argument for argument in arguments if isinstance(argument, str)]
            self.events[name, *labels] += 1
            durations = [argument for argument in arguments if isinstance(argument, float)]
            self.seconds.setdefault(name, []).extend(durations)

        return record


NewDatabase = Callable[..., AbstractAsyncContextManager[tuple[Database, Recorder]]]


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    """Create databases with pools of their own: by default one connection, no ping, and a timeout that never matters.

    A test of the timeout shortens it with `change_options()` when the connections that it needs are open.
    """

    @asynccontextmanager
    async def new(url: URL = database_url, **options: Any) -> AsyncIterator[tuple[Database, Recorder]]:
        recorder: Any = Recorder()
        options = {"size": 1, "max_overflow": 0, "timeout": 30, "ping_after": None} | options
        engine = make_engine(
            url=url, application_name="headroom:observed", observer=recorder, pool=PoolOptions(**options)
        )
        try:
            yield Database(engine), recorder
        finally:
            await engine.dispose()

    return new


async def test_each_checkout_is_recorded_once_with_its_duration(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        started = monotonic()
        for _ in range(3):
            await database.read.first(SLEEP, seconds=0.1)
        async with database.write() as session:
            await session.execute(SLEEP, {"seconds": 0.1})
        elapsed = monotonic() - started

        assert recorder.events == {("opened",): 1, ("acquired",): 4, ("released",): 4}
        held, waited = recorder.seconds["released"], recorder.seconds["acquired"]
        assert min(held) >= 0.09
        assert sum(held) + sum(waited) <= elapsed, "no second counts as both held and waited"
        assert waited[0] >= recorder.seconds["opened"][0], "the first caller waits until the connection is open"


async def test_queued_checkout_is_recorded_with_its_time_in_the_queue(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        async with checked_out(database):
            started = monotonic()
            waiters = [asyncio.create_task(database.read.first(PID)) for _ in range(2)]
            await wait_until(lambda: recorder.events["queued",] == 2, *waiters)
            all_queued = monotonic()
            await asyncio.sleep(0.1)
            returned = monotonic()
        await asyncio.gather(*waiters)
        elapsed = monotonic() - started

        assert recorder.events["acquired",] == 3
        assert recorder.events["dequeued",] == 2
        assert all(returned - all_queued <= seconds <= elapsed for seconds in recorder.seconds["dequeued"])


async def test_rejection_and_timeout_are_recorded_and_are_no_checkouts(new_database: NewDatabase) -> None:
    async with new_database(max_waiters=1) as (database, recorder):
        async with checked_out(database):
            change_options(database, timeout=0.2)
            outcomes = await asyncio.gather(*(database.read.first(PID) for _ in range(3)), return_exceptions=True)

        assert all(isinstance(outcome, PoolExhausted) for outcome in outcomes)
        assert recorder.events["rejected",] == 2
        assert recorder.events["timed_out",] == recorder.events["queued",] == recorder.events["dequeued",] == 1
        assert recorder.events["acquired",] == 1


async def test_failed_open_is_recorded(new_database: NewDatabase, proxy: Proxy) -> None:
    await proxy.close()
    async with new_database(proxy.url) as (database, recorder):
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)

        assert recorder.events == {("open_failed",): 1}


async def test_closed_connection_is_recorded_with_its_reason(new_database: NewDatabase) -> None:
    async with new_database(max_overflow=1, shrink_after=2) as (database, recorder):
        async with checked_out(database), checked_out(database):
            pass
        assert recorder.events["closed", "surplus"] == 0

        await wait_until(lambda: recorder.events["closed", "surplus"] == 1)
        await database.engine.dispose()
        assert recorder.events["closed", "disposed"] == 1

        await database.read.first(PID)
        assert recorder.events["opened",] == 3, "the pool that replaces a disposed one has the same observer"


async def test_overflow_that_is_soon_used_again_stays_open(new_database: NewDatabase) -> None:
    async with new_database(max_overflow=2, shrink_after=60) as (database, recorder):
        for _ in range(5):
            async with checked_out(database), checked_out(database), checked_out(database):
                waiter = asyncio.create_task(database.read.first(PID))
                await wait_until(lambda: state(database).waiting == 1, waiter)
            await waiter

        assert state(database).idle == 3
        assert recorder.events["opened",] == 3
        assert recorder.events["closed", "surplus"] == 0


async def test_connection_older_than_recycle_is_recorded_as_recycled(new_database: NewDatabase) -> None:
    async with new_database(recycle=0) as (database, recorder):
        await database.read.first(PID)
        await database.read.first(PID)

        # With 0, a connection is too old as soon as it is open.
        assert recorder.events["closed", "recycled"] == recorder.events["opened",] - 1 > 0


async def test_answered_ping_is_recorded_and_keeps_the_connection(new_database: NewDatabase) -> None:
    async with new_database(ping_after=0) as (database, recorder):
        for _ in range(3):
            await database.read.first(PID)

        # With 0, a connection that was just opened is pinged too.
        assert recorder.events == {("opened",): 1, ("pinged",): 3, ("acquired",): 3, ("released",): 3}


async def test_error_of_a_ping_is_logged_and_connection_is_replaced(
    new_database: NewDatabase, database_setup: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncpg's answer to an empty statement raised an error, and every idle connection was replaced silently."""
    original = asyncpg.Connection.execute

    async def execute(connection: Any, query: str, *rest: Any) -> Any:
        if query == "SELECT 1":
            raise AttributeError("a bug")
        return await original(connection, query, *rest)  # SQLAlchemy calls it when it opens a connection

    def do_ping(*_: object) -> None:
        raise AttributeError("a bug")

    async with new_database(ping_after=0) as (database, recorder):
        if database_setup.startswith("asyncpg"):
            monkeypatch.setattr(asyncpg.Connection, "execute", execute)
        else:
            monkeypatch.setattr(database.engine.dialect, "do_ping", do_ping)
        await database.read.first(PID)

        assert recorder.events["invalidated", "hard", "unanswered"] == 1
        assert "the ping of an open connection failed" in caplog.text


async def test_idle_connection_closed_by_server_is_invalidated_once(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(proxy.url) as (database, recorder):
        await database.read.first(PID)
        await proxy.cut()
        await database.read.first(PID)
        await database.read.first(PID)  # on the replacement

        assert recorder.events["invalidated", "hard", "hung_up"] == 1
        assert recorder.events["closed", "invalidated"] == 1
        assert recorder.events["pinged",] == 1


async def test_unanswered_ping_invalidates_all_connections_of_that_age(new_database: NewDatabase, proxy: Proxy) -> None:
    """Peers that vanished together cost one ping timeout, not one for each connection."""
    async with new_database(proxy.url, size=3, ping_after=0) as (database, recorder):
        async with checked_out(database), checked_out(database), checked_out(database):
            pass
        proxy.forget()

        change_options(database, timeout=8)  # half of it is for the ping, the other half for opening a replacement
        async with checked_out(database):
            pass
        change_options(database, timeout=30)
        async with checked_out(database), checked_out(database), checked_out(database):
            pass

        assert recorder.events["invalidated", "hard", "unanswered"] == 1
        assert recorder.events["invalidated", "soft", "pool"] == 2
        assert recorder.events["opened",] == 6


async def test_connection_of_a_cancelled_statement_is_released_not_leaked(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        reading = asyncio.create_task(database.read.first(SLEEP, seconds=30))
        await wait_until(lambda: recorder.events["acquired",] == 1, reading)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

        await wait_until(lambda: recorder.events["released",] == 1)
        assert recorder.events["leaked",] == 0


async def test_connection_lost_during_a_statement_is_invalidated(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(proxy.url) as (database, recorder):
        reading = asyncio.create_task(database.read.first(SLEEP, seconds=30))
        await wait_until(lambda: recorder.events["acquired",] == 1, reading)
        await proxy.cut()
        with pytest.raises((HeadroomError, DBAPIError)):
            await reading

        assert recorder.events["invalidated", "hard", "disconnect"] == 1


async def test_leak_suspect_is_reported_once(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        started = monotonic()
        async with checked_out(database):
            assert leak_suspects(database.engine, 60) == []

            [(seconds, _)] = leak_suspects(database.engine, 0)
            assert 0 < seconds < monotonic() - started
            assert leak_suspects(database.engine, 0) == []
            assert recorder.events["leaked",] == 1


async def test_connection_never_returned_is_a_leak_and_frees_its_slot(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        connection: Any = await database.engine.raw_connection()
        driver_connection = connection.driver_connection
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy warns about the garbage-collected connection
            del connection
            gc.collect()

        assert recorder.events["leaked",] == recorder.events["closed", "lost"] == 1
        assert state(database).used == 0
        await driver_connection.close()  # SQLAlchemy cannot close psycopg's
