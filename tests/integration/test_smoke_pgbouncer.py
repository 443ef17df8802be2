"""Every operation on psycopg through PgBouncer. The other tests of the API use asyncpg without PgBouncer."""

import asyncio

import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL

from app.database.pool import pool_state
from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support.operations import OPERATIONS, path_of
from tests.support.people import Person, person
from tests.support.postgres import connect
from tests.support.waiting import eventually_async

POST = {"title": "Title", "content": "Content"}


@pytest.fixture
def database_setup() -> str:
    return "psycopg-pgbouncer"


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_behind_pgbouncer_succeeds(client: AsyncClient, database_url: URL, operation: str) -> None:
    owner = await person(client, "Owner", database_url)
    admin = await person(client, "Admin", database_url, is_admin=True)
    method = operation.partition(" ")[0]
    path = await path_of(operation, owner)

    response = await admin(method, path, **OPERATIONS[operation].request)

    assert response.status_code == OPERATIONS[operation].statuses[-1], response.text
    assert response.is_success


async def test_users_and_posts_behind_pgbouncer_are_as_written(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    admin = await person(client, "Admin", database_url, is_admin=True)

    assert (await ann("GET", "/users/me")).json()["email"] == "ann@example.com"
    assert (await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})).json()["name"] == "Anna"
    assert (await client.get(f"/users/{ann.id}")).json()["name"] == "Anna"
    assert [user["name"] for user in (await admin("GET", "/users?q=ann")).json()["items"]] == ["Anna"]

    created = await ann("POST", "/posts", json=POST)
    assert created.status_code == 201
    path = created.headers["location"]
    assert (await client.get(path)).json() == created.json()
    assert created.json()["author"] == {"id": ann.id, "name": "Anna"}
    assert (await ann("PATCH", path, json={"title": "Changed"})).json()["title"] == "Changed"
    assert [post["title"] for post in (await client.get("/posts")).json()["items"]] == ["Changed"]
    assert (await client.get(f"/users/{ann.id}/posts")).json()["total"] == 1

    assert (await ann("DELETE", path)).status_code == 204
    assert (await client.get(path)).status_code == 404
    assert (await ann("DELETE", f"/users/{ann.id}")).status_code == 204
    assert (await ann("GET", "/users/me")).status_code == 401


@pytest.fixture
async def ann(client: AsyncClient, database_url: URL) -> Person:
    """Sign up and in a user with five posts: title 0 to title 4."""
    ann = await person(client, "Ann", database_url)
    for number in range(5):
        await ann("POST", "/posts", json={"title": f"Title {number}", "content": "Content"})
    return ann


@pytest.mark.parametrize("sort", ["title", "-title", "created_at", "-id"])
@pytest.mark.usefixtures("ann")
async def test_list_by_offset_and_by_cursor_returns_the_same_posts(client: AsyncClient, sort: str) -> None:
    by_offset, by_cursor, cursor = [], [], ""
    for offset in range(0, 5, 2):
        page = (await client.get(f"/posts?q=title&sort={sort}&offset={offset}&limit=2")).json()
        by_offset += [post["title"] for post in page["items"]]
    while cursor is not None:
        page = (await client.get(f"/posts?q=title&sort={sort}&limit=2&cursor={cursor}")).json()
        by_cursor += [post["title"] for post in page["items"]]
        cursor = page["next_cursor"]

    titles = [f"Title {number}" for number in range(5)]
    assert by_offset == by_cursor == (titles[::-1] if sort.startswith("-") else titles)


@pytest.mark.usefixtures("ann")
async def test_search_with_a_wildcard_matches_it_literally(client: AsyncClient) -> None:
    assert (await client.get("/posts?q=title 3")).json()["total"] == 1
    assert (await client.get("/posts?q=%25")).json()["total"] == 0


async def test_write_is_committed_when_its_response_arrives(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    created = await ann("POST", "/posts", json=POST)

    with connect(database_url) as connection:
        rows = connection.execute("SELECT id, title FROM posts").fetchall()
    assert rows == [(created.json()["id"], "Title")]


async def test_sign_up_with_a_known_address_returns_409(client: AsyncClient, database_url: URL) -> None:
    await person(client, "Ann", database_url)
    again = await client.post("/users", json={"email": "ANN@example.com", "name": "Ann", "password": "correct horse"})

    assert (again.status_code, again.json()["type"]) == (409, "/problems/email-taken")


@pytest.mark.parametrize("path", [f"/posts/{2**63}", "/posts?limit=0", "/posts?cursor=x", "/posts?q=%00"])
async def test_bad_input_returns_422(client: AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert (response.status_code, response.json()["type"]) == (422, "/problems/validation-error")


async def test_exhausted_pool_returns_503_with_retry_after(database_url: URL) -> None:
    pool = {"db_pool_size": 3, "db_max_overflow": 0, "db_pool_timeout": 1}
    app = create_app(Settings.model_validate({"database_url": database_url, "secret_key": SECRET_KEY, **pool}))
    refused = asyncio.Event()

    async def hold() -> None:
        async with app.state.database.engine.connect():
            await refused.wait()

    async def exhausted() -> bool:
        state = pool_state(app.state.database.engine)
        return state is not None and state.used == 3

    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        holders = [asyncio.create_task(hold()) for _ in range(3)]  # the pool allows one connection per task
        try:
            await eventually_async(exhausted, within=10, jobs=holders)
            responses = await asyncio.gather(*(client.get("/posts/1") for _ in range(5)))
        finally:
            refused.set()
            await asyncio.gather(*holders)
        assert (await client.get("/posts/1")).status_code == 404

    assert {response.status_code for response in responses} == {503}
    assert {response.json()["type"] for response in responses} == {"/problems/pool-exhausted"}
    assert {response.headers["retry-after"] for response in responses} == {"1"}
