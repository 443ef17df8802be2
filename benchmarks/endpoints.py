"""The requests of the benchmarks, and what their responses must contain."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import orjson
from psycopg.rows import dict_row
from sqlalchemy import URL

from app.domains.auth.tokens import Tokens
from tests.support.load import Answer, get, post
from tests.support.postgres import connect
from tests.support.serving import SECRET_KEY

USER = "GET /users/{id}"
PAGE = "GET /posts?cursor=&limit=20"
POST = "GET /posts/{id}"
WRITE = "POST /posts"
MIXED = "mixed"

SAMPLE_SIZE = 1_000
PAGE_SIZE = 20
_TOKEN_SECONDS = 86_400
_POSTS = (
    "SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at"
    " FROM posts p JOIN users u ON u.id = p.author_id "
)


class Call(NamedTuple):
    """A request, the expected status, and a check of the decoded body."""

    request: bytes
    status: int
    is_expected: Callable[[Any], bool]

    def check(self, answer: Answer, *, body: bool) -> None:
        """Raise AssertionError if the status, or with `body` the content, is not as expected."""
        assert answer.status == self.status, answer
        assert not body or self.is_expected(orjson.loads(answer.body)), answer


class Dataset:
    """A random sample of the database's rows: the expected content of responses."""

    def __init__(self, url: URL) -> None:
        self._url = url
        sample = f"ORDER BY random() LIMIT {SAMPLE_SIZE}"
        self.users = {row["id"]: row for row in self._query(f"SELECT id, name, created_at FROM users {sample}")}
        self.posts = {row["id"]: _post(row) for row in self._query(_POSTS + sample)}
        newest = self._query(f"{_POSTS} ORDER BY p.created_at DESC, p.id DESC LIMIT {PAGE_SIZE}")
        self.newest = [_post(row) for row in newest]
        self.last_post_id = self._query("SELECT max(id) AS id FROM posts")[0]["id"]

    def count_new_posts(self) -> int:
        """Return the number of posts that were added since the dataset was read."""
        return int(self._query(f"SELECT count(*) AS n FROM posts WHERE id > {self.last_post_id}")[0]["n"])

    def delete_new_posts(self) -> None:
        """Delete the posts that were added since the dataset was read."""
        self._query(f"DELETE FROM posts WHERE id > {self.last_post_id} RETURNING id")
        with connect(self._url) as connection:
            connection.execute("VACUUM posts")

    def _query(self, query: str) -> list[dict[str, Any]]:
        with connect(self._url) as connection:
            return list(connection.cursor(row_factory=dict_row).execute(query.encode()))


def endpoints(dataset: Dataset) -> dict[str, list[Call]]:
    """Return the calls of each endpoint, by its name."""
    tokens = Tokens(SECRET_KEY, _TOKEN_SECONDS)
    draft = {"title": "A title of some length", "content": "What there is to say about it. " * 10}
    body = orjson.dumps(draft)

    def write(user_id: int) -> Call:
        headers = {"Authorization": f"Bearer {tokens.issue(user_id)}", "Content-Type": "application/json"}
        return Call(post("/posts", body, **headers), 201, partial(_is_new_post, dataset, user_id, draft))

    def is_newest(page: dict[str, Any]) -> bool:
        return len(page["items"]) == PAGE_SIZE and all(map(_is_row, dataset.newest, page["items"]))

    def is_page(page: dict[str, Any]) -> bool:
        return len(page["items"]) == PAGE_SIZE and all(item["author"]["name"] for item in page["items"])

    found = {
        USER: [Call(get(f"/users/{key}"), 200, partial(_is_row, row)) for key, row in dataset.users.items()],
        PAGE: [Call(get(f"/posts?cursor=&limit={PAGE_SIZE}"), 200, is_newest)],
        POST: [Call(get(f"/posts/{key}"), 200, partial(_is_row, row)) for key, row in dataset.posts.items()],
        WRITE: [write(user_id) for user_id in dataset.users],
    }
    # Of 20 requests: 16 read one row, 3 read a page, 1 writes. The writes change the newest page.
    page = Call(get(f"/posts?cursor=&limit={PAGE_SIZE}"), 200, is_page)
    kinds: list[list[Call]] = [found[USER], found[POST]] * 8 + [[page] * SAMPLE_SIZE] * 3 + [found[WRITE]]
    mixed = [kinds[number % len(kinds)][number % SAMPLE_SIZE] for number in range(SAMPLE_SIZE * len(kinds))]
    return found | {MIXED: mixed}


def _post(row: dict[str, Any]) -> dict[str, Any]:
    author = {"id": row["author_id"], "name": row["name"]}
    return {key: row[key] for key in ("id", "title", "content", "created_at", "updated_at")} | {"author": author}


def _is_new_post(dataset: Dataset, user_id: int, draft: dict[str, str], body: dict[str, Any]) -> bool:
    author = {"id": user_id, "name": dataset.users[user_id]["name"]}
    return draft.items() <= body.items() and body["author"] == author and body["id"] > dataset.last_post_id


def _is_row(row: dict[str, Any], body: dict[str, Any]) -> bool:
    return row == {key: datetime.fromisoformat(value) if key.endswith("_at") else value for key, value in body.items()}
