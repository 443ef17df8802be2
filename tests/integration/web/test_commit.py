"""A client never reads 2xx for a write that did not commit."""

from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, text

from app.web.deps import WriteDb
from tests.support.postgres import connect

INSERT = text("INSERT INTO users (email, name, password_hash) VALUES ('ann@example.com', 'Ann', 'x') RETURNING id")


def count_users(url: URL) -> int:
    with connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM users").fetchone()
        assert row is not None
        return int(row[0])


async def test_write_after_response_is_committed(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)

    assert (await client.post("/write")).status_code == 201
    assert count_users(database_url) == 1


async def test_write_whose_commit_fails_returns_500(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    """A deferred constraint fails at COMMIT, after every statement of the route succeeded."""
    with connect(database_url) as connection:
        connection.execute(
            "ALTER TABLE posts DROP CONSTRAINT fk_posts_author_id_users, ADD CONSTRAINT deferred"
            " FOREIGN KEY (author_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED"
        )

    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        await db.execute(text("INSERT INTO posts (author_id, title, content) VALUES (999, 'a', 'b')"))

    response = await client.post("/write")

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal-error"
    assert "deferred" not in response.text, "the response must not contain the database's error message"
    assert count_users(database_url) == 0


async def test_write_whose_connection_is_killed_before_commit_returns_503(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        pid = await db.scalar(text("SELECT pg_backend_pid()"))
        with connect(database_url) as connection:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    response = await client.post("/write")

    assert response.status_code == 503
    assert response.json()["type"] == "/problems/database-unavailable"
    assert response.headers["retry-after"] == "1"
    assert count_users(database_url) == 0


async def test_write_whose_route_raises_is_rolled_back(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    @app.post("/write", status_code=201)
    async def write(db: WriteDb) -> None:
        await db.execute(INSERT)
        raise LookupError("secret detail")

    response = await client.post("/write")

    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert count_users(database_url) == 0
