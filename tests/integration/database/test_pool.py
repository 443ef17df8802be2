"""The pool on a real PostgreSQL, with both drivers: its bounds, its deadline, its order, and that nothing leaks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from random import Random
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import URL, Float, bindparam, func, select
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from app.database import Database, PoolOptions, make_engine
from app.database.conninfo import parameters
from app.database.pool import BoundedPool, pool_state
from app.database.pool_events import PoolState
from app.errors import DatabaseUnavailable, HeadroomError, PoolExhausted
from tests.support.postgres import connect
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

PID = select(func.pg_backend_pid().label("pid"))
SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))

NewDatabase = Callable[..., AbstractAsyncContextManager[Database]]


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    """A database with a pool of its own, by default of one connection that is never tested."""

    @asynccontextmanager
    async def new(url: URL = database_url, **pool: Any) -> AsyncIterator[Database]:
        settings = {"size": 1, "max_overflow": 0, "timeout": 0.5, "ping_after": None} | pool
        engine = make_engine(url=url, application_name="headroom:pool", pool=PoolOptions(**settings))
        yield Database(engine)
        await engine.dispose()

    return new


def state(database: Database) -> PoolState:
    found = pool_state(database.engine)
    assert found is not None
    return found


@asynccontextmanager
async def held(database: Database) -> AsyncIterator[Any]:
    """A connection that is taken while the block runs: the driver's."""
    connection = await database.engine.raw_connection()
    try:
        yield connection.driver_connection
    finally:
        await greenlet_spawn(connection.close)


async def waiting(database: Database, number: int) -> None:
    async def look() -> bool:
        return state(database).waiting == number

    await eventually_async(look, within=5)


@pytest.fixture
def opened(database_url: URL, database_setup: str) -> Callable[[], int]:
    """How many connections these pools have open, as the other side counts them: the server, or the pooler."""

    def on_server() -> int:
        with connect(database_url) as beside:
            query = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'headroom:pool'"
            )
            row = beside.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    def on_pooler() -> int:
        console = database_url.set(database="pgbouncer")
        with psycopg.connect(**parameters(console), autocommit=True, row_factory=dict_row) as beside:
            clients = beside.execute("SHOW CLIENTS").fetchall()
        ours = [each for each in clients if each["database"] == database_url.database]
        return len([each for each in ours if each["application_name"] == "headroom:pool"])

    return on_pooler if database_setup.endswith("pgbouncer") else on_server


async def test_whoever_finds_no_room_in_the_queue_is_refused_at_once(new_database: NewDatabase) -> None:
    async with new_database(max_overflow=1, max_waiters=2, timeout=30) as database:
        async with held(database), held(database):
            queue = [asyncio.create_task(database.read.first(PID)) for _ in range(2)]
            await waiting(database, 2)

            with pytest.raises(PoolExhausted, match=r"the queue is full \(size=1 overflow=1 in_use=2 waiting=2\)"):
                await asyncio.wait_for(database.read.first(PID), timeout=1)

        assert all(await asyncio.gather(*queue)), "those who had a place in it were served"


@pytest.mark.parametrize("road", ["read", "write"])
async def test_whoever_waits_in_vain_is_refused_at_the_deadline(new_database: NewDatabase, road: str) -> None:
    async with new_database() as database, held(database):
        started = monotonic()
        with pytest.raises(PoolExhausted, match=r"no connection after 0.5 s \(size=1 overflow=0 in_use=1 waiting=0\)"):
            if road == "read":
                await database.read.first(PID)
            else:
                async with database.write() as session:
                    await session.execute(PID)
        assert 0.4 < monotonic() - started < 2


async def test_a_connection_that_comes_back_as_time_runs_out_is_not_an_error_of_ours(
    new_database: NewDatabase,
) -> None:
    async with new_database(timeout=0.2) as database:
        connection = await database.engine.raw_connection()
        late = asyncio.create_task(database.read.first(PID))
        await waiting(database, 1)
        [waiter] = database.engine.pool._waiters  # type: ignore[attr-defined]
        waiter.set_exception(TimeoutError())  # the deadline
        await greenlet_spawn(connection.close)  # with asyncpg, before the loser has run

        with pytest.raises(PoolExhausted):
            await late
        assert await database.read.first(PID) is not None


async def test_connections_go_to_those_who_wait_in_the_order_of_their_arrival(new_database: NewDatabase) -> None:
    served: list[int] = []

    async def ask(database: Database, number: int) -> None:
        async with held(database):
            served.append(number)

    async with new_database(timeout=5) as database:
        async with held(database):
            queue = []
            for number in range(5):
                queue.append(asyncio.create_task(ask(database, number)))
                await waiting(database, number + 1)
        # The connection is back, and nobody in the queue has run yet: the last to come must not be the first.
        await asyncio.gather(*queue, ask(database, 5))

    assert served == [0, 1, 2, 3, 4, 5]


async def test_who_is_cancelled_while_being_served_passes_the_connection_on(new_database: NewDatabase) -> None:
    async with new_database(timeout=5) as database:
        connection = await database.engine.raw_connection()
        first = asyncio.create_task(database.read.first(PID))
        await waiting(database, 1)
        second = asyncio.create_task(database.read.first(PID))
        await waiting(database, 2)

        await greenlet_spawn(connection.close)  # gives it to the first, which has not run since
        first.cancel()

        assert await asyncio.wait_for(second, timeout=1) is not None
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (state(database).used, state(database).waiting) == (0, 0)


async def test_whoever_has_one_opened_takes_one_that_comes_back_before(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(proxy.url, size=2, timeout=5) as database:
        connection = await database.engine.raw_connection()
        already = proxy.opened
        proxy.pause()
        asking = asyncio.create_task(database.engine.raw_connection())
        await eventually_async(lambda: _is(proxy.opened > already), within=5)

        await greenlet_spawn(connection.close)
        connection = await asyncio.wait_for(asking, timeout=1)
        assert (state(database).used, state(database).waiting) == (2, 0), "the other one is still being opened"

        proxy.resume()
        await greenlet_spawn(connection.close)
        await eventually_async(lambda: _is(state(database).idle == 2), within=5)


async def test_what_was_opened_for_somebody_who_left_goes_to_the_next_in_line(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url, timeout=5) as database:
        proxy.pause()
        first = asyncio.create_task(database.read.first(PID))
        await eventually_async(lambda: _is(proxy.bytes > 0), within=5)
        second = asyncio.create_task(database.read.first(PID))
        await waiting(database, 1)

        first.cancel()
        proxy.resume()

        assert await asyncio.wait_for(second, timeout=2) is not None
        assert (proxy.opened, state(database).used) == (1, 0)


async def test_when_opening_one_fails_the_first_is_told_and_another_is_opened_for_the_next(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url, timeout=5) as database:
        proxy.pause()
        first = asyncio.create_task(database.read.first(PID))
        await eventually_async(lambda: _is(proxy.bytes > 0), within=5)
        second = asyncio.create_task(database.read.first(PID))
        await waiting(database, 1)

        proxy.resume()
        await proxy.cut()

        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(first, timeout=2)
        assert await asyncio.wait_for(second, timeout=2) is not None
        assert state(database).used == 0


async def test_a_failure_to_open_one_that_nobody_waits_for_any_more_harms_nobody(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url, size=2, timeout=5) as database:
        proxy.pause()
        asking = asyncio.create_task(database.read.first(PID))
        await eventually_async(lambda: _is(proxy.bytes > 0), within=5)
        asking.cancel()

        await proxy.cut()
        proxy.resume()

        await eventually_async(lambda: _is(state(database).used == 0), within=5)
        assert await database.read.first(PID) is not None


async def test_a_warm_connection_costs_no_extra_round_trip_and_one_that_was_idle_costs_one(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url, ping_after=3600) as database:
        await database.read.first(PID)
        before = proxy.executed
        await database.read.first(PID)
        assert proxy.executed - before == 1

    async with new_database(proxy.url, ping_after=0) as database:
        await database.read.first(PID)
        before = proxy.executed
        await database.read.first(PID)
        assert proxy.executed - before == 2


async def test_a_connection_that_the_server_closed_is_replaced_even_if_it_is_never_tested(
    new_database: NewDatabase, database_url: URL
) -> None:
    async with new_database(size=3) as database:
        async with held(database), held(database), held(database):
            pass
        with connect(database_url) as beside:
            beside.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'headroom:pool'"
            )

        for _ in range(3):
            assert await database.read.first(PID) is not None


async def test_a_server_that_hangs_takes_no_longer_than_the_deadline_with_test_and_connect(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url, ping_after=0, timeout=0.6) as database:
        await database.read.first(PID)
        proxy.pause()

        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)

        assert monotonic() - started < 1.5
        assert (state(database).used, state(database).idle) == (0, 0)
        proxy.resume()
        assert await database.read.first(PID) is not None


@pytest.mark.parametrize("when", ["before the test", "during the test"])
async def test_a_process_that_stood_still_for_longer_than_the_timeout_keeps_its_connection(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """By a full garbage collection, for example, or a quota of processor time."""
    took = BoundedPool._take

    def take_with_a_pause(self: BoundedPool) -> ConnectionPoolEntry:
        if when == "before the test":
            sleep(0.6)
        else:
            asyncio.get_running_loop().call_soon(sleep, 0.6)
        return took(self)

    async with new_database(ping_after=0, timeout=0.5) as database:
        async with held(database) as first:
            pass
        monkeypatch.setattr(BoundedPool, "_take", take_with_a_pause)
        async with held(database) as second:
            assert second is first


async def test_peers_that_vanished_are_replaced_within_one_deadline_not_one_each(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url, size=3, ping_after=0, timeout=1) as database:
        async with held(database), held(database), held(database):
            pass
        proxy.forget()

        started = monotonic()
        for _ in range(3):
            async with held(database):
                pass
        async with held(database), held(database), held(database):
            pass
        assert monotonic() - started < 1


async def test_a_request_never_holds_two_connections(new_database: NewDatabase) -> None:
    async with new_database(size=2, one_per_task=True) as database:
        async with database.write() as session:
            await session.execute(PID)
            with pytest.raises(RuntimeError, match="already holds a connection"):
                await database.read.first(PID)
            assert state(database).used == 1

        assert await database.read.first(PID) is not None, "one after the other is fine"
        both = await asyncio.gather(database.read.first(PID), database.read.first(PID))
        assert all(both), "and so are two requests"


async def test_overflow_goes_when_nobody_has_needed_it_for_a_while(
    new_database: NewDatabase, opened: Callable[[], int]
) -> None:
    async with new_database(size=1, max_overflow=2, shrink_after=0.2) as database:
        async with held(database), held(database), held(database):
            assert state(database) == PoolState(size=1, max_overflow=2, idle=0, used=3, waiting=0)
        assert state(database) == PoolState(size=1, max_overflow=2, idle=3, used=0, waiting=0)

        one = PoolState(size=1, max_overflow=2, idle=1, used=0, waiting=0)
        await eventually_async(lambda: _is(state(database) == one and opened() == 1), within=5)


async def test_overflow_stays_while_it_is_needed_and_no_request_waits_for_it_to_be_closed(
    new_database: NewDatabase, opened: Callable[[], int]
) -> None:
    async with new_database(size=1, max_overflow=2, shrink_after=0.4) as database:
        until = monotonic() + 1.2
        pids = set()
        while monotonic() < until:
            rows = await asyncio.gather(*(database.read.first(PID) for _ in range(3)))
            pids |= {row["pid"] for row in rows if row}
        assert len(pids) == 3, "none was closed and opened again"

        # One of them is in use all the time: what is beyond the size is the other two.
        async with held(database):
            alone = PoolState(size=1, max_overflow=2, idle=0, used=1, waiting=0)
            await eventually_async(lambda: _is(state(database) == alone), within=5)
            assert opened() == 1


async def test_what_comes_back_after_the_pool_was_disposed_of_is_closed(
    new_database: NewDatabase, opened: Callable[[], int]
) -> None:
    async with new_database(size=3) as database:
        async with held(database):
            await database.engine.dispose()
            assert opened() == 1
        await eventually_async(lambda: _is(opened() == 0), within=5)


async def test_what_is_being_opened_for_nobody_ends_with_the_pool(new_database: NewDatabase, proxy: Proxy) -> None:
    """The server would wait a minute for the client to sign in, and a DROP DATABASE would wait with it."""
    proxy.pause()
    async with new_database(proxy.url, timeout=30) as database:
        asking = asyncio.create_task(database.read.first(PID))
        await eventually_async(lambda: _is(proxy.bytes > 0), within=5)
        asking.cancel()
        await asyncio.wait({asking})
        pool = database.engine.pool
        assert isinstance(pool, BoundedPool)
        assert pool.state.used == 1

    assert pool.state.used == 0


async def test_opening_and_closing_fifty_pools_leaves_no_connection(
    new_database: NewDatabase, opened: Callable[[], int]
) -> None:
    for _ in range(50):
        async with new_database() as database:
            await database.read.first(PID)

    await eventually_async(lambda: _is(opened() == 0), within=5)


async def test_a_thousand_cancelled_requests_leave_nothing_and_never_exceed_the_bounds(
    new_database: NewDatabase, opened: Callable[[], int]
) -> None:
    """Cancelled at every stage: waiting, connecting, executing, giving back. Some finish first, some are refused."""
    random = Random(4)
    most = 0

    async def request(database: Database, seconds: float) -> None:
        if random.random() < 0.5:
            await database.read.first(SLEEP, seconds=seconds)
        else:
            async with database.write() as session:
                await session.execute(SLEEP, {"seconds": seconds})

    async def cancelled(database: Database) -> None:
        running = asyncio.create_task(request(database, random.choice([0, 0.01, 0.5])))
        await asyncio.wait({running}, timeout=random.choice([0, 0.0005, 0.002, 0.01, 0.03]))
        running.cancel()
        with suppress(asyncio.CancelledError, HeadroomError):
            await running

    async with new_database(size=3, max_overflow=3, max_waiters=10, timeout=5) as database:
        for _ in range(50):
            storm = asyncio.gather(*(cancelled(database) for _ in range(20)))
            while not storm.done():
                assert state(database).used + state(database).idle <= 6
                await asyncio.sleep(0.002)
            await storm
            most = max(most, await asyncio.to_thread(opened))

        await eventually_async(lambda: _is(state(database).used == 0), within=10)
        await eventually_async(lambda: _is(opened() == state(database).idle), within=10)
        assert state(database).waiting == 0
        assert all(await asyncio.gather(*(database.read.first(PID) for _ in range(6)))), "every place can be had again"
    print("most connections seen by the server", most)


async def _is(truth: bool) -> bool:
    return truth
