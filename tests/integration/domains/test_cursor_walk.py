"""Pages by cursor under concurrent writes: a row that exists all the time is seen exactly once, in order."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from httpx import ASGITransport, AsyncClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL

from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support.postgres import connect

# Few values, so that most rows have equal sort keys.
seconds = st.integers(0, 4)
unicode = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200)
titles = st.sampled_from(["a", "B", "b", "ä", "_", "%", "\U0001f600" * 200]) | unicode
rows = st.lists(st.tuples(seconds, titles), min_size=0, max_size=40)
writes = st.lists(st.tuples(st.booleans(), seconds, titles, st.integers(0, 60)), max_size=6)


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "title", "-title", "id", "-id"])
def test_cursor_walk_sees_every_permanent_row_once_and_in_order(database_url: URL, sort: str) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(rows=rows, limit=st.integers(1, 7), writes=st.lists(writes, max_size=8))
    def walk(rows: Sequence[tuple[int, str]], limit: int, writes: list[Sequence[tuple[bool, int, str, int]]]) -> None:
        with connect(database_url) as connection:
            connection.execute("TRUNCATE users RESTART IDENTITY CASCADE")
            connection.execute("INSERT INTO users (email, name, password_hash) VALUES ('a', 'a', '')")
            for second, title in rows:
                insert(connection, second, title)
            seen = asyncio.run(read_all_pages(database_url, sort, limit, connection, list(writes)))
            order = sort.removeprefix("-") + (" DESC, id DESC" if sort.startswith("-") else ", id")
            remaining = [row[0] for row in connection.execute(f"SELECT id FROM posts ORDER BY {order}")]

        assert len(set(seen)) == len(seen), "a row was seen twice"
        permanent = [post for post in remaining if post <= len(rows)]
        assert [post for post in seen if post in permanent] == permanent
        assert [post for post in remaining if post in seen] == [post for post in seen if post in remaining], "order"

    walk()


async def read_all_pages(url: URL, sort: str, limit: int, connection: Any, writes: list[Any]) -> list[int]:
    """Return the ids on all pages. Apply one item of `writes` after each page."""
    app = create_app(Settings(database_url=url, secret_key=SECRET_KEY))
    seen: list[int] = []
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        cursor: str | None = ""
        while cursor is not None:
            answer = await client.get("/posts", params={"sort": sort, "limit": limit, "cursor": cursor})
            assert answer.status_code == 200, answer.text
            seen += [post["id"] for post in answer.json()["items"]]
            cursor = answer.json()["next_cursor"]
            for is_insert, second, title, number in writes.pop() if writes else ():
                if is_insert:
                    insert(connection, second, title)
                else:
                    connection.execute("DELETE FROM posts WHERE id = %s", (number,))
    return seen


def insert(connection: Any, second: int, title: str) -> None:
    connection.execute(
        "INSERT INTO posts (author_id, title, content, created_at)"
        " VALUES (1, %s, '', timestamptz '2026-01-01' + %s * interval '1 s')",
        (title, second),
    )
