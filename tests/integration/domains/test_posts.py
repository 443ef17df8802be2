"""Posts, through the API, on a real PostgreSQL."""

import base64
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL, text
from sqlalchemy.dialects import postgresql

from app.database import Database
from app.domains.posts import repository as posts_repository
from app.domains.users import repository as users_repository
from app.list_limits import ListLimits
from app.models import Post, User
from tests.support.factories import Factory
from tests.support.people import person
from tests.support.postgres import connect


@pytest.fixture
def posts(database_url: URL) -> None:
    """Insert 25 posts, three per second: the odd ones by Ann (1), the even ones by Bob (2), none by Cy (3)."""
    with connect(database_url) as connection:
        connection.execute(
            "INSERT INTO users (id, email, name, password_hash) OVERRIDING SYSTEM VALUE"
            " VALUES (1, 'ann@example.com', 'Ann', ''), (2, 'bob@example.com', 'Bob', ''),"
            " (3, 'cy@example.com', 'Cy', '')"
        )
        connection.execute(
            "INSERT INTO posts (id, author_id, title, content, created_at) OVERRIDING SYSTEM VALUE"
            " SELECT n, 2 - n % 2, 'Post ' || n, 'Content', timestamptz '2026-01-01' + (n / 3) * interval '1 s'"
            " FROM generate_series(1, 25) n"
        )


@pytest.mark.usefixtures("posts")
async def test_post_contains_its_author(client: AsyncClient) -> None:
    answer = await client.get("/posts/7")

    assert answer.status_code == 200
    assert answer.json() == answer.json() | {
        "id": 7,
        "title": "Post 7",
        "content": "Content",
        "author": {"id": 1, "name": "Ann"},
        "created_at": "2026-01-01T00:00:02Z",
    }


async def test_unknown_post_is_404(client: AsyncClient) -> None:
    answer = await client.get("/posts/1")

    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


@pytest.mark.usefixtures("posts")
async def test_list_is_newest_first_with_a_total(client: AsyncClient) -> None:
    page = (await client.get("/posts")).json()

    assert [post["id"] for post in page["items"]] == list(range(25, 5, -1)), "equal times are ordered by id"
    del page["items"]
    assert page == {"total": 25, "offset": 0, "limit": 20, "has_more": True, "next_cursor": None}


@pytest.mark.usefixtures("posts")
async def test_pages_by_offset_contain_every_post_once(client: AsyncClient) -> None:
    seen = []
    for offset in range(0, 25, 10):
        page = (await client.get("/posts", params={"offset": offset, "limit": 10})).json()
        seen += [post["id"] for post in page["items"]]
        assert page["has_more"] == (offset < 20)

    assert seen == list(range(25, 0, -1))


@pytest.mark.usefixtures("posts")
async def test_page_beyond_the_end_is_empty(client: AsyncClient) -> None:
    page = (await client.get("/posts", params={"offset": 10_000})).json()

    assert (page["items"], page["total"], page["has_more"]) == ([], 25, False)


@pytest.mark.usefixtures("posts")
async def test_list_of_a_user_contains_only_their_posts(client: AsyncClient) -> None:
    page = (await client.get("/users/2/posts", params={"limit": 5})).json()

    assert [post["id"] for post in page["items"]] == [24, 22, 20, 18, 16]
    assert {post["author"]["name"] for post in page["items"]} == {"Bob"}
    assert (page["total"], page["has_more"]) == (12, True)


@pytest.mark.usefixtures("posts")
async def test_list_of_a_user_is_empty_without_posts_and_404_without_user(client: AsyncClient) -> None:
    assert (await client.get("/users/3/posts")).json()["total"] == 0
    assert (await client.get("/users/4/posts")).status_code == 404


@pytest.mark.usefixtures("posts")
async def test_list_orders_are_read_from_indexes(database_url: URL) -> None:
    """With 25 rows the planner prefers other plans, so they are disabled: no order may need a sort."""
    statements = [
        (repository._LIST.first_page(sort, frozenset()), {"limit": 20})
        for repository in (posts_repository, users_repository)
        for sort in repository._LIST.sorts
    ]
    statements.append(
        (posts_repository._LIST.first_page("-created_at", frozenset({"author_id"})), {"limit": 20, "author_id": 1})
    )
    with connect(database_url) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off")
        connection.execute("SET enable_mergejoin = off")
        for statement, parameters in statements:
            dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
            query = statement.params(**parameters).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {query}"))
            assert "Sort" not in plan, f"{query}\n{plan}"
            assert "Index" in plan


@pytest.mark.parametrize("database_setup", ["asyncpg", "psycopg"])
async def test_common_page_uses_a_generic_plan(app: FastAPI, client: AsyncClient, database_url: URL) -> None:
    with connect(database_url) as connection:
        connection.execute(
            "WITH author AS (INSERT INTO users (email, name, password_hash) VALUES ('ann', 'Ann', '') RETURNING id)"
            " INSERT INTO posts (author_id, title, content) SELECT id, '', '' FROM author, generate_series(1, 20000)"
        )
        connection.execute("ANALYZE users, posts")
    cursor = ""
    for _ in range(30):  # psycopg prepares at the sixth; the server makes five custom plans first
        page = (await client.get("/posts", params={"cursor": cursor, "sort": "-id"})).json()
        cursor = page["next_cursor"]

    async with app.state.database.engine.connect() as same:  # the pool is last in, first out
        plans = await same.execute(
            text(
                "SELECT custom_plans, generic_plans FROM pg_prepared_statements"
                " WHERE statement LIKE 'SELECT posts.%posts.id <%'"
            )
        )
        [(custom, generic)] = plans.all()
    assert (custom, generic > 15) == (5, True), (custom, generic)


async def test_user_deleted_in_the_database_takes_their_posts(
    posts: None, client: AsyncClient, database_url: URL
) -> None:
    with connect(database_url) as connection:
        connection.execute("DELETE FROM users WHERE id = 1")

    assert (await client.get("/posts")).json()["total"] == 12


async def test_created_post_belongs_to_the_signed_in_user(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)

    created = await ann("POST", "/posts", json={"title": " Title ", "content": "Content"})

    assert created.status_code == 201
    body = created.json()
    assert created.headers["location"] == f"/posts/{body['id']}"
    assert (body["title"], body["author"]) == ("Title", {"id": ann.id, "name": "Ann"})
    assert (await client.get(created.headers["location"])).json() == body


async def test_created_post_is_answered_as_stored(client: AsyncClient, database_url: URL) -> None:
    """A trigger changes the row, so that request and row differ."""
    ann = await person(client, "Ann", database_url)
    with connect(database_url) as connection:
        connection.execute(
            "CREATE FUNCTION change_post() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.title := upper(NEW.title); NEW.content := upper(NEW.content); RETURN NEW; END $$;"
            "CREATE TRIGGER change_post BEFORE INSERT ON posts FOR EACH ROW EXECUTE FUNCTION change_post()"
        )

    created = await ann("POST", "/posts", json={"title": "Title", "content": "Content"})

    assert (created.json()["title"], created.json()["content"]) == ("TITLE", "CONTENT")
    assert (await client.get(created.headers["location"])).json() == created.json()


async def test_change_is_partial_and_advances_updated_at(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    post = (await ann("POST", "/posts", json={"title": "Title", "content": "Content"})).json()

    changed = await ann("PATCH", f"/posts/{post['id']}", json={"title": "Other"})

    assert changed.status_code == 200
    assert changed.json() == post | {"title": "Other", "updated_at": changed.json()["updated_at"]}
    assert changed.json()["updated_at"] > post["updated_at"]
    assert (await client.get(f"/posts/{post['id']}")).json() == changed.json()
    assert (await ann("PATCH", f"/posts/{post['id']}", json={})).json() == changed.json(), "an empty change"


@pytest.mark.parametrize("patch", [{"title": None}, {"content": None}, {"title": " "}, {"author_id": 2}, {"id": 2}])
async def test_invalid_change_is_422_and_changes_nothing(
    client: AsyncClient, database_url: URL, patch: dict[str, object]
) -> None:
    ann = await person(client, "Ann", database_url)
    post = (await ann("POST", "/posts", json={"title": "Title", "content": "Content"})).json()

    assert (await ann("PATCH", f"/posts/{post['id']}", json=patch)).status_code == 422
    assert (await client.get(f"/posts/{post['id']}")).json() == post


async def test_user_deleted_through_the_api_takes_their_posts(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    post = (await ann("POST", "/posts", json={"title": "Title", "content": "Content"})).json()

    assert (await ann("DELETE", f"/users/{ann.id}")).status_code == 204

    assert (await client.get(f"/posts/{post['id']}")).status_code == 404
    assert (await client.get("/posts")).json()["total"] == 0


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("sort=id&limit=3", [1, 2, 3]),
        ("sort=-id&limit=3", [25, 24, 23]),
        ("sort=title&limit=3", [1, 10, 11]),
        ("sort=-title&limit=3", [9, 8, 7]),
        ("author_id=1&sort=id&limit=3", [1, 3, 5]),
        ("q=pOsT 2&sort=id&limit=3", [2, 20, 21]),
        ("q=post 2&author_id=1&sort=id", [21, 23, 25]),
        ("q=nothing", []),
        ("q=%25", []),
        ("q=_", []),
        ("q=\\", []),
        ("q=&limit=1", [25]),
        ("author_id=99", []),
    ],
)
async def test_list_can_be_filtered_sorted_and_searched(client: AsyncClient, query: str, ids: list[int]) -> None:
    by_offset = await client.get(f"/posts?{query}")
    by_cursor = await client.get(f"/posts?{query}&cursor=")

    assert [post["id"] for post in by_offset.json()["items"]] == ids
    assert [post["id"] for post in by_cursor.json()["items"]] == ids
    assert by_offset.json()["total"] >= len(ids)
    assert (by_cursor.json()["total"], by_cursor.json()["offset"]) == (None, None)


async def test_search_takes_percent_underscore_and_backslash_literally(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    for title in ("100% sure", "snake_case", "C:\\temp", "plain"):
        await ann("POST", "/posts", json={"title": title, "content": "."})

    for q, title in (("0%", "100% sure"), ("e_c", "snake_case"), ("\\t", "C:\\temp")):
        items = (await client.get("/posts", params={"q": q})).json()["items"]
        assert [post["title"] for post in items] == [title]


@pytest.mark.usefixtures("posts")
@pytest.mark.parametrize("path", ["/posts?", "/posts?author_id=1&", "/posts?q=post&", "/users/1/posts?"])
@pytest.mark.parametrize("sort", ["created_at", "-created_at", "title", "-title", "id", "-id"])
async def test_pages_by_cursor_add_up_to_the_list(client: AsyncClient, path: str, sort: str) -> None:
    complete = (await client.get(f"{path}sort={sort}&limit=100")).json()["items"]
    walked: list[object] = []
    cursor: str | None = ""
    while cursor is not None and len(walked) <= len(complete):
        page = (await client.get(f"{path}sort={sort}&limit=4&cursor={cursor}")).json()
        assert page["has_more"] == (page["next_cursor"] is not None)
        walked += page["items"]
        cursor = page["next_cursor"]

    assert walked == complete


@pytest.mark.usefixtures("posts")
async def test_forged_or_foreign_cursor_is_422(client: AsyncClient) -> None:
    cursor = (await client.get("/posts?limit=2&cursor=")).json()["next_cursor"]
    assert (await client.get(f"/posts?limit=3&cursor={cursor}")).status_code == 200, "the limit may change"

    changed = ("A" if cursor[20] != "A" else "B").join((cursor[:20], cursor[21:]))
    for forged in (
        changed,
        cursor[:-1],
        cursor + "A",
        "x",
        "é",
        "AAAA",
        "=" * 9,
        base64.urlsafe_b64encode(b"[]").decode(),
    ):
        answer = await client.get("/posts", params={"limit": 2, "cursor": forged})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/validation-error"), forged
    for foreign in (
        "/posts?sort=title",
        "/posts?sort=created_at",
        "/posts?author_id=1",
        "/posts?q=a",
        "/users/1/posts?",
    ):
        answer = await client.get(f"{foreign}&cursor={cursor}")
        assert answer.status_code == 422, foreign


@pytest.mark.parametrize(
    "query", ["sort=content", "sort=--id", "sort=", "author_id=0", "offset=0&cursor=", "q=" + "x" * 101, "q=%00"]
)
async def test_invalid_list_parameter_is_422(client: AsyncClient, query: str) -> None:
    assert (await client.get(f"/posts?{query}")).status_code == 422


@pytest.fixture
def short_lists(app: FastAPI) -> None:
    """Count ten rows at most, and skip twenty."""
    app.state.cursors.limits = ListLimits(max_offset=20, max_count=10)


@pytest.mark.usefixtures("posts", "short_lists")
@pytest.mark.parametrize(
    ("query", "total", "at_least"),
    [
        ("limit=2", None, 10),
        ("limit=2&offset=20", None, 22),  # more is known than was counted
        ("limit=5&offset=20", 25, None),  # the page shows the end
        ("limit=2&offset=20&author_id=99", 0, None),
        ("limit=2&q=post 1", None, 10),
        ("limit=2&q=post 2", 7, None),
        ("limit=2&total=bounded", None, 10),
        ("limit=2&total=none", None, None),
        ("limit=100&total=none", None, None),
    ],
)
async def test_total_is_counted_up_to_the_limit(
    client: AsyncClient, query: str, total: int | None, at_least: int | None
) -> None:
    page = (await client.get(f"/posts?{query}")).json()

    assert (page["total"], page.get("total_at_least")) == (total, at_least)


@pytest.mark.usefixtures("short_lists")
async def test_list_of_administrators_is_counted_to_the_end_on_demand(client: AsyncClient, database_url: URL) -> None:
    admin = await person(client, "Admin", database_url, is_admin=True)
    with connect(database_url) as connection:
        connection.execute(
            "INSERT INTO users (email, name, password_hash) SELECT 'u' || n, 'User', '' FROM generate_series(1, 24) n"
        )

    bounded = (await admin("GET", "/users?limit=2")).json()
    exact = (await admin("GET", "/users?limit=2&total=exact")).json()

    assert (bounded["total"], bounded["total_at_least"]) == (None, 10)
    assert exact["total"] == 25
    assert "total_at_least" not in exact
    assert (await client.get("/posts?total=exact")).status_code == 422, "anyone can read this list"


@pytest.mark.usefixtures("posts", "short_lists")
async def test_offset_beyond_the_limit_is_422_and_points_to_cursor(client: AsyncClient) -> None:
    assert (await client.get("/posts?offset=20")).status_code == 200

    refused = await client.get("/posts?offset=21")

    assert refused.status_code == 422
    assert refused.json()["detail"] == "query.offset: Must be at most 20: read the pages beyond it with `cursor`"
    assert refused.json()["errors"][0]["loc"] == ["query", "offset"]


@pytest.mark.usefixtures("posts", "short_lists")
@pytest.mark.parametrize("page", ["", "&cursor="])
@pytest.mark.parametrize("q", ["s", "os", "%", "t 2", "t_1", "日本"])
async def test_short_search_is_refused_in_a_long_list_only(client: AsyncClient, q: str, page: str) -> None:
    refused = await client.get(f"/posts?q={quote(q)}{page}")
    of_an_author = await client.get(f"/posts?author_id=99&q={quote(q)}{page}")

    assert refused.status_code == 422
    assert refused.json()["detail"] == (
        "q: a list of more than 10 items is searched only for text with three letters or digits in a row"
    )
    assert of_an_author.status_code == 200
    assert of_an_author.json()["items"] == []


async def test_post_of_the_factory_is_stored_with_its_author(make: Factory, database: Database) -> None:
    first, second = await make(Post, title="First"), await make(Post)

    assert (first.title, second.title) == ("First", "title 3")
    assert first.author_id != second.author_id
    async with database.write() as session:
        assert (await session.get_one(User, first.author_id)).email == "email2@example.com"


async def test_unknown_post_is_404_for_an_administrator(client: AsyncClient, database_url: URL) -> None:
    admin = await person(client, "Admin", database_url, is_admin=True)

    assert (await admin("DELETE", "/posts/999")).status_code == 404


async def test_token_of_a_deleted_user_creates_no_post(client: AsyncClient, database_url: URL) -> None:
    """The token alone is valid: the statement itself finds no author."""
    ann = await person(client, "Ann", database_url)
    with connect(database_url) as connection:
        connection.execute("DELETE FROM users")

    assert (await ann("POST", "/posts", json={"title": "a", "content": "b"})).status_code == 401


async def test_parameter_repeated_in_the_list_of_a_user_is_422(client: AsyncClient) -> None:
    assert (await client.get("/users/1/posts?limit=1&q=&limit=2")).status_code == 422
