"""Posts, through the API, on SQLite."""

import pytest
from httpx import AsyncClient

from app.database import Database
from app.models import Post, User


@pytest.fixture
async def posts(database: Database) -> None:
    async with database.write() as session:
        ann = User(email="ann@example.com", name="Ann", password_hash="x")
        titles = ("100% sure", "Snake_case", "Plain", "plainer")
        session.add_all([Post(author=ann, title=title, content="") for title in titles])


@pytest.mark.usefixtures("posts")
async def test_list_contains_the_authors(client: AsyncClient) -> None:
    page = (await client.get("/posts", params={"limit": 2})).json()

    assert [post["author"]["name"] for post in page["items"]] == ["Ann", "Ann"]
    assert (page["total"], page["has_more"]) == (4, True)


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize(
    ("q", "titles"),
    [("PLAIN", ["Plain", "plainer"]), ("0%", ["100% sure"]), ("_", ["Snake_case"]), ("%%", []), ("\\", [])],
)
async def test_search_ignores_case_and_takes_wildcards_literally(
    client: AsyncClient, q: str, titles: list[str]
) -> None:
    page = (await client.get("/posts", params={"q": q, "sort": "id"})).json()

    assert [post["title"] for post in page["items"]] == titles


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize("sort", ["created_at", "-created_at", "title", "-title", "id", "-id"])
async def test_pages_by_cursor_add_up_to_the_list(client: AsyncClient, sort: str) -> None:
    complete = (await client.get("/posts", params={"sort": sort})).json()["items"]
    walked: list[object] = []
    cursor: str | None = ""
    while cursor is not None and len(walked) <= len(complete):
        page = (await client.get("/posts", params={"sort": sort, "limit": 1, "cursor": cursor})).json()
        walked += page["items"]
        cursor = page["next_cursor"]

    assert walked == complete
    assert len(complete) == 4


async def test_post_can_be_created_changed_and_deleted(client: AsyncClient) -> None:
    ann = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}
    await client.post("/users", json=ann)
    token = await client.post("/auth/token", data={"username": "ANN@example.com", "password": "correct horse"})
    client.headers["authorization"] = f"Bearer {token.json()['access_token']}"

    created = await client.post("/posts", json={"title": "Title", "content": "Content"})
    location = created.headers["location"]
    changed = await client.patch(location, json={"title": "Other"})
    deleted = await client.delete(location)

    assert (created.status_code, changed.json()["title"], deleted.status_code) == (201, "Other", 204)
    assert (await client.get(location)).status_code == 404
