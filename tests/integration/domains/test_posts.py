"""Posts, through the API, on a real PostgreSQL."""

import pytest
from httpx import AsyncClient
from sqlalchemy import URL
from sqlalchemy.dialects import postgresql

from app.domains.posts import repository as posts_repository
from app.domains.users import repository as users_repository
from tests.support.postgres import connect


@pytest.fixture
def posts(database_url: URL) -> None:
    """Two authors, 25 posts: Ann's odd ones, Bob's even ones, three to a second; and Cy, who writes nothing."""
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
async def test_a_post_comes_with_its_author(client: AsyncClient) -> None:
    answer = await client.get("/posts/7")

    assert answer.status_code == 200
    assert answer.json() == answer.json() | {
        "id": 7,
        "title": "Post 7",
        "content": "Content",
        "author": {"id": 1, "name": "Ann"},
        "created_at": "2026-01-01T00:00:02Z",
    }


async def test_a_post_that_does_not_exist_is_404(client: AsyncClient) -> None:
    answer = await client.get("/posts/1")

    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


@pytest.mark.usefixtures("posts")
async def test_the_list_is_newest_first_and_counts(client: AsyncClient) -> None:
    page = (await client.get("/posts")).json()

    assert [post["id"] for post in page["items"]] == list(range(25, 5, -1)), "the id settles ties"
    del page["items"]
    assert page == {"total": 25, "offset": 0, "limit": 20, "has_more": True, "next_cursor": None}


@pytest.mark.usefixtures("posts")
async def test_pages_by_offset_cover_every_post_once(client: AsyncClient) -> None:
    seen = []
    for offset in range(0, 25, 10):
        page = (await client.get("/posts", params={"offset": offset, "limit": 10})).json()
        seen += [post["id"] for post in page["items"]]
        assert page["has_more"] == (offset < 20)

    assert seen == list(range(25, 0, -1))


@pytest.mark.usefixtures("posts")
async def test_a_page_beyond_the_end_is_empty(client: AsyncClient) -> None:
    page = (await client.get("/posts", params={"offset": 2**63 - 1})).json()

    assert (page["items"], page["total"], page["has_more"]) == ([], 25, False)


@pytest.mark.usefixtures("posts")
async def test_the_posts_of_a_user(client: AsyncClient) -> None:
    page = (await client.get("/users/2/posts", params={"limit": 5})).json()

    assert [post["id"] for post in page["items"]] == [24, 22, 20, 18, 16]
    assert {post["author"]["name"] for post in page["items"]} == {"Bob"}
    assert (page["total"], page["has_more"]) == (12, True)


@pytest.mark.usefixtures("posts")
async def test_a_user_who_has_not_written_has_an_empty_page_and_an_unknown_one_is_404(client: AsyncClient) -> None:
    assert (await client.get("/users/3/posts")).json()["total"] == 0
    assert (await client.get("/users/4/posts")).status_code == 404


@pytest.mark.usefixtures("posts")
async def test_the_lists_are_read_off_their_indexes(database_url: URL) -> None:
    """The planner may choose what it likes for 25 rows; what counts is that no order needs a sort."""
    statements = [
        (listing._LIST.first(sort, frozenset(filters)), {"limit": 20, "author_id": 1, "is_active": True})
        for listing, filters in ((posts_repository, ()), (users_repository, ()))
        for sort in [f"{sign}{name}" for name in listing._LIST._sorts for sign in ("", "-")]
    ]
    statements.append(
        (posts_repository._LIST.first("-created_at", frozenset({"author_id"})), {"limit": 20, "author_id": 1})
    )
    with connect(database_url) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off")
        connection.execute("SET enable_mergejoin = off")
        for statement, parameters in statements:
            known = {name: parameters[name] for name in statement.compile().params}
            dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
            query = statement.params(**known).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
            plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {query}"))
            assert "Sort" not in plan, f"{query}\n{plan}"
            assert "Index" in plan


async def test_deleting_a_user_in_the_database_deletes_the_posts(
    posts: None, client: AsyncClient, database_url: URL
) -> None:
    with connect(database_url) as connection:
        connection.execute("DELETE FROM users WHERE id = 1")

    assert (await client.get("/posts")).json()["total"] == 12
