"""A write session has one transaction with one owner: it cannot be ended by others, or used after its end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import URL, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, make_transient_to_detached

from app.database import Database, WriteSession
from app.errors import DatabaseUnavailable, NotFound
from tests.integration.database.helpers import PID, state, wait_until
from tests.support.contacts import Contact, new_contact
from tests.support.postgres import connect

ONE = text("SELECT 1")


def emails(url: URL) -> list[str]:
    with connect(url) as admin:
        return [row[0] for row in admin.execute("SELECT email FROM test_contacts ORDER BY id")]


async def add(session: WriteSession) -> None:
    session.add(new_contact("bob@example.com"))


async def delete(session: WriteSession) -> None:
    contact = Contact(id=1)
    make_transient_to_detached(contact)
    await session.delete(contact)


async def begin(session: WriteSession) -> None:
    async with session.begin():
        pass


async def savepoint(session: WriteSession) -> None:
    async with session.begin_nested():
        pass


async def context_manager(session: WriteSession) -> None:
    async with session:
        pass


USES: dict[str, Callable[[WriteSession], Awaitable[Any]]] = {
    "execute": lambda session: session.execute(ONE),
    "scalar": lambda session: session.scalar(ONE),
    "stream": lambda session: session.stream(ONE),
    "get": lambda session: session.get(Contact, 1),
    "connection": lambda session: session.connection(),
    "run_sync": lambda session: session.run_sync(lambda sync: sync.execute(ONE)),
    "merge": lambda session: session.merge(Contact(id=1)),
    "add": add,
    "delete": delete,
    "commit": lambda session: session.commit(),
    "begin": begin,
    "begin_nested": savepoint,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
async def test_ended_write_session_raises_and_opens_no_connection(
    database: Database, database_url: URL, use: Callable[[WriteSession], Awaitable[Any]]
) -> None:
    async with database.write() as session:
        session.add(new_contact())
    size = state(database).size

    for _ in range(2):  # the first use must not make the second one possible
        with pytest.raises(RuntimeError, match=r"write session has ended.*database\.write\(\)"):
            await use(session)

    assert (state(database).used, state(database).size) == (0, size)
    assert emails(database_url) == ["ann@example.com"]


CONTROLS: dict[str, Callable[[WriteSession], Awaitable[Any]]] = {
    "commit": lambda session: session.commit(),
    "rollback": lambda session: session.rollback(),
    "close": lambda session: session.close(),
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
    "begin": begin,
    "async with": context_manager,
    "run_sync": lambda session: session.run_sync(lambda sync: sync.commit()),
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
async def test_transaction_control_inside_write_is_refused(
    database: Database, database_url: URL, control: Callable[[WriteSession], Awaitable[Any]]
) -> None:
    async with database.write() as session:
        session.add(new_contact())
        await session.flush()
        with pytest.raises(RuntimeError, match=r"Database\.write\(\) owns this transaction"):
            await control(session)
        assert emails(database_url) == []

    assert emails(database_url) == ["ann@example.com"], "the owner can still commit"


@pytest.mark.parametrize("way", ["commit", "rollback"])
async def test_transaction_ended_by_its_own_object_makes_write_raise(database: Database, way: str) -> None:
    """The rest of the block would run in a second transaction, or none, and the first part could be lost silently."""
    with pytest.raises(RuntimeError, match="write session has ended"):
        async with database.write() as session:
            session.add(new_contact())
            transaction = session.get_transaction()
            assert transaction is not None
            await getattr(transaction, way)()

    assert state(database).used == 0


async def test_savepoint_inside_write_can_be_rolled_back(database: Database, database_url: URL) -> None:
    async with database.write() as session:
        session.add(new_contact())
        async with session.begin_nested() as savepoint:
            session.add(new_contact("bob@example.com"))
            await session.flush()
            await savepoint.rollback()
        async with session.begin_nested():
            session.add(new_contact("cy@example.com"))

    assert emails(database_url) == ["ann@example.com", "cy@example.com"]


async def test_caught_statement_error_makes_write_raise(database: Database, database_url: URL) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and neither driver raises for it."""
    with pytest.raises(RuntimeError, match="begin_nested"):
        async with database.write() as session:
            session.add(new_contact())
            await session.flush()
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT 1 / 0"))

    assert emails(database_url) == []
    assert state(database).used == 0


async def test_statement_error_caught_around_a_savepoint_is_harmless(database: Database, database_url: URL) -> None:
    async with database.write() as session:
        session.add(new_contact())
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("SELECT 1 / 0"))

    assert emails(database_url) == ["ann@example.com"]


async def lose_connection(session: WriteSession, database: Database, *, noticed: bool) -> None:
    """Terminate the session's backend. If `noticed`, wait until the driver could have read of it."""
    pid = (await session.execute(PID)).one().pid
    with connect(database.engine.url) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))
    if noticed and database.engine.dialect.driver == "asyncpg":
        raw = await (await session.connection()).get_raw_connection()
        driver_connection = raw.driver_connection
        assert driver_connection is not None
        await wait_until(driver_connection.is_closed)


@pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
async def test_domain_error_after_a_lost_connection_is_kept(database: Database, noticed: bool) -> None:
    with pytest.raises(NotFound):
        async with database.write() as session:
            await lose_connection(session, database, noticed=noticed)
            raise NotFound("no")

    assert state(database).used == 0


@pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
async def test_failing_rollback_of_a_savepoint_is_database_unavailable(database: Database, noticed: bool) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.write() as session, session.begin_nested():
            await lose_connection(session, database, noticed=noticed)
            raise NotFound("no")

    assert state(database).used == 0


async def test_cancellation_after_a_lost_connection_is_kept(database: Database) -> None:
    async def write() -> None:
        async with database.write() as session:
            await lose_connection(session, database, noticed=False)
            lost.set()
            await asyncio.Event().wait()

    lost = asyncio.Event()
    writing = asyncio.create_task(write())
    await lost.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert state(database).used == 0


async def test_write_session_with_a_failed_closing_stays_committed(
    database: Database, database_url: URL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit decides the result. A client must not read 500 for a row that is stored."""
    original = Session.close

    def close(self: Session) -> None:
        original(self)
        raise OSError("no route to host")

    monkeypatch.setattr(Session, "close", close)

    async with database.write() as session:
        session.add(new_contact())

    assert emails(database_url) == ["ann@example.com"]
    assert "no route to host" in caplog.text


async def test_nested_write_is_a_transaction_of_its_own(database: Database, database_url: URL) -> None:
    with pytest.raises(LookupError):
        async with database.write() as outer:
            outer.add(new_contact())
            await outer.flush()
            async with database.write() as inner:
                inner.add(new_contact("bob@example.com"))
            assert await outer.scalar(select(func.count()).select_from(Contact)) == 2
            raise LookupError

    assert emails(database_url) == ["bob@example.com"]
