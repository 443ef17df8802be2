"""Bad input gets a 4xx problem, never a 5xx, and changes nothing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL

from app.domains.users.schemas import UserListParams
from app.web.pagination import ListQuery
from tests.support.postgres import connect

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}


async def chunks(total: int) -> AsyncIterator[bytes]:
    """Yield a body without a Content-Length."""
    for _ in range(total // 65_536):
        yield b" " * 65_536


def post_json(**fields: Any) -> dict[str, Any]:
    return {"method": "POST", "url": "/users", "json": ANN | fields}


def post_raw(content: Any, content_type: str = "application/json") -> dict[str, Any]:
    return {"method": "POST", "url": "/users", "content": content, "headers": {"content-type": content_type}}


def unescaped_json(**fields: str) -> str:
    """Return JSON with the strings inserted as they are: "\\ud800" stays an escape."""
    return "{" + ", ".join(f'"{name}": "{value}"' for name, value in (ANN | fields).items()) + "}"


def get(url: str) -> dict[str, Any]:
    return {"method": "GET", "url": url}


CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a number for a name": (post_json(name=7), 422, "validation-error"),
    "null for a name": (post_json(name=None), 422, "validation-error"),
    "an empty name": (post_json(name="   "), 422, "validation-error"),
    "a name of control characters that only Python strips": (post_json(name="\x1c\x1f"), 422, "validation-error"),
    "a name over the maximum length": (post_json(name="x" * 101), 422, "validation-error"),
    "a name over the maximum length before stripping": (post_json(name=" " + "x" * 100), 422, "validation-error"),
    "a NUL byte in the name": (post_json(name="An\0n"), 422, "validation-error"),
    "a NUL byte in the address": (post_json(email="an\0n@example.com"), 422, "validation-error"),
    "a lone surrogate in the name": (post_raw(unescaped_json(name="\\ud800")), 422, "validation-error"),
    "a lone surrogate in the password": (post_raw(unescaped_json(password="1234567\\ud800")), 422, "validation-error"),
    "a lone surrogate as a field name": (post_raw(b'{"\\ud800":1}'), 422, "validation-error"),
    "a malformed address": (post_json(email="ann"), 422, "validation-error"),
    "an address over the maximum length": (post_json(email="a" * 400 + "@example.com"), 422, "validation-error"),
    "an address with a display name": (post_json(email="Ann <ann@example.com>"), 422, "validation-error"),
    "a short password": (post_json(password="short"), 422, "validation-error"),
    "a password of a megabyte": (post_json(password="x" * 1_000_000), 422, "validation-error"),
    "an unknown field": (post_json(is_admin=True), 422, "validation-error"),
    "a list as the body": ({"method": "POST", "url": "/users", "json": [ANN]}, 422, "validation-error"),
    "an empty body": (post_raw(b""), 422, "validation-error"),
    "malformed JSON": (post_raw(b"{"), 422, "validation-error"),
    "malformed UTF-8": (post_raw(b'{"name":"\xff"}'), 400, "bad-request"),
    "JSON of 100,000 levels": (post_raw(b"[" * 100_000), 400, "bad-request"),
    "NaN in JSON": (post_raw(b'{"email":NaN}'), 422, "validation-error"),
    "another content type": (post_raw(b"a=b", "application/x-www-form-urlencoded"), 422, "validation-error"),
    "10 MB with Content-Length": (post_raw(b" " * 10_000_000), 413, "content-too-large"),
    "10 MB in chunks": (post_raw(chunks(10_000_000)), 413, "content-too-large"),
    "an id that is not a number": (get("/users/ann"), 404, "not-found"),
    "an id of zero": (get("/users/0"), 422, "validation-error"),
    "a negative id": (get("/users/-1"), 404, "not-found"),
    "an id beyond bigint": (get(f"/users/{2**63}"), 422, "validation-error"),
    "an id of 5,000 digits": (get("/users/" + "9" * 5_000), 422, "validation-error"),
    "the largest id": (get(f"/users/{2**63 - 1}"), 404, "not-found"),
    "a negative offset": (get("/list?offset=-1"), 422, "validation-error"),
    "an offset beyond LIST_MAX_OFFSET": (get("/list?offset=10001"), 422, "validation-error"),
    "an offset beyond bigint": (get(f"/list?offset={2**63}"), 422, "validation-error"),
    "a limit of zero": (get("/list?limit=0"), 422, "validation-error"),
    "a limit beyond 100": (get("/list?limit=101"), 422, "validation-error"),
    "an unknown parameter": (get("/list?page=2"), 422, "validation-error"),
    "a repeated parameter": (get("/list?sort=name&sort=-name"), 422, "validation-error"),
    "a repeated parameter, once percent-encoded": (get("/users?q=ann&%71=bob"), 422, "validation-error"),
    "an unknown path": (get("/nothing/here"), 404, "not-found"),
    "a path with a NUL byte": (get("/users/%00"), 404, "not-found"),
    "a trailing slash": (get("/users/"), 404, "not-found"),
    "a wrong method": ({"method": "PUT", "url": "/users"}, 405, "method-not-allowed"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def public_list(app: FastAPI) -> None:
    """Add a list that anyone may read: the list of users refuses an anonymous caller first."""

    @app.get("/list")
    async def read_list(params: ListQuery[UserListParams]) -> int:
        raise AssertionError(params)


@pytest.mark.parametrize(("request_", "status", "slug"), CASES.values(), ids=CASES.keys())
async def test_bad_input_returns_problem_and_changes_nothing(
    client: AsyncClient, database_url: URL, request_: dict[str, Any], status: int, slug: str
) -> None:
    response = await client.request(**request_)

    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{slug}")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    with connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


async def test_validation_error_names_fields_without_their_values(client: AsyncClient) -> None:
    response = await client.post("/users", json=ANN | {"email": "ann", "password": "hunter2"})

    assert [error["loc"] for error in response.json()["errors"]] == [["body", "email"], ["body", "password"]]
    assert "hunter2" not in response.text


async def test_wrong_method_returns_the_allowed_methods(client: AsyncClient) -> None:
    assert (await client.put("/users")).headers["allow"] == "GET, HEAD, POST"
    assert (await client.put("/users/1")).headers["allow"] == "DELETE, GET, HEAD, PATCH"
    assert (await client.patch("/users/me")).headers["allow"] == "GET, HEAD"
