"""How many statements an endpoint sends: counted on the wire, and the same for one row as for many."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support.people import PASSWORD, Person, person
from tests.support.postgres import connect
from tests.support.proxy import Proxy

# What a request executes, BEGIN and COMMIT among it. Who is signed in is one of them.
STATEMENTS = {
    # Count the attempt, for the address and for the account; forgive it: two transactions.
    "POST /auth/token": 10,
    "POST /users": 3,
    "GET /users/{user}": 1,
    "GET /users/me": 2,
    "GET /users?limit=100": 3,
    "GET /users?limit=100&cursor=": 2,
    "GET /users/{user}/posts?limit=100": 3,
    "GET /posts?limit=100": 2,
    "GET /posts?limit=100&cursor=": 1,
    "GET /posts?limit=100&q=post&sort=title": 2,
    "GET /posts/{post}": 1,
    "POST /posts": 2,
    "PATCH /posts/{post}": 5,
    "PATCH /users/{user}": 5,
    "DELETE /posts/{post}": 5,
    "DELETE /users/{user}": 5,
}
BODIES: dict[str, dict[str, Any]] = {
    "POST /auth/token": {"data": {"username": "admin@example.com", "password": PASSWORD}},
    "POST /users": {"json": {"email": "new@example.com", "name": "New", "password": PASSWORD}},
    "POST /posts": {"json": {"title": "Title", "content": "Content"}},
    "PATCH /posts/{post}": {"json": {"title": "Changed"}},
    "PATCH /users/{user}": {"json": {"name": "Changed"}},
}


@pytest.fixture
def way() -> str:
    return "asyncpg"


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncClient]:
    app = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY, db_pool_pre_ping=False))
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


def test_every_operation_of_a_domain_is_counted(app: FastAPI) -> None:
    documented = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
        if operation["tags"] != ["health"]
    }

    assert {call.partition("?")[0].replace("}", "_id}") for call in STATEMENTS} == documented


@pytest.mark.parametrize("rows", [1, 100], ids=["one row", "many rows"])
@pytest.mark.parametrize(("call", "expected"), STATEMENTS.items(), ids=STATEMENTS.keys())
async def test_an_endpoint_sends_the_same_statements_however_many_rows_there_are(
    client: AsyncClient, proxy: Proxy, database_url: URL, call: str, expected: int, rows: int
) -> None:
    admin: Person = await person(client, "Admin", database_url, is_admin=True)
    with connect(database_url) as connection:
        connection.execute(
            "INSERT INTO users (email, name, password_hash) SELECT 'u' || n, 'User', '' FROM generate_series(1, %s) n",
            (rows,),
        )
        row = connection.execute("SELECT max(id) FROM users").fetchone()
        assert row is not None
        user = row[0]
        connection.execute(
            "INSERT INTO posts (author_id, title, content)"
            " SELECT CASE WHEN mod(n, 2) = 0 THEN %s ELSE id END, 'Post', ''"
            " FROM users, generate_series(1, %s) n LIMIT %s",
            (user, rows, rows),
        )
        row = connection.execute("SELECT max(id) FROM posts").fetchone()
        assert row is not None
        post = row[0]
    method, _, path = call.partition(" ")
    before = proxy.executed

    answer = await admin(method, path.format(user=user, post=post), **BODIES.get(call, {}))

    assert answer.status_code < 300, answer.text
    assert proxy.executed - before == expected


async def test_a_sign_in_that_fails_sends_the_same_statements_whatever_the_reason(
    client: AsyncClient, proxy: Proxy, database_url: URL
) -> None:
    await person(client, "Ann", database_url)
    await person(client, "Bob", database_url)
    with connect(database_url) as connection:
        connection.execute("UPDATE users SET is_active = false WHERE name = 'Bob'")
    sent: list[int] = []
    for name, password in (("ann", "wrong horse"), ("bob", PASSWORD), ("cy", PASSWORD)):
        before = proxy.executed
        answer = await client.post("/auth/token", data={"username": f"{name}@example.com", "password": password})
        assert answer.status_code == 401
        sent.append(proxy.executed - before)

    assert len(set(sent)) == 1
