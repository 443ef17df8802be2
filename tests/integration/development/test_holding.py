"""A wait for something else than the database, with a connection in hand, is found without measuring time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database, ReadSession
from app.development.holding import watch_holders
from app.web.deps import ReadDb, StatementDb, WriteDb
from tests.support.contacts import Contact

_CONTACT = select(Contact.id).limit(1)


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def waits(engine: AsyncEngine) -> list[str]:
    found: list[str] = []
    watch_holders(engine, found.append)
    return found


async def other_io() -> None:
    await asyncio.sleep(0.001)


async def in_another_task() -> None:
    await asyncio.wait_for(other_io(), timeout=30)


async def in_a_thread() -> None:
    await asyncio.to_thread(sum, (1, 2))


@pytest.mark.parametrize("wait", [other_io, in_another_task, in_a_thread])
async def test_wait_in_a_transaction_is_reported_once_with_its_line(
    database: Database, waits: list[str], wait: Callable[[], Awaitable[None]]
) -> None:
    async with database.write() as session:
        await session.execute(text("SELECT 1"))
        await wait()
        await wait()

    [found] = waits
    assert found.startswith("tests/integration/development/test_holding.py:")
    assert found.endswith(f" in {wait.__name__}") or wait is in_another_task


async def test_wait_in_a_unit_of_work_is_reported(database: Database, waits: list[str]) -> None:
    """`run_write()` is a part of the database package, and the work is not."""
    await database.run_write(lambda session: waiting(session.execute(text("SELECT 1"))))

    assert [wait.partition(" in ")[2] for wait in waits] == ["waiting"]


async def waiting(statement: Awaitable[object]) -> None:
    await statement
    await asyncio.sleep(0.001)


async def test_wait_after_an_error_of_the_server_is_reported(database: Database, waits: list[str]) -> None:
    async with database.write() as session:
        with pytest.raises(Exception, match="division by zero"):
            async with session.begin_nested():
                await session.execute(text("SELECT 1 / 0"))
        await other_io()

    assert len(waits) == 1


async def test_waits_for_the_database_are_not_reported(database: Database, waits: list[str]) -> None:
    """Slow statements, a statement with a deadline, two sessions at once, and waits without a connection."""
    async with database.write() as session:
        await session.execute(text("SELECT pg_sleep(0.05)"))
        async with asyncio.timeout(30):
            await session.execute(text("SELECT pg_sleep(0.01)"))
    await other_io()
    await asyncio.gather(*(database.read.all(_CONTACT) for _ in range(20)))
    await other_io()

    assert waits == []


async def test_wait_of_a_request_is_reported_unless_its_session_holds_nothing(
    app: FastAPI, client: AsyncClient
) -> None:
    found: list[str] = []
    watch_holders(app.state.database.engine, found.append)

    @app.get("/write")
    async def write(db: WriteDb) -> None:
        await db.execute(text("SELECT 1"))
        await other_io()

    @app.get("/read")
    async def read(db: ReadDb, statement: StatementDb) -> None:
        await read_one(db)
        await other_io()

    assert (await client.get("/read")).status_code == 200
    assert found == []
    assert (await client.get("/write")).status_code == 200
    assert [wait.partition(" in ")[2] for wait in found] == ["other_io"]


async def read_one(session: ReadSession) -> None:
    await session.all(_CONTACT)
