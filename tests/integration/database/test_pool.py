"""The pool on a real PostgreSQL server: its bounds, its deadline, its queue, and what it leaves behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from random import Random
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import URL
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from app.database import Database, PoolOptions, make_engine, pool
from app.database._sqlalchemy import entry_of
from app.database.conninfo import parameters
from app.database.pool import BoundedPool
from app.database.pool_events import PoolState
from app.errors import DatabaseUnavailable, HeadroomError, PoolExhausted
from tests.integration.database.helpers import PID, SLEEP, change_options, checked_out, pool_of, state, wait_until
from tests.support.postgres import connect
from tests.support.proxy import Proxy

NewDatabase = Callable[..., AbstractAsyncContextManager[Database]]
Read = asyncio.Task[Any]


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    """Create databases with pools of their own: by default one connection, no ping, and a timeout that never matters.

    A test of the timeout shortens it with `change_options()` when the connections that it needs are open.
    """

    @asynccontextmanager
    async def new(url: URL = database_url, **options: Any) -> AsyncIterator[Database]:
        options = {"size": 1, "max_overflow": 0, "timeout": 30, "ping_after": None} | options
        driver_timeout = options.pop("connect_timeout", 5)
        engine = make_engine(
            url=url, application_name="headroom:pool", pool=PoolOptions(**options), connect_timeout=driver_timeout
        )
        try:
            yield Database(engine)
        finally:
            await engine.dispose()

    return new


@pytest.fixture
def server_connections(database_url: URL, database_setup: str) -> Callable[[], int]:
    """Count the connections of these pools on the other side: on the server, or on PgBouncer."""

    def on_server() -> int:
        with connect(database_url) as admin:
            query = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'headroom:pool'"
            )
            row = admin.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    def on_pooler() -> int:
        console = database_url.set(database="pgbouncer")
        with psycopg.connect(**parameters(console), autocommit=True, row_factory=dict_row) as admin:
            clients = admin.execute("SHOW CLIENTS").fetchall()
        return len(
            [
                client
                for client in clients
                if (client["database"], client["application_name"]) == (database_url.database, "headroom:pool")
            ]
        )

    return on_pooler if database_setup.endswith("pgbouncer") else on_server


async def test_checkout_with_full_queue_is_rejected_without_waiting(new_database: NewDatabase) -> None:
    async with new_database(max_overflow=1, max_waiters=2) as database:
        async with checked_out(database), checked_out(database):
            queue = [asyncio.create_task(database.read.first(PID)) for _ in range(2)]
            await wait_until(lambda: state(database).waiting == 2, *queue)

            with pytest.raises(PoolExhausted, match=r"the queue is full \(size=1 overflow=1 in_use=2 waiting=2\)"):
                await database.read.first(PID)

        assert all(await asyncio.gather(*queue)), "the waiters in the queue are served"


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_waiter_at_its_deadline_gets_pool_exhausted(new_database: NewDatabase, session_type: str) -> None:
    async with new_database() as database, checked_out(database):
        change_options(database, timeout=0.2)
        started = monotonic()
        with pytest.raises(PoolExhausted, match=r"no connection after 0.2 s \(size=1 overflow=0 in_use=1 waiting=0\)"):
            if session_type == "read":
                await database.read.first(PID)
            else:
                async with database.write() as session:
                    await session.execute(PID)
        assert 0.18 < monotonic() - started < 10


async def test_connection_returned_at_the_deadline_is_not_lost(new_database: NewDatabase) -> None:
    async with new_database() as database:
        connection = await database.engine.raw_connection()
        late = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: state(database).waiting == 1, late)
        [waiter] = pool_of(database)._waiters
        waiter.set_exception(TimeoutError())  # the deadline
        await greenlet_spawn(connection.close)  # with asyncpg, before the waiter runs

        with pytest.raises(PoolExhausted):
            await late
        assert await database.read.first(PID) is not None


async def test_waiters_are_served_in_order_of_arrival(new_database: NewDatabase) -> None:
    served: list[int] = []

    async def check_out(database: Database, number: int) -> None:
        async with checked_out(database):
            served.append(number)

    async with new_database() as database:
        async with checked_out(database):
            queue: list[asyncio.Task[None]] = []
            for number in range(5):
                queue.append(asyncio.create_task(check_out(database, number)))
                await wait_until(lambda: state(database).waiting == len(queue), *queue)
        # The connection is returned, and no waiter has run yet: a new caller must not overtake them.
        await asyncio.gather(*queue, check_out(database, 5))

    assert served == [0, 1, 2, 3, 4, 5]


async def test_waiter_cancelled_while_served_passes_the_connection_on(new_database: NewDatabase) -> None:
    async with new_database() as database:
        connection = await database.engine.raw_connection()
        first = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: state(database).waiting == 1, first)
        second = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: state(database).waiting == 2, first, second)

        await greenlet_spawn(connection.close)  # serves the first waiter, which has not run yet
        first.cancel()

        assert await second is not None
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (state(database).used, state(database).waiting) == (0, 0)


async def test_connection_distrusted_while_a_statement_waits_is_replaced(new_database: NewDatabase) -> None:
    """The server has failed over meanwhile: what a waiter gets is checked as if it had been idle."""
    async with new_database() as database:
        connection = await database.engine.raw_connection()
        first = connection.driver_connection
        read = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: state(database).waiting == 1, read)
        pool_of(database).distrust(entry_of(connection))
        await greenlet_spawn(connection.close)

        assert await read is not None
        assert (state(database).used, state(database).idle) == (0, 1)
        async with checked_out(database) as second:
            assert second is not first


async def test_connection_returned_before_one_is_opened_is_taken(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(proxy.url, size=2) as database:
        connection = await database.engine.raw_connection()
        opened = proxy.opened
        proxy.pause()
        caller = asyncio.create_task(database.engine.raw_connection())
        await wait_until(lambda: proxy.opened > opened, caller)

        await greenlet_spawn(connection.close)
        connection = await caller
        assert (state(database).used, state(database).waiting) == (2, 0), "the second one is still being opened"

        proxy.resume()
        await greenlet_spawn(connection.close)
        await wait_until(lambda: state(database).idle == 2)


async def open_and_queue(database: Database, proxy: Proxy) -> tuple[Read, Read]:
    """Return two tasks that need a connection: the pool opens one for the first, and the second waits."""
    proxy.pause()
    first = asyncio.create_task(database.read.first(PID))
    await wait_until(lambda: proxy.bytes > 0, first)
    second = asyncio.create_task(database.read.first(PID))
    await wait_until(lambda: state(database).waiting == 1, first, second)
    return first, second


async def test_opened_connection_of_cancelled_caller_goes_to_next_waiter(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url) as database:
        first, second = await open_and_queue(database, proxy)

        first.cancel()
        proxy.resume()

        assert await second is not None
        assert (proxy.opened, state(database).used) == (1, 0)


async def test_failed_open_is_raised_and_another_is_opened_for_next_waiter(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database(proxy.url) as database:
        first, second = await open_and_queue(database, proxy)

        proxy.resume()
        await proxy.cut()

        with pytest.raises(DatabaseUnavailable):
            await first
        assert await second is not None
        assert state(database).used == 0


async def test_failed_open_without_a_waiter_frees_the_slot(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(proxy.url, size=2) as database:
        proxy.pause()
        caller = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: proxy.bytes > 0, caller)
        caller.cancel()

        await proxy.cut()
        proxy.resume()

        await wait_until(lambda: state(database).used == 0)
        assert await database.read.first(PID) is not None


async def test_warm_connection_is_not_pinged_and_idle_one_is_pinged_once(
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


async def test_connection_closed_by_server_is_replaced_without_a_ping(
    new_database: NewDatabase, database_url: URL
) -> None:
    async with new_database(size=3) as database:
        async with checked_out(database), checked_out(database), checked_out(database):
            pass
        with connect(database_url) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'headroom:pool'"
            )

        for _ in range(3):
            assert await database.read.first(PID) is not None


async def test_ping_and_connect_to_hanging_server_share_one_deadline(new_database: NewDatabase, proxy: Proxy) -> None:
    """The driver's own connect timeout is longer than the checkout may take."""
    async with new_database(proxy.url, ping_after=0, connect_timeout=60) as database:
        await database.read.first(PID)
        proxy.pause()

        change_options(database, timeout=0.6)
        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)

        assert monotonic() - started < 30
        await wait_until(lambda: (state(database).used, state(database).idle) == (0, 0))
        change_options(database, timeout=30)
        proxy.resume()
        assert await database.read.first(PID) is not None


@pytest.mark.parametrize("when", ["before the ping", "during the ping"])
async def test_pause_longer_than_the_timeout_keeps_the_connection(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A full garbage collection or a processor quota can pause the process for longer than the pool's timeout."""
    original = BoundedPool._take
    timeout = 2.0

    def take_with_pause(self: BoundedPool) -> ConnectionPoolEntry:
        if when == "before the ping":
            sleep(timeout + 0.1)
        else:
            asyncio.get_running_loop().call_soon(sleep, timeout + 0.1)
        return original(self)

    async with new_database(ping_after=0) as database:
        async with checked_out(database) as first:
            pass
        change_options(database, timeout=timeout)
        monkeypatch.setattr(pool, "MIN_PING_SECONDS", timeout / 2)  # enough for a ping on a busy machine
        monkeypatch.setattr(BoundedPool, "_take", take_with_pause)
        async with checked_out(database) as second:
            assert second is first


async def test_second_checkout_of_a_task_is_refused(new_database: NewDatabase) -> None:
    async with new_database(size=2, one_per_task=True) as database:
        async with database.write() as session:
            await session.execute(PID)
            with pytest.raises(RuntimeError, match="already holds a connection"):
                await database.read.first(PID)
            assert state(database).used == 1

        assert await database.read.first(PID) is not None, "one checkout after the other is allowed"
        both = await asyncio.gather(database.read.first(PID), database.read.first(PID))
        assert all(both), "each task may hold one"


async def test_idle_overflow_is_closed_after_shrink_after(
    new_database: NewDatabase, server_connections: Callable[[], int]
) -> None:
    async with new_database(size=1, max_overflow=2, shrink_after=0.5) as database:
        async with checked_out(database), checked_out(database), checked_out(database):
            assert state(database) == PoolState(size=1, max_overflow=2, idle=0, used=3, waiting=0)
        assert state(database) == PoolState(size=1, max_overflow=2, idle=3, used=0, waiting=0)

        one = PoolState(size=1, max_overflow=2, idle=1, used=0, waiting=0)
        await wait_until(lambda: state(database) == one and server_connections() == 1)


async def test_overflow_in_use_until_just_now_is_not_closed(new_database: NewDatabase) -> None:
    async with new_database(size=1, max_overflow=2, shrink_after=60) as database:
        await asyncio.gather(*(database.read.first(PID) for _ in range(3)))
        await wait_until(lambda: state(database).idle == 3)  # a read may finish on another's connection
        first_timer = pool_of(database)._shrinking

        await greenlet_spawn(pool_of(database)._shrink)

        assert state(database).idle == 3
        assert pool_of(database)._shrinking not in (None, first_timer), "it looks again later"


async def test_all_idle_connections_are_overflow_while_one_is_in_use(
    new_database: NewDatabase, server_connections: Callable[[], int]
) -> None:
    async with new_database(size=1, max_overflow=2, shrink_after=0.1) as database:
        await asyncio.gather(*(database.read.first(PID) for _ in range(3)))
        async with checked_out(database):
            only_one = PoolState(size=1, max_overflow=2, idle=0, used=1, waiting=0)
            await wait_until(lambda: state(database) == only_one and server_connections() == 1)


async def test_connection_returned_after_dispose_is_closed(
    new_database: NewDatabase, server_connections: Callable[[], int]
) -> None:
    async with new_database(size=3) as database:
        async with checked_out(database):
            await database.engine.dispose()
            assert server_connections() == 1
        await wait_until(lambda: server_connections() == 0)


async def test_dispose_aborts_opening_that_nothing_waits_for(new_database: NewDatabase, proxy: Proxy) -> None:
    """The server would wait a minute for the client to sign in, and a DROP DATABASE would wait for the server."""
    proxy.pause()
    async with new_database(proxy.url) as database:
        caller = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: proxy.bytes > 0, caller)
        caller.cancel()
        await asyncio.wait({caller})
        disposed = pool_of(database)
        assert disposed.state.used == 1

    assert disposed.state.used == 0


async def test_fifty_disposed_pools_leave_no_connection(
    new_database: NewDatabase, server_connections: Callable[[], int]
) -> None:
    for _ in range(50):
        async with new_database() as database:
            await database.read.first(PID)

    await wait_until(lambda: server_connections() == 0)


async def test_thousand_cancelled_requests_keep_the_bounds_and_leak_nothing(
    new_database: NewDatabase, server_connections: Callable[[], int]
) -> None:
    """Requests are cancelled at every stage: queue, connect, statement, return. Some finish, some are rejected."""
    random = Random(4)

    async def request(database: Database, seconds: float) -> None:
        if random.random() < 0.5:
            await database.read.first(SLEEP, seconds=seconds)
        else:
            async with database.write() as session:
                await session.execute(SLEEP, {"seconds": seconds})

    async def cancelled_request(database: Database) -> None:
        running = asyncio.create_task(request(database, random.choice([0, 0.01, 0.5])))
        await asyncio.wait({running}, timeout=random.choice([0, 0.0005, 0.002, 0.01, 0.03]))
        running.cancel()
        with suppress(asyncio.CancelledError, HeadroomError):
            await running

    async with new_database(size=3, max_overflow=3, max_waiters=10) as database:
        for _ in range(50):
            requests = asyncio.gather(*(cancelled_request(database) for _ in range(20)))
            while not requests.done():
                assert state(database).used + state(database).idle <= 6
                await asyncio.sleep(0.002)
            await requests

        await wait_until(lambda: state(database).used == 0)
        await wait_until(lambda: server_connections() == state(database).idle)
        assert state(database).waiting == 0
        assert all(await asyncio.gather(*(database.read.first(PID) for _ in range(6)))), "every slot is free again"
