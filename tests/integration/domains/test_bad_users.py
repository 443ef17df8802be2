"""Bad input of a sign-up gets a 4xx problem, never a 5xx, and changes nothing."""

import json
from typing import Any

import pytest
from httpx import AsyncClient
from sqlalchemy import URL

from tests.support.postgres import connect

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}


def sign_up(**fields: Any) -> dict[str, Any]:
    """Return a request. Unlike httpx, json.dumps() escapes lone surrogates."""
    content = json.dumps(ANN | fields)
    return {"method": "POST", "url": "/users", "content": content, "headers": {"content-type": "application/json"}}


CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a NUL byte in the address": (sign_up(email="an\0n@example.com"), 422, "validation-error"),
    "a lone surrogate in the password": (sign_up(password="1234567\ud800"), 422, "validation-error"),
    "a malformed address": (sign_up(email="ann"), 422, "validation-error"),
    "an address over the maximum length": (sign_up(email="a" * 400 + "@example.com"), 422, "validation-error"),
    "an address with a display name": (sign_up(email="Ann <ann@example.com>"), 422, "validation-error"),
    "a short password": (sign_up(password="short"), 422, "validation-error"),
    "a password of a megabyte": (sign_up(password="x" * 1_000_000), 422, "validation-error"),
    "an unknown field": (sign_up(is_admin=True), 422, "validation-error"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "slug"), CASES.values(), ids=CASES.keys())
async def test_bad_sign_up_returns_problem_and_changes_nothing(
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
    assert (await client.patch("/users/me")).headers["allow"] == "GET, HEAD"
