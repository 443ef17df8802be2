"""Every statement that reaches the server is seen, whichever path and driver sends it."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from app.development.statements import watch_statements
from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support.fixtures import SignUp, Statements
from tests.support.proxy import Proxy


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def app(proxy: Proxy) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY, db_pool_pre_ping=False))
    async with app.router.lifespan_context(app):
        yield app


async def test_statements_seen_are_those_that_the_server_gets(
    client: AsyncClient, proxy: Proxy, sign_up: SignUp, statements: Statements
) -> None:
    """Keyed reads, lists, writes of one statement, transactions, and a transaction that is rolled back."""
    ann, bob = await sign_up("Ann"), await sign_up("Bob")
    executed, seen = proxy.executed, len(statements.executed)

    created = await ann("POST", "/posts", json={"title": "Title", "content": "Content"})
    location = created.headers["location"]
    assert (await bob("PATCH", location, json={"title": "Bob's"})).status_code == 403
    for method, path, body, status in (
        ("GET", "/posts", None, 200),
        ("GET", location, None, 200),
        ("PATCH", location, {"title": "Changed"}, 200),
        ("DELETE", location, None, 204),
    ):
        assert (await ann(method, path, json=body)).status_code == status

    assert len(statements.executed) - seen == proxy.executed - executed
    assert {sql.split()[0] for sql in statements.executed} == {
        "BEGIN", "COMMIT", "ROLLBACK", "SELECT", "INSERT", "UPDATE", "DELETE",
    }  # fmt: skip


async def test_second_watcher_sees_the_same_statements(
    app: FastAPI, client: AsyncClient, statements: Statements
) -> None:
    second = Statements()
    watch_statements(app.state.database, second)

    await client.get("/posts?offset=1")  # an empty page, so that a statement counts the list

    assert second.executed == statements.executed
    assert len(second.executed) == 2


@pytest.mark.parametrize(
    ("at", "sqlstate", "path", "problem"),
    [
        ("FROM posts", "57014", "/posts/1", "statement-timeout"),
        ("FROM users", "42P01", "/users/1", "internal-error"),
        (2, None, "/posts?offset=1", "database-unavailable"),
    ],
)
async def test_read_whose_statement_fails_is_a_problem(
    client: AsyncClient, statements: Statements, at: str | int, sqlstate: str | None, path: str, problem: str
) -> None:
    statements.fail(at, sqlstate=sqlstate)

    assert (await client.get(path)).json()["type"] == f"/problems/{problem}"

    statements.require_failures()
    assert (await client.get("/posts")).status_code == 200


@pytest.mark.parametrize(
    ("at", "sqlstate", "problem"),
    [
        ("UPDATE posts", "40001", "transaction-conflict"),
        ("UPDATE posts", None, "database-unavailable"),
        ("COMMIT", "40P01", "transaction-conflict"),
    ],
)
async def test_transaction_whose_statement_fails_changes_nothing(
    sign_up: SignUp, statements: Statements, at: str, sqlstate: str | None, problem: str
) -> None:
    ann = await sign_up("Ann")
    created = await ann("POST", "/posts", json={"title": "Title", "content": "Content"})
    statements.fail(at, sqlstate=sqlstate)

    failed = await ann("PATCH", created.headers["location"], json={"title": "Changed"})

    assert (failed.status_code, failed.json()["type"]) == (503, f"/problems/{problem}")
    assert (await ann("GET", created.headers["location"])).json() == created.json()
