"""Invariant 1: a client never reads 2xx for a write that did not commit."""

import pytest
from fastapi import Depends, FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, text

from app.database import WriteSession
from app.main import create_app
from app.settings import Settings
from app.web.deps import WriteDb, get_db
from tests.integration.conftest import SECRET_KEY
from tests.support.postgres import connect

INSERT = text("INSERT INTO users (email, name, password_hash) VALUES ('ann@example.com', 'Ann', 'x') RETURNING id")


def count_users(url: URL) -> int:
    with connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM users").fetchone()
        assert row is not None
        return int(row[0])


async def test_a_write_is_there_when_its_answer_is(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)

    assert (await client.post("/write")).status_code == 201
    assert count_users(database_url) == 1


async def test_a_commit_that_fails_is_never_answered_with_201(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    with connect(database_url) as connection:
        connection.execute(
            "ALTER TABLE posts DROP CONSTRAINT fk_posts_author_id_users, ADD CONSTRAINT deferred"
            " FOREIGN KEY (author_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED"
        )

    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        await db.execute(text("INSERT INTO posts (author_id, title, content) VALUES (999, 'a', 'b')"))

    answer = await client.post("/write")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/internal-error"
    assert "deferred" not in answer.text, "the database's words stay inside"
    assert count_users(database_url) == 0


async def test_a_connection_that_is_killed_before_the_commit_is_never_answered_with_201(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        pid = await db.scalar(text("SELECT pg_backend_pid()"))
        with connect(database_url) as beside:
            beside.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    answer = await client.post("/write")

    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/database-unavailable"
    assert answer.headers["retry-after"] == "1"
    assert count_users(database_url) == 0


async def test_a_route_that_raises_writes_nothing(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        raise LookupError("secret detail")

    answer = await client.post("/write")

    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert count_users(database_url) == 0


async def test_an_application_that_would_commit_after_the_answer_does_not_start(database_url: URL) -> None:
    app = create_app(Settings(database_url=database_url, secret_key=SECRET_KEY))

    @app.post("/write")
    async def write(db: WriteSession = Depends(get_db)) -> None:  # noqa: B008 - the mistake under test
        await db.execute(INSERT)

    with pytest.raises(RuntimeError, match=r'/write depends on get_db without scope="function"'):
        async with app.router.lifespan_context(app):
            pass
