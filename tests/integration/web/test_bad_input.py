"""Invariant 8: bad input gets a 4xx problem, never a 5xx, and changes nothing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from httpx import AsyncClient
from sqlalchemy import URL

from tests.support.postgres import connect

# Little of this reaches a driver, if it is right; each would object to something else.
pytestmark = pytest.mark.parametrize("way", ["asyncpg", "psycopg"])
ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}


async def chunks(total: int) -> AsyncIterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(total // 65_536):
        yield b" " * 65_536


def json(**fields: Any) -> dict[str, Any]:
    return {"method": "POST", "url": "/users", "json": ANN | fields}


def raw(content: Any, content_type: str = "application/json") -> dict[str, Any]:
    return {"method": "POST", "url": "/users", "content": content, "headers": {"content-type": content_type}}


def sign_up_as_text(**fields: str) -> str:
    """JSON whose strings are not escaped: "\\ud800" stays what it is."""
    return "{" + ", ".join(f'"{name}": "{value}"' for name, value in (ANN | fields).items()) + "}"


def get(url: str) -> dict[str, Any]:
    return {"method": "GET", "url": url}


CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a number for a name": (json(name=7), 422, "validation-error"),
    "null for a name": (json(name=None), 422, "validation-error"),
    "an empty name": (json(name="   "), 422, "validation-error"),
    "a name of characters that only Python trims": (json(name="\x1c\x1f"), 422, "validation-error"),
    "a name that is too long": (json(name="x" * 101), 422, "validation-error"),
    "a name that is too long as sent": (json(name=" " + "x" * 100), 422, "validation-error"),
    "a NUL byte in the name": (json(name="An\0n"), 422, "validation-error"),
    "a NUL byte in the address": (json(email="an\0n@example.com"), 422, "validation-error"),
    "half a surrogate pair in the name": (raw(sign_up_as_text(name="\\ud800")), 422, "validation-error"),
    "half a surrogate pair in the password": (raw(sign_up_as_text(password="1234567\\ud800")), 422, "validation-error"),
    "half a surrogate pair as a field": (raw(b'{"\\ud800":1}'), 422, "validation-error"),
    "not an address": (json(email="ann"), 422, "validation-error"),
    "an address that is too long": (json(email="a" * 400 + "@example.com"), 422, "validation-error"),
    "an address with a name": (json(email="Ann <ann@example.com>"), 422, "validation-error"),
    "a short password": (json(password="short"), 422, "validation-error"),
    "a password of a megabyte": (json(password="x" * 1_000_000), 422, "validation-error"),
    "a field that does not exist": (json(is_admin=True), 422, "validation-error"),
    "a list": ({"method": "POST", "url": "/users", "json": [ANN]}, 422, "validation-error"),
    "nothing": (raw(b""), 422, "validation-error"),
    "not JSON": (raw(b"{"), 422, "validation-error"),
    "not UTF-8": (raw(b'{"name":"\xff"}'), 400, "bad-request"),
    "JSON a hundred thousand levels deep": (raw(b"[" * 100_000), 400, "bad-request"),
    "NaN": (raw(b'{"email":NaN}'), 422, "validation-error"),
    "another content type": (raw(b"a=b", "application/x-www-form-urlencoded"), 422, "validation-error"),
    "10 MB, announced": (raw(b" " * 10_000_000), 413, "content-too-large"),
    "10 MB, in chunks": (raw(chunks(10_000_000)), 413, "content-too-large"),
    "an id that is not a number": (get("/users/ann"), 404, "not-found"),
    "an id of zero": (get("/users/0"), 422, "validation-error"),
    "a negative id": (get("/posts/-1"), 404, "not-found"),
    "an id beyond bigint": (get(f"/users/{2**63}"), 422, "validation-error"),
    "an id of five thousand digits": (get("/users/" + "9" * 5_000), 422, "validation-error"),
    "the largest id": (get(f"/users/{2**63 - 1}"), 404, "not-found"),
    "a negative offset": (get("/posts?offset=-1"), 422, "validation-error"),
    "an offset beyond bigint": (get(f"/posts?offset={2**63}"), 422, "validation-error"),
    "a limit of zero": (get("/posts?limit=0"), 422, "validation-error"),
    "a limit beyond 100": (get("/posts?limit=101"), 422, "validation-error"),
    "a parameter that does not exist": (get("/posts?page=2"), 422, "validation-error"),
    "a parameter twice": (get("/posts?sort=title&sort=-title"), 422, "validation-error"),
    "a parameter twice, once in other letters": (get("/users?q=ann&%71=bob"), 422, "validation-error"),
    "a parameter twice, of a user's posts": (get("/users/1/posts?limit=1&q=&limit=2"), 422, "validation-error"),
    "an unknown path": (get("/nothing/here"), 404, "not-found"),
    "a path with a NUL byte": (get("/users/%00"), 404, "not-found"),
    "a slash too many": (get("/posts/"), 404, "not-found"),
    "a wrong method": ({"method": "PUT", "url": "/users"}, 405, "method-not-allowed"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "slug"), CASES.values(), ids=CASES.keys())
async def test_bad_input_is_a_problem_and_changes_nothing(
    client: AsyncClient, database_url: URL, request_: dict[str, Any], status: int, slug: str
) -> None:
    answer = await client.request(**request_)

    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    with connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


async def test_a_validation_error_says_what_is_wrong_and_repeats_no_password(client: AsyncClient) -> None:
    answer = await client.post("/users", json=ANN | {"email": "ann", "password": "hunter2"})

    assert [error["loc"] for error in answer.json()["errors"]] == [["body", "email"], ["body", "password"]]
    assert "hunter2" not in answer.text


async def test_a_method_that_is_not_allowed_comes_with_those_that_are(client: AsyncClient) -> None:
    assert (await client.put("/users")).headers["allow"] == "GET, POST"
    assert (await client.put("/users/1")).headers["allow"] == "DELETE, GET, PATCH"
    assert (await client.patch("/users/me")).headers["allow"] == "GET"
