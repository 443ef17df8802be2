"""Every wait for the server has a deadline on our side, and a lost answer to COMMIT is told apart."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, event, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import greenlet_spawn

from app.database import Database, PoolOptions, answers, make_engine
from app.database.checkout import Checkout
from app.database.engine import STATEMENT_MARGIN_SECONDS, TCP_USER_TIMEOUT_SECONDS
from app.database.liveness import SocketProbe, file_descriptor
from app.database.pool import MAX_WATCH_SECONDS
from app.errors import DatabaseUnavailable, OutcomeUnknown
from app.request_deadline import RequestDeadline, request_deadline
from tests.integration.database.helpers import PID, SLEEP, change_options, checked_out, pool_of, state, wait_until
from tests.support.contacts import Contact
from tests.support.postgres import as_role, connect
from tests.support.proxy import Proxy

NewDatabase = Callable[..., AbstractAsyncContextManager[Database]]

# The deadline of a statement that gets no answer. The tests allow BUSY_SECONDS more for a busy or paused machine.
DEADLINE = 0.6
BUSY_SECONDS = 15.0
NAMES = select(Contact.name)
ANN = {"email": "ann@example.com", "name": "Ann"}
ADD_CONTACT = insert(Contact).values(**ANN).returning(Contact.id)


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_database(proxy: Proxy) -> NewDatabase:
    """Create databases behind the proxy: one connection, no ping, and deadlines that never matter."""

    @asynccontextmanager
    async def new(url: URL = proxy.url, **options: Any) -> AsyncIterator[Database]:
        options = {
            "size": 1,
            "max_overflow": 0,
            "timeout": 30,
            "ping_after": None,
            "statement_deadline": 60,
        } | options
        engine = make_engine(url=url, application_name="headroom:deadlines", pool=PoolOptions(**options))
        try:
            yield Database(engine)
        finally:
            await engine.dispose()

    return new


def forget(database: Database, proxy: Proxy) -> None:
    """Let the open connections become silent, and from now on give a statement DEADLINE."""
    pool_of(database)._answer_limit.seconds = DEADLINE
    proxy.forget()


@pytest.mark.parametrize("messages", [1, 2, 3, 4, 6, 8])
async def test_connection_silent_while_opening_is_given_up_at_the_deadline(
    new_database: NewDatabase, proxy: Proxy, messages: int
) -> None:
    async with new_database(timeout=1) as database:
        proxy.silence_next(after=messages)
        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)
        assert 1 <= monotonic() - started < 1 + BUSY_SECONDS

        change_options(database, timeout=30)
        assert await database.read.first(PID) is not None


@pytest.mark.parametrize("messages", [1, 2, 3, 4, 6, 8])
async def test_connection_silent_while_opening_blocks_no_other(
    new_database: NewDatabase, proxy: Proxy, messages: int
) -> None:
    """SQLAlchemy would initialise its dialect on the first connection, and hold a lock meanwhile."""
    async with new_database(size=2) as database:
        proxy.silence_next(after=messages)
        first = asyncio.create_task(database.read.first(PID))
        await wait_until(lambda: proxy.opened == 1, first)

        started = monotonic()
        assert all(await asyncio.gather(first, database.read.first(PID))), "one after the other, on the second one"
        assert monotonic() - started < BUSY_SECONDS


async def test_read_without_an_answer_is_unavailable_at_its_deadline(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database() as database:
        await database.read.first(PID)
        forget(database, proxy)

        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)

        assert DEADLINE < monotonic() - started < DEADLINE + BUSY_SECONDS
        await wait_until(lambda: state(database).used == 0)
        pool_of(database)._answer_limit.seconds = 60
        assert await database.read.first(PID) is not None


async def test_read_of_entities_without_an_answer_is_unavailable(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database() as database:
        await database.read.entities(select(Contact))
        forget(database, proxy)

        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.read.entities(select(Contact))

        assert DEADLINE < monotonic() - started < DEADLINE + BUSY_SECONDS


async def test_statement_of_a_transaction_without_an_answer_is_unavailable(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database() as database:
        started = 0.0
        with pytest.raises(DatabaseUnavailable):
            async with database.write() as session:
                await session.execute(PID)
                forget(database, proxy)
                started = monotonic()
                await session.execute(PID)

        assert DEADLINE < monotonic() - started < DEADLINE + BUSY_SECONDS
        assert state(database).used == 0


async def test_commit_without_an_answer_is_outcome_unknown(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database() as database:
        started = 0.0
        with pytest.raises(OutcomeUnknown):
            async with database.write() as session:
                session.add(Contact(**ANN))
                await session.flush()
                forget(database, proxy)
                started = monotonic()

        assert DEADLINE < monotonic() - started < DEADLINE + BUSY_SECONDS
        assert state(database).used == 0
        pool_of(database)._answer_limit.seconds = 60
        assert await database.read.all(NAMES) == []


async def test_rollback_without_an_answer_ends_at_its_deadline(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database() as database:
        started = 0.0
        with pytest.raises(LookupError):
            async with database.write() as session:
                await session.execute(PID)
                forget(database, proxy)
                started = monotonic()
                raise LookupError

        assert monotonic() - started < DEADLINE + BUSY_SECONDS
        assert state(database).used == 0


async def test_write_of_one_statement_without_an_answer_is_outcome_unknown(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    async with new_database() as database:
        await database.read.first(PID)
        forget(database, proxy)

        with pytest.raises(OutcomeUnknown):
            await database.statement.returned(ADD_CONTACT)


async def test_write_on_the_ordinary_path_without_an_answer_is_outcome_unknown(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    add_contacts = insert(Contact).values([ANN]).returning(Contact.id)  # the fast path does not take VALUES lists
    async with new_database() as database:
        assert await database.statement.returned(add_contacts) is not None
        forget(database, proxy)

        with pytest.raises(OutcomeUnknown):
            await database.statement.returned(add_contacts.values([ANN | {"email": "bob@example.com"}]))


# The second is not taken by the fast path, because of its VALUES list.
WRITES = pytest.mark.parametrize("write", [ADD_CONTACT, insert(Contact).values([ANN]).returning(Contact.id)])


async def run_until_return(monkeypatch: pytest.MonkeyPatch, write: Awaitable[Any]) -> None:
    """Run the write in a request whose deadline passes while the connection is returned or closed."""
    deadline = RequestDeadline(math.inf, response_has_begun=lambda: False, cancel=lambda: writing.cancel())

    def ending(end: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def expire_and_end(*arguments: Any) -> None:
            if not deadline.is_stored:
                deadline.expire()
                await asyncio.sleep(0)
            await end(*arguments)

        return expire_and_end

    for owner, name in ((Checkout, "release"), (Checkout, "abort"), (AsyncConnection, "close")):
        monkeypatch.setattr(owner, name, ending(getattr(owner, name)))
    token = request_deadline.set(deadline)
    writing = asyncio.ensure_future(write)
    request_deadline.reset(token)
    await writing


@WRITES
async def test_stored_write_is_a_success_if_its_deadline_passes_then(
    database: Database, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    await run_until_return(monkeypatch, database.statement.returned(write))

    assert await database.read.all(NAMES)


@WRITES
async def test_lost_write_is_outcome_unknown_if_its_deadline_passes_then(
    new_database: NewDatabase, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    async with new_database() as database:
        await database.read.first(PID)
        forget(database, proxy)

        with pytest.raises(OutcomeUnknown):
            await run_until_return(monkeypatch, database.statement.returned(write))


async def cancel_read(database: Database, connection: Any, seconds: float) -> None:
    """Run a statement on the connection, the only one that is idle, and cancel it when psycopg has sent it."""
    reading = asyncio.create_task(database.read.first(SLEEP, seconds=seconds))

    def is_sent() -> bool:
        pgconn = getattr(connection, "pgconn", None)  # asyncpg's has none
        return state(database).used == 1 and (pgconn is None or pgconn.transaction_status == TransactionStatus.ACTIVE)

    await wait_until(is_sent, reading)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_connection_of_a_cancelled_read_is_kept_for_good(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that a cancelled statement has for its end is not a limit of the next statement."""
    monkeypatch.setattr(answers, "CANCEL_SECONDS", 0.5)
    pid = await database.read.first(PID)
    connection = pool_of(database)._idle[-1].driver_connection
    await cancel_read(database, connection, seconds=60)

    await database.read.first(SLEEP, seconds=1)

    assert await database.read.first(PID) == pid


@pytest.mark.parametrize("database_setup", ["psycopg"])
async def test_connection_is_not_kept_if_its_cancel_request_failed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request may still be on its way, and would cancel the next statement. asyncpg closes such a connection."""

    async def time_out(*_: object, **__: object) -> None:
        raise psycopg.errors.CancellationTimeout

    pid = await database.read.first(PID)
    connection = pool_of(database)._idle[-1].driver_connection
    monkeypatch.setattr(psycopg.AsyncConnection, "cancel_safe", time_out)

    await cancel_read(database, connection, seconds=0.5)

    assert await database.read.first(PID) != pid


@pytest.mark.parametrize("database_setup", ["psycopg"])
async def test_cancel_request_that_overtakes_its_statement_is_sent_again(
    new_database: NewDatabase, proxy: Proxy
) -> None:
    """The server ignores a cancel request for a statement that it has not received."""
    async with new_database() as database:
        pid = await database.read.first(PID)
        release, executed = proxy.hold(), proxy.executed
        reading = asyncio.create_task(database.read.first(SLEEP, seconds=60))
        await wait_until(lambda: proxy.executed > executed, reading)
        opened = proxy.opened

        reading.cancel()
        await wait_until(lambda: proxy.opened > opened + 1)
        release()
        with pytest.raises(asyncio.CancelledError):
            await reading

        assert await database.read.first(PID) == pid


async def test_idle_holder_keeps_its_connection_beyond_the_deadline(new_database: NewDatabase) -> None:
    """Only waits for the server are bounded, not the time between two statements."""
    async with new_database() as database, database.write() as session:
        before = (await session.execute(PID)).one()
        pool_of(database)._answer_limit.seconds = 0.1
        await asyncio.sleep(MAX_WATCH_SECONDS + 0.2)
        pool_of(database)._answer_limit.seconds = 60
        assert (await session.execute(PID)).one() == before


async def test_commit_on_a_connection_closed_before_is_unavailable(
    new_database: NewDatabase, database_url: URL
) -> None:
    """The client may repeat the request: the server never read COMMIT."""
    async with new_database() as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.write() as session:
                session.add(Contact(**ANN))
                await session.flush()
                with connect(database_url) as admin:
                    admin.execute("SELECT pg_terminate_backend(%s, 30000)", ((await session.execute(PID)).one().pid,))
                driver = (await (await session.connection()).get_raw_connection()).driver_connection
                await wait_until(lambda: SocketProbe(driver).closed_by_server())


async def test_backend_terminated_during_commit_is_unavailable(new_database: NewDatabase, database_url: URL) -> None:
    """PostgreSQL says that it rolled back, in the message that it sends before it closes the connection."""
    with connect(database_url) as admin:
        admin.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
            " AS $$BEGIN PERFORM pg_sleep(30); RETURN NULL; END$$"
        )
        admin.execute(
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON test_contacts DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION slow()"
        )

    async def write(database: Database) -> None:
        async with database.write() as session:
            session.add(Contact(**ANN))

    def terminate() -> bool:
        with connect(database_url) as admin:
            query = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'PgSleep'"
            )
            return bool(admin.execute(query).fetchall())

    async with new_database() as database:
        writing = asyncio.create_task(write(database))
        await wait_until(terminate, writing)
        with pytest.raises(DatabaseUnavailable):
            await writing


async def test_cancelled_statement_without_an_answer_frees_its_slot(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database() as database:
        await database.read.first(PID)
        executed = proxy.executed
        reading = asyncio.create_task(database.read.first(SLEEP, seconds=60))
        await wait_until(lambda: proxy.executed > executed, reading)
        proxy.forget()

        started = monotonic()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await wait_until(lambda: state(database).used == 0)

        assert monotonic() - started < 4.5 + BUSY_SECONDS


async def test_dispose_without_an_answer_ends_in_seconds(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database() as database:
        await database.read.first(PID)
        proxy.forget()

        started = monotonic()
        await database.engine.dispose()

        assert monotonic() - started < 2 + BUSY_SECONDS


async def test_statement_deadline_follows_the_servers_timeout(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database(statement_deadline=None) as database:
        await database.read.first(PID)
        assert pool_of(database)._answer_limit.seconds == 10 + STATEMENT_MARGIN_SECONDS

    owner = as_role(database_url, "headroom_owner")
    async with new_database(owner, statement_deadline=None) as database:
        await database.read.first(PID)
        assert pool_of(database)._answer_limit.seconds == float("inf"), "the role has no statement_timeout"


async def test_connection_has_tcp_keepalive_and_user_timeout(new_database: NewDatabase) -> None:
    async with new_database() as database, checked_out(database) as connection:
        with socket.socket(fileno=socket.dup(file_descriptor(connection))) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            milliseconds = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert milliseconds == TCP_USER_TIMEOUT_SECONDS * 1000


async def test_connection_closed_meanwhile_is_not_returned_without_a_wait(new_database: NewDatabase) -> None:
    async with new_database() as database:
        proxy: Any = await database.engine.raw_connection()
        await proxy.driver_connection.close()

        assert not pool_of(database).return_proxy_nowait(proxy)
        await greenlet_spawn(proxy.close)
        assert state(database).used == 0


async def test_listener_of_the_application_that_hangs_is_bounded(new_database: NewDatabase, proxy: Proxy) -> None:
    async with new_database(timeout=1) as database:

        @event.listens_for(database.engine.sync_engine, "connect")
        def query(connection: Any, _: object) -> None:
            proxy.pause()
            connection.cursor().execute("SELECT 1")

        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.read.first(PID)
        await wait_until(lambda: state(database).used == 0)
        proxy.resume()

        assert monotonic() - started < 1 + BUSY_SECONDS
