"""Every statement that reaches the server is seen, whichever path and driver sends it."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import text, update

from app.development import warnings
from app.development.statements import watch_statements
from app.main import create_app
from app.models import User
from app.settings import Settings
from app.web.deps import StatementDb, WriteDb
from tests.integration.conftest import SECRET_KEY
from tests.support.fixtures import SignUp, Statements
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def app(proxy: Proxy) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY, db_pool_pre_ping=False))
    async with app.router.lifespan_context(app):
        yield app


async def test_statements_seen_are_those_that_the_server_gets(
    app: FastAPI, proxy: Proxy, sign_up: SignUp, statements: Statements
) -> None:
    """Keyed reads, lists, writes of one statement, transactions, and a transaction that is rolled back."""

    @app.post("/renamed")
    async def rename(db: StatementDb) -> None:
        await db.returned(update(User).values(name="Renamed").returning(User.name))

    admin = await sign_up("Admin", is_admin=True)
    executed, seen = proxy.executed, len(statements.executed)

    ann = await sign_up("Ann")
    path = f"/users/{ann.id}"
    known = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}
    assert (await ann("POST", "/users", json=known)).status_code == 409
    for method, target, body, status in (
        ("POST", "/renamed", None, 200),
        ("GET", "/users", None, 200),
        ("GET", path, None, 200),
        ("PATCH", path, {"name": "Changed"}, 200),
        ("DELETE", path, None, 204),
    ):
        assert (await admin(method, target, json=body)).status_code == status

    assert len(statements.executed) - seen == proxy.executed - executed
    assert {sql.split()[0] for sql in statements.executed} == {
        "BEGIN", "COMMIT", "ROLLBACK", "SELECT", "INSERT", "UPDATE", "DELETE",
    }  # fmt: skip


async def test_second_watcher_sees_the_same_statements(
    app: FastAPI, client: AsyncClient, statements: Statements
) -> None:
    second = Statements()
    watch_statements(app.state.database, second)

    for number in (1, 2):
        await client.get(f"/users/{number}")

    assert second.executed == statements.executed
    assert len(second.executed) == 2


@pytest.mark.parametrize(
    ("at", "sqlstate", "path", "problem"),
    [
        ("FROM users", "57014", "/users/1", "statement-timeout"),
        ("FROM users", "42P01", "/users/1", "internal-error"),
        (1, None, "/users/1", "database-unavailable"),
    ],
)
async def test_read_whose_statement_fails_is_a_problem(
    client: AsyncClient, statements: Statements, at: str | int, sqlstate: str | None, path: str, problem: str
) -> None:
    statements.fail(at, sqlstate=sqlstate)

    assert (await client.get(path)).json()["type"] == f"/problems/{problem}"

    statements.require_failures()
    assert (await client.get("/users/1")).status_code == 404


@pytest.mark.parametrize(
    ("at", "sqlstate", "problem"),
    [
        ("UPDATE users", "40001", "transaction-conflict"),
        ("UPDATE users", None, "database-unavailable"),
        ("COMMIT", "40P01", "transaction-conflict"),
    ],
)
async def test_transaction_whose_statement_fails_changes_nothing(
    sign_up: SignUp, statements: Statements, at: str, sqlstate: str | None, problem: str
) -> None:
    ann = await sign_up("Ann")
    before = (await ann("GET", "/users/me")).json()
    statements.fail(at, sqlstate=sqlstate)

    failed = await ann("PATCH", f"/users/{ann.id}", json={"name": "Changed"})

    assert (failed.status_code, failed.json()["type"]) == (503, f"/problems/{problem}")
    assert (await ann("GET", "/users/me")).json() == before


async def test_slow_statement_is_logged_with_its_plan(
    app: FastAPI, sign_up: SignUp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read by key, and statements with and without parameters of a transaction."""
    ann = await sign_up("Ann")
    monkeypatch.setattr(warnings, "SLOW_SECONDS", 1e-9)
    warnings.warn_of_mistakes(app.state.database, log_sql=False)
    caplog.set_level("WARNING", "headroom.dev")

    @app.get("/now")
    async def now(db: WriteDb) -> None:
        await db.execute(text("SELECT now()"))

    for method, path, body in (("GET", f"/users/{ann.id}", None), ("PATCH", f"/users/{ann.id}", {"name": "Anna"})):
        assert (await ann(method, path, json=body)).status_code == 200
    assert (await ann("GET", "/now")).status_code == 200

    def plans() -> list[str]:
        return [each.getMessage() for each in caplog.records if "slow statement" in each.getMessage()]

    async def are_logged() -> bool:
        return any("SELECT now()" in plan for plan in plans()) and len(plans()) >= 5

    await eventually_async(are_logged, within=30)
    assert {operation for operation in ("SELECT", "UPDATE") for plan in plans() if f"ms | {operation}" in plan} == {
        "SELECT", "UPDATE"
    }  # fmt: skip
    assert [plan for plan in plans() if "(cost=" not in plan] == []
