"""Every operation on psycopg through PgBouncer. The other tests of the API use asyncpg without PgBouncer."""

import asyncio

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support import sample
from tests.support.callers import Caller
from tests.support.operations import OPERATIONS, path_of
from tests.support.people import person
from tests.support.postgres import connect
from tests.support.waiting import eventually_async


@pytest.fixture
def database_setup() -> str:
    return "psycopg-pgbouncer"


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_behind_pgbouncer_succeeds(client: AsyncClient, database_url: URL, operation: str) -> None:
    owner: Caller = await person(client, "Owner", database_url)
    caller: Caller = await person(client, "Admin", database_url, is_admin=True)
    method = operation.partition(" ")[0]
    path = await path_of(operation, owner)

    response = await caller(method, path, **OPERATIONS[operation].request)

    assert response.status_code == OPERATIONS[operation].statuses[-1], response.text
    assert response.is_success


async def test_users_behind_pgbouncer_are_as_written(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    admin = await person(client, "Admin", database_url, is_admin=True)

    assert (await ann("GET", "/users/me")).json()["email"] == "ann@example.com"
    assert (await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})).json()["name"] == "Anna"
    assert (await client.get(f"/users/{ann.id}")).json()["name"] == "Anna"
    assert [user["name"] for user in (await admin("GET", "/users?q=ann")).json()["items"]] == ["Anna"]

    assert (await ann("DELETE", f"/users/{ann.id}")).status_code == 204
    assert (await ann("GET", "/users/me")).status_code == 401


async def test_write_is_committed_when_its_response_arrives(client: AsyncClient, database_url: URL) -> None:
    created = await client.post(sample.PATH, json=sample.new("ann"))

    with connect(database_url) as connection:
        rows = connection.execute(f"SELECT id, name FROM {sample.TABLE}".encode()).fetchall()
    assert rows == [(created.json()["id"], "ann")]


async def test_write_of_a_known_key_returns_409(client: AsyncClient) -> None:
    answers = [await client.post(sample.PATH, json=sample.new("ann")) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [201, 409]


@pytest.mark.parametrize("path", [f"/{2**63}", "?limit=0", "?cursor=x", "?q=%00"])
async def test_bad_input_returns_422(client: AsyncClient, database_url: URL, path: str) -> None:
    caller: Caller = await person(client, "Admin", database_url, is_admin=True)

    response = await caller("GET", sample.PATH + path)

    assert (response.status_code, response.json()["type"]) == (422, "/problems/validation-error")


async def test_exhausted_pool_returns_503_with_retry_after(database_url: URL) -> None:
    pool = {"db_pool_size": 3, "db_max_overflow": 0, "db_pool_timeout": 60, "db_pool_max_waiters": 0}
    app = create_app(Settings.model_validate({"database_url": database_url, "secret_key": SECRET_KEY, **pool}))
    refused = asyncio.Event()
    held = []

    async def hold() -> None:
        async with app.state.database.engine.connect() as connection:
            held.append(connection)
            await refused.wait()

    async def exhausted() -> bool:
        return len(held) == 3  # a connection that is being opened counts as used, too

    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        holders = [asyncio.create_task(hold()) for _ in range(3)]  # the pool allows one connection per task
        try:
            await eventually_async(exhausted, within=60, jobs=holders)
            responses = await asyncio.gather(*(client.get(sample.READ) for _ in range(5)))
        finally:
            refused.set()
            await asyncio.gather(*holders)
        assert (await client.get(sample.READ)).status_code == 404

    assert {response.status_code for response in responses} == {503}
    assert {response.json()["type"] for response in responses} == {"/problems/pool-exhausted"}
    assert {response.headers["retry-after"] for response in responses} == {"1"}
