"""Posts on psycopg through PgBouncer. test_posts.py uses asyncpg without PgBouncer."""

import pytest
from httpx import AsyncClient
from sqlalchemy import URL

from tests.support.people import Person, person

POST = {"title": "Title", "content": "Content"}


@pytest.fixture
def database_setup() -> str:
    return "psycopg-pgbouncer"


async def test_posts_behind_pgbouncer_are_as_written(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)

    created = await ann("POST", "/posts", json=POST)
    assert created.status_code == 201
    path = created.headers["location"]
    assert (await client.get(path)).json() == created.json()
    assert created.json()["author"] == {"id": ann.id, "name": "Ann"}
    assert (await ann("PATCH", path, json={"title": "Changed"})).json()["title"] == "Changed"
    assert [post["title"] for post in (await client.get("/posts")).json()["items"]] == ["Changed"]
    assert (await client.get(f"/users/{ann.id}/posts")).json()["total"] == 1

    assert (await ann("DELETE", path)).status_code == 204
    assert (await client.get(path)).status_code == 404


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
