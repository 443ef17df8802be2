"""The header Request-Timeout: when it ends a request, what is stored then, and what the client learns."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import sleep
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import URL, Float, bindparam, func, insert, literal, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database, KeyedSelect
from app.database.pool import pool_state
from app.web.deps import DatabaseDep, ReadDb, StatementDb, WriteDb
from tests.support.contacts import Contact
from tests.support.metrics import cancelled_requests
from tests.support.postgres import connect, running_statements

SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))
BY_ID = KeyedSelect(select(Contact.id, Contact.name), Contact.id)
CONTACTS: Any = Contact.__table__  # not the entity: a write session would insert it as one
INSERT = (
    insert(CONTACTS)
    .from_select(
        ["email", "name"],
        select(literal("late@example.com"), literal("Late")).where(
            func.pg_sleep(bindparam("seconds", type_=Float())).is_not(None)
        ),
    )
    .returning(CONTACTS.c.id)
)

# The constraint is checked at COMMIT. The function delays COMMIT until after the deadline.
DEFERRED = """
CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep(2.5); RAISE unique_violation USING MESSAGE = 'refused at COMMIT'; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON test_contacts DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse_late();
"""
FAILS_AT_COMMIT = text("INSERT INTO test_contacts (email, name) VALUES ('late@example.com', 'Late')")


@pytest.fixture
def engine(app: FastAPI) -> AsyncEngine:
    database: Database = app.state.database
    return database.engine


@pytest.fixture
def send(app: FastAPI, client: AsyncClient) -> Callable[..., Awaitable[Response]]:
    """Add routes to the application. Return a function that sends a request with a Request-Timeout."""

    @app.get("/read")
    async def read(db: ReadDb, seconds: float) -> None:
        await db.first(SLEEP, seconds=seconds)

    @app.post("/write")
    async def write(db: WriteDb, seconds: float) -> None:
        await db.execute(INSERT, {"seconds": seconds})

    @app.post("/statement")
    async def statement(db: StatementDb, seconds: float) -> None:
        await db.returned(INSERT, seconds=seconds)

    @app.post("/late-commit")
    async def late_commit(db: WriteDb) -> None:
        await db.execute(INSERT, {"seconds": 0})
        sleep(2.2)  # noqa: ASYNC251 - blocks the event loop: the timer cannot end the request

    @app.post("/stored")
    async def stored(database: DatabaseDep) -> str:
        async with database.write() as session:
            await session.execute(INSERT, {"seconds": 0})
        await database.read.first(SLEEP, seconds=2.5)
        return "stored"

    @app.post("/stored-by-statement")
    async def stored_by_statement(database: DatabaseDep) -> str:
        await database.statement.returned(INSERT, seconds=0)
        await database.read.first(SLEEP, seconds=2.5)
        return "stored"

    @app.post("/failing-commit")
    async def failing_commit(database: DatabaseDep) -> str:
        with suppress(IntegrityError):
            async with database.write() as session:
                await session.execute(FAILS_AT_COMMIT)
        await database.read.first(SLEEP, seconds=30)
        return "not ended"

    async def send(method: str, path: str, seconds: str) -> Response:
        return await client.request(method, path, headers={"Request-Timeout": seconds})

    return send


def stored(url: URL) -> bool:
    with connect(url) as admin:
        return bool(admin.execute("SELECT FROM test_contacts WHERE name = 'Late'").fetchall())


@pytest.mark.parametrize("database_setup", ["asyncpg", "psycopg", "asyncpg-pgbouncer", "psycopg-pgbouncer"])
async def test_read_ends_on_the_server_at_the_deadline(
    send: Callable[..., Awaitable[Response]], engine: AsyncEngine, database_url: URL
) -> None:
    counted = cancelled_requests("deadline")
    assert (await send("GET", "/read?seconds=0", "20")).status_code == 200

    late = await send("GET", "/read?seconds=30", "2")

    assert (late.status_code, late.json()["type"]) == (503, "/problems/deadline-exceeded")
    assert late.headers["retry-after"] == "1"
    assert cancelled_requests("deadline") == counted + 1
    assert running_statements(database_url) == 0, "the response is sent when the statement has ended"
    state = pool_state(engine)
    assert state is not None
    assert (state.used, state.idle) == (0, 1), "the connection is kept"


async def test_request_leaves_the_queue_at_the_deadline(
    send: Callable[..., Awaitable[Response]], engine: AsyncEngine
) -> None:
    answers = await asyncio.gather(*(send("GET", f"/read?seconds=30.{number}", "0.5") for number in range(6)))

    assert {answer.json()["type"] for answer in answers} == {"/problems/deadline-exceeded"}
    state = pool_state(engine)
    assert state is not None
    assert (state.used, state.waiting) == (0, 0)


async def test_transaction_is_rolled_back_at_the_deadline(
    send: Callable[..., Awaitable[Response]], database_url: URL
) -> None:
    for path in ("/write?seconds=30", "/late-commit"):
        late = await send("POST", path, "2")

        assert late.json()["type"] == "/problems/deadline-exceeded", path
        assert not stored(database_url), path


async def test_outcome_of_a_statement_that_commits_itself_is_unknown(
    send: Callable[..., Awaitable[Response]], database_url: URL
) -> None:
    assert (await send("POST", "/statement?seconds=0", "20")).status_code == 200
    with connect(database_url) as admin:
        admin.execute("DELETE FROM test_contacts")

    late = await send("POST", "/statement?seconds=30", "2")

    assert (late.status_code, late.json()["type"]) == (503, "/problems/outcome-unknown")
    assert "retry-after" not in late.headers
    assert running_statements(database_url) == 0
    assert not stored(database_url)


@pytest.mark.parametrize("path", ["/stored", "/stored-by-statement"])
async def test_request_that_has_stored_something_goes_on(
    send: Callable[..., Awaitable[Response]], database_url: URL, path: str
) -> None:
    answer = await send("POST", path, "2")

    assert (answer.status_code, answer.json()) == (200, "stored")
    assert stored(database_url)


async def test_request_whose_commit_failed_ends_at_the_deadline(
    send: Callable[..., Awaitable[Response]], database_url: URL
) -> None:
    """The deadline passes during COMMIT, which is finished. It has stored nothing, so the request ends then."""
    with connect(database_url) as admin:
        admin.execute(DEFERRED.encode())

    late = await send("POST", "/failing-commit", "2")

    assert (late.status_code, late.json()["type"]) == (503, "/problems/deadline-exceeded")
    assert not stored(database_url)


async def test_used_up_timeout_is_refused_before_the_route_runs(
    send: Callable[..., Awaitable[Response]], database_url: URL
) -> None:
    late = await send("POST", "/write?seconds=0", "0")

    assert late.json()["type"] == "/problems/deadline-exceeded"
    assert not stored(database_url)


@pytest.mark.parametrize("seconds", ["", "-1", "1s", "1e3", "inf", "nan", "0x1", "1,5", " ", "9" * 10, "٣"])
async def test_malformed_timeout_is_400(send: Callable[..., Awaitable[Response]], seconds: str) -> None:
    refused = await send("GET", "/read?seconds=0", seconds.encode())

    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/bad-request")
    assert "x-request-id" in refused.headers


async def test_two_timeouts_in_a_request_are_400(app: FastAPI, client: AsyncClient) -> None:
    """Joined with a comma by a proxy, they are malformed too."""
    headers = [("Request-Timeout", "2"), ("Request-Timeout", "20")]

    refused = await client.get("/livez", headers=headers)

    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/bad-request")
