"""What a pool reports, on a real PostgreSQL: each event once, with the seconds that it took."""

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
from sqlalchemy import URL, Float, bindparam, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from app.database import Database, PoolOptions, make_engine
from app.database.pool import leak_suspects, pool_state
from app.database.pool_events import NullObserver
from app.errors import DatabaseUnavailable, HeadroomError, PoolExhausted
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

PID = select(func.pg_backend_pid().label("pid"))
SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))


class Recorder:
    """A meter that remembers: every event by name and arguments, every duration by name."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, ...]] = Counter()
        self.seconds: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert hasattr(NullObserver, name)

        def record(*arguments: Any) -> None:
            labels = [each for each in arguments if isinstance(each, str)]
            self.events[name, *labels] += 1
            self.seconds.setdefault(name, []).extend(each for each in arguments if isinstance(each, float))

        return record


NewDatabase = Callable[..., AbstractAsyncContextManager[tuple[Database, Recorder]]]


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    @asynccontextmanager
    async def new(url: URL = database_url, **pool: Any) -> AsyncIterator[tuple[Database, Recorder]]:
        recorder: Any = Recorder()
        settings = {"size": 1, "max_overflow": 0, "timeout": 0.5, "ping_after": None} | pool
        engine = make_engine(
            url=url, application_name="headroom:meter", observer=recorder, pool=PoolOptions(**settings)
        )
        yield Database(engine), recorder
        await engine.dispose()

    return new


async def test_every_checkout_counts_once_and_is_as_long_as_it_was(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        for _ in range(3):
            await database.read.first(SLEEP, seconds=0.1)
        async with database.write() as session:
            await session.execute(SLEEP, {"seconds": 0.1})

        assert recorder.events == {("opened",): 1, ("acquired",): 4, ("released",): 4}
        assert sum(recorder.seconds["released"]) == pytest.approx(0.4, rel=0.25)
        assert sum(recorder.seconds["acquired"]) < 0.4, "what opening a connection took is the wait of the first"
        assert recorder.seconds["acquired"][0] >= recorder.seconds["opened"][0]


async def test_whoever_queues_counts_and_so_does_the_time_in_the_queue(new_database: NewDatabase) -> None:
    async with new_database(timeout=5) as (database, recorder):
        await database.read.first(PID)
        started = monotonic()
        await asyncio.gather(*(database.read.first(SLEEP, seconds=0.2) for _ in range(3)))
        took = monotonic() - started

        assert recorder.events["acquired",] == 4
        assert recorder.events["queued",] == recorder.events["dequeued",] == 2
        # The second waited for the first, the third for both.
        assert sum(recorder.seconds["dequeued"]) == pytest.approx(took, rel=0.1)


async def test_refusals_are_told_apart_and_are_no_checkouts(new_database: NewDatabase) -> None:
    async with new_database(max_waiters=1, timeout=0.2) as (database, recorder):
        holder = await database.engine.raw_connection()
        outcomes = await asyncio.gather(*(database.read.first(PID) for _ in range(3)), return_exceptions=True)
        await greenlet_spawn(holder.close)

        assert all(isinstance(each, PoolExhausted) for each in outcomes)
        assert recorder.events["rejected",] == 2
        assert recorder.events["timed_out",] == recorder.events["queued",] == recorder.events["dequeued",] == 1
        assert recorder.events["acquired",] == 1


async def test_a_connection_that_cannot_be_opened_counts(new_database: NewDatabase, proxy: Proxy) -> None:
    await proxy.close()
    async with new_database(proxy.url) as (database, recorder):
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)

        assert recorder.events == {("open_failed",): 1}


async def test_connections_that_are_closed_say_why(new_database: NewDatabase) -> None:
    async with new_database(max_overflow=1, timeout=5, shrink_after=0.1) as (database, recorder):
        await asyncio.gather(*(database.read.first(SLEEP, seconds=0.1) for _ in range(2)))
        assert recorder.events["closed", "surplus"] == 0

        async def shrunk() -> bool:
            return recorder.events["closed", "surplus"] == 1

        await eventually_async(shrunk, within=5)
        await database.engine.dispose()
        assert recorder.events["closed", "disposed"] == 1

        await database.read.first(PID)
        assert recorder.events["opened",] == 3, "the pool that takes the place of a closed one reports, too"


async def test_a_connection_that_is_too_old_is_recycled(new_database: NewDatabase) -> None:
    async with new_database(recycle=0) as (database, recorder):
        await database.read.first(PID)
        await database.read.first(PID)

        # With 0 it is too old as soon as it is there.
        assert recorder.events["closed", "recycled"] == recorder.events["opened",] - 1 > 0


async def test_a_connection_that_answers_the_test_is_kept(new_database: NewDatabase) -> None:
    async with new_database(ping_after=0) as (database, recorder):
        for _ in range(3):
            await database.read.first(PID)

        # With 0 one that was just opened is tested, too.
        assert recorder.events == {("opened",): 1, ("pinged",): 3, ("acquired",): 3, ("released",): 3}


async def test_a_test_that_fails_by_itself_is_told_of(
    new_database: NewDatabase, database_setup: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As asyncpg's answer to an empty statement did: every connection that had been idle was replaced, silently."""

    execute = asyncpg.Connection.execute

    async def fail(connection: Any, query: str, *rest: Any) -> Any:
        if query == "SELECT 1":
            raise AttributeError("a bug")
        return await execute(connection, query, *rest)  # SQLAlchemy's, when it opens one

    def fail_in_greenlet(*_: object) -> None:
        raise AttributeError("a bug")

    async with new_database(ping_after=0) as (database, recorder):
        if database_setup.startswith("asyncpg"):
            monkeypatch.setattr(asyncpg.Connection, "execute", fail)
        else:
            monkeypatch.setattr(database.engine.dialect, "do_ping", fail_in_greenlet)
        await database.read.first(PID)

        assert recorder.events["invalidated", "hard", "unanswered"] == 1
        assert "the ping of an open connection failed" in caplog.text


async def test_an_idle_connection_that_the_other_side_closed_is_given_up(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url) as (database, recorder):
        await database.read.first(PID)
        await proxy.cut()
        await database.read.first(PID)
        await database.read.first(PID)  # on the one that took its place

        assert recorder.events["invalidated", "hard", "hung_up"] == 1
        assert recorder.events["closed", "invalidated"] == 1
        assert recorder.events["pinged",] == 1


async def test_a_cancelled_statement_gives_its_connection_up(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        task = asyncio.create_task(database.read.first(SLEEP, seconds=30))

        async def taken() -> bool:
            return recorder.events["acquired",] == 1

        await eventually_async(taken, within=5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        async def given_back() -> bool:
            return recorder.events["released",] == 1

        await eventually_async(given_back, within=10)
        assert recorder.events["leaked",] == 0


async def test_a_connection_that_is_lost_under_a_statement_is_given_up(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(proxy.url) as (database, recorder):
        task = asyncio.create_task(database.read.first(SLEEP, seconds=30))

        async def taken() -> bool:
            return recorder.events["acquired",] == 1

        await eventually_async(taken, within=5)
        await proxy.cut()
        with pytest.raises((HeadroomError, DBAPIError)):
            await task

        assert recorder.events["invalidated", "hard", "disconnect"] == 1


async def test_a_connection_held_for_too_long_is_told_of_once(new_database: NewDatabase) -> None:
    async with new_database() as (database, recorder):
        holder = await database.engine.raw_connection()
        assert leak_suspects(database.engine, 60) == []

        [(seconds, _)] = leak_suspects(database.engine, 0)
        assert 0 < seconds < 5
        assert leak_suspects(database.engine, 0) == [], "once"
        assert recorder.events["leaked",] == 1
        await greenlet_spawn(holder.close)


async def test_a_connection_that_is_never_given_back_is_a_leak_and_its_place_is_free_again(
    new_database: NewDatabase,
) -> None:
    async with new_database() as (database, recorder):
        holder: Any = await database.engine.raw_connection()
        dropped = holder.driver_connection
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy's own, about just that
            del holder
            gc.collect()

        assert recorder.events["leaked",] == recorder.events["closed", "lost"] == 1
        state = pool_state(database.engine)
        assert state is not None
        assert state.used == 0
        await dropped.close()  # SQLAlchemy cannot, where the driver is psycopg
