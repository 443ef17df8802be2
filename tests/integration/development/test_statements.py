"""Every statement that reaches the server is seen, whichever path and driver sends it."""

from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import select, text, update

from app.development import warnings
from app.development.statements import watch_statements
from app.main import create_app
from app.settings import Settings
from app.web.deps import ReadDb, StatementDb, WriteDb
from tests.integration.conftest import SECRET_KEY
from tests.support import contacts
from tests.support.contacts import Contact
from tests.support.fixtures import Statements
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

ANN = {"email": "ann@example.com", "name": "Ann"}
BOB = {"email": "bob@example.com", "name": "Bob"}


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def app(proxy: Proxy) -> AsyncIterator[FastAPI]:
    app = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY, db_pool_pre_ping=False))
    app.include_router(contacts.router)
    async with app.router.lifespan_context(app):
        yield app


async def test_statements_seen_are_those_that_the_server_gets(
    app: FastAPI, client: AsyncClient, proxy: Proxy, statements: Statements
) -> None:
    """Keyed reads, lists, writes of one statement, transactions, and a transaction that is rolled back."""

    @app.post("/renamed")
    async def rename(db: StatementDb) -> None:
        await db.returned(update(Contact).values(name="Renamed").returning(Contact.name))

    @app.get("/names")
    async def names(db: ReadDb) -> list[str]:
        return [row["name"] for row in await db.all(select(Contact.name))]

    assert (await client.post("/test-contacts", json=ANN)).status_code == 201
    executed, seen = proxy.executed, len(statements.executed)

    path = (await client.post("/test-contacts", json=BOB)).headers["location"]
    for method, target, body, status in (
        ("POST", "/test-contacts", BOB, 409),
        ("POST", "/renamed", None, 200),
        ("GET", "/names", None, 200),
        ("GET", path, None, 200),
        ("PUT", path, BOB, 204),
        ("DELETE", path, None, 204),
    ):
        assert (await client.request(method, target, json=body)).status_code == status

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
        await client.get(f"/test-contacts/{number}")

    assert second.executed == statements.executed
    assert len(second.executed) == 2


@pytest.mark.parametrize(
    ("at", "sqlstate", "path", "problem"),
    [
        ("FROM test_contacts", "57014", "/test-contacts/1", "statement-timeout"),
        ("FROM test_contacts", "42P01", "/test-contacts/1", "internal-error"),
        (1, None, "/test-contacts/1", "database-unavailable"),
    ],
)
async def test_read_whose_statement_fails_is_a_problem(
    client: AsyncClient, statements: Statements, at: str | int, sqlstate: str | None, path: str, problem: str
) -> None:
    statements.fail(at, sqlstate=sqlstate)

    assert (await client.get(path)).json()["type"] == f"/problems/{problem}"

    statements.require_failures()
    assert (await client.get("/test-contacts/1")).status_code == 404


@pytest.mark.parametrize(
    ("at", "sqlstate", "problem"),
    [
        ("UPDATE test_contacts", "40001", "transaction-conflict"),
        ("UPDATE test_contacts", None, "database-unavailable"),
        ("COMMIT", "40P01", "transaction-conflict"),
    ],
)
async def test_transaction_whose_statement_fails_changes_nothing(
    client: AsyncClient, statements: Statements, at: str, sqlstate: str | None, problem: str
) -> None:
    location = (await client.post("/test-contacts", json=ANN)).headers["location"]
    statements.fail(at, sqlstate=sqlstate)

    failed = await client.put(location, json=BOB)

    assert (failed.status_code, failed.json()["type"]) == (503, f"/problems/{problem}")
    assert (await client.get(location)).json() == ANN


async def test_slow_statement_is_logged_with_its_plan(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read by key, and statements with and without parameters of a transaction."""
    location = (await client.post("/test-contacts", json=ANN)).headers["location"]
    monkeypatch.setattr(warnings, "SLOW_SECONDS", 1e-9)
    warnings.warn_of_mistakes(app.state.database, log_sql=False)
    caplog.set_level("WARNING", "headroom.dev")

    @app.get("/now")
    async def now(db: WriteDb) -> None:
        await db.execute(text("SELECT now()"))

    assert (await client.get(location)).status_code == 200
    assert (await client.put(location, json=BOB)).status_code == 204
    assert (await client.get("/now")).status_code == 200

    def plans() -> list[str]:
        return [each.getMessage() for each in caplog.records if "slow statement" in each.getMessage()]

    async def are_logged() -> bool:
        return any("SELECT now()" in plan for plan in plans()) and len(plans()) >= 4

    await eventually_async(are_logged, within=60)
    assert {operation for operation in ("SELECT", "UPDATE") for plan in plans() if f"ms | {operation}" in plan} == {
        "SELECT", "UPDATE"
    }  # fmt: skip
    assert [plan for plan in plans() if "(cost=" not in plan] == []
