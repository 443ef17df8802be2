"""A client never reads 2xx for a write that did not commit."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from app.database import Database, WriteSession
from app.database.pool import pool_state
from app.web.deps import DatabaseDep, WriteDb
from tests.support.contacts import ContactNotFound
from tests.support.deferred import create_notes
from tests.support.postgres import connect

INSERT = text("INSERT INTO test_contacts (email, name) VALUES ('ann@example.com', 'Ann') RETURNING id")


def count_contacts(url: URL) -> int:
    with connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM test_contacts").fetchone()
        assert row is not None
        return int(row[0])


async def insert_and_lose_connection(db: WriteDb, url: URL) -> None:
    """Insert a contact, and kill the backend of the session, whose transaction is still open."""
    await db.execute(INSERT)
    pid = await db.scalar(text("SELECT pg_backend_pid()"))
    with connect(url) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


async def test_write_after_response_is_committed(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)

    assert (await client.post("/write")).status_code == 201
    assert count_contacts(database_url) == 1


async def test_write_whose_commit_fails_returns_500(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    """A deferred constraint fails at COMMIT, after every statement of the route succeeded."""
    create_notes(database_url)

    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        await db.execute(text("INSERT INTO test_notes (contact_id) VALUES (999)"))

    response = await client.post("/write")

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal-error"
    assert "deferred" not in response.text, "the response must not contain the database's error message"
    assert count_contacts(database_url) == 0


async def test_write_whose_connection_is_killed_before_commit_returns_503(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await insert_and_lose_connection(db, database_url)

    response = await client.post("/write")

    assert response.status_code == 503
    assert response.json()["type"] == "/problems/database-unavailable"
    assert response.headers["retry-after"] == "1"
    assert count_contacts(database_url) == 0


async def test_write_whose_route_raises_is_rolled_back(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        raise LookupError("secret detail")

    response = await client.post("/write")

    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert count_contacts(database_url) == 0


async def test_own_dependency_that_would_commit_late_returns_500(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    """It was added after the check at startup. The client would read 201 before a unique violation at the commit."""

    async def transaction(database: DatabaseDep) -> AsyncIterator[WriteSession]:
        async with database.write() as session:
            yield session

    @app.post("/write", status_code=201)
    async def write(db: Annotated[WriteSession, Depends(transaction)]) -> None:
        await db.execute(INSERT)

    assert (await client.post("/write")).status_code == 500
    assert count_contacts(database_url) == 0


async def test_error_of_a_route_whose_connection_was_killed_is_kept(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await insert_and_lose_connection(db, database_url)
        raise ContactNotFound(7)

    assert (await client.post("/write")).status_code == 404
    assert count_contacts(database_url) == 0


async def test_write_session_in_background_task_takes_no_connection(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    errors: list[Exception] = []

    async def write_later(db: WriteSession) -> None:
        try:
            await db.execute(INSERT)
        except RuntimeError as error:
            errors.append(error)

    @app.post("/write", status_code=202)
    async def write(db: WriteDb, tasks: BackgroundTasks) -> None:
        await db.scalar(text("SELECT 1"))
        tasks.add_task(write_later, db)

    assert (await client.post("/write")).status_code == 202
    assert "write session has ended" in str(errors)
    database: Database = app.state.database
    state = pool_state(database.engine)
    assert state is not None
    assert (state.used, state.waiting) == (0, 0)
    assert count_contacts(database_url) == 0


async def test_write_that_failed_and_was_caught_returns_500(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    """PostgreSQL would answer COMMIT with ROLLBACK, without an error, and the client would read 201."""

    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        with suppress(DBAPIError):
            await db.execute(text("SELECT 1 / 0"))

    assert (await client.post("/write")).status_code == 500
    assert count_contacts(database_url) == 0
