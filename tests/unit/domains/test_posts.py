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
async def test_a_list_of_posts_has_their_authors(client: AsyncClient) -> None:
    page = (await client.get("/posts", params={"limit": 2})).json()

    assert [post["author"]["name"] for post in page["items"]] == ["Ann", "Ann"]
    assert (page["total"], page["has_more"]) == (4, True)


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize(
    ("q", "titles"),
    [("PLAIN", ["Plain", "plainer"]), ("0%", ["100% sure"]), ("_", ["Snake_case"]), ("%%", []), ("\\", [])],
)
async def test_search_knows_no_case_and_no_wildcards_on_sqlite_too(
    client: AsyncClient, q: str, titles: list[str]
) -> None:
    page = (await client.get("/posts", params={"q": q, "sort": "id"})).json()

    assert [post["title"] for post in page["items"]] == titles


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize("sort", ["created_at", "-created_at", "title", "-title", "id", "-id"])
async def test_pages_by_cursor_are_the_list_on_sqlite_too(client: AsyncClient, sort: str) -> None:
    whole = (await client.get("/posts", params={"sort": sort})).json()["items"]
    walked: list[object] = []
    cursor: str | None = ""
    while cursor is not None and len(walked) <= len(whole):
        page = (await client.get("/posts", params={"sort": sort, "limit": 1, "cursor": cursor})).json()
        walked += page["items"]
        cursor = page["next_cursor"]

    assert walked == whole
    assert len(whole) == 4


async def test_writing_changing_and_deleting_a_post(client: AsyncClient) -> None:
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
