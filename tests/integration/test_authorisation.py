"""Authorisation: each operation of the OpenAPI document, sent by each kind of caller."""

from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL

from tests.support.people import Person, person
from tests.support.postgres import connect

# The statuses for an anonymous caller, another user, the user or author, and an administrator.
ANYONE = (200, 200, 200, 200)
RULES: dict[str, tuple[int, int, int, int]] = {
    "GET /livez": ANYONE,
    "GET /readyz": ANYONE,
    "POST /auth/token": (422, 422, 422, 422),  # the body is not a form: 422 shows that no caller is refused
    "POST /users": (422, 422, 422, 422),
    "GET /users": (401, 403, 403, 200),
    "GET /users/me": (401, 200, 200, 200),
    "GET /users/{user_id}": ANYONE,
    "PATCH /users/{user_id}": (401, 403, 200, 200),
    "DELETE /users/{user_id}": (401, 403, 204, 204),
    "GET /users/{user_id}/posts": ANYONE,
    "GET /posts": ANYONE,
    "POST /posts": (401, 201, 201, 201),
    "GET /posts/{post_id}": ANYONE,
    "PATCH /posts/{post_id}": (401, 403, 200, 200),
    "DELETE /posts/{post_id}": (401, 403, 204, 204),
}
BODIES: dict[str, Any] = {
    "POST /users": {},
    "PATCH /users/{user_id}": {"name": "Changed"},
    "POST /posts": {"title": "Title", "content": "Content"},
    "PATCH /posts/{post_id}": {"title": "Changed"},
}
CALLERS = ("anonymous", "another user", "self or author", "administrator")


def operations(app: FastAPI) -> set[str]:
    return {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }  # fmt: skip


def test_operation_in_openapi_document_has_a_rule(app: FastAPI) -> None:
    assert operations(app) == RULES.keys()


@pytest.mark.parametrize("operation", RULES)
@pytest.mark.parametrize("kind", CALLERS)
async def test_operation_by_each_caller_returns_the_status_of_its_rule(
    client: AsyncClient, database_url: URL, operation: str, kind: str
) -> None:
    owner = await person(client, "Owner", database_url)
    post = (await owner("POST", "/posts", json={"title": "Title", "content": "Content"})).json()
    callers: dict[str, Person | None] = {
        "anonymous": None,
        "another user": await person(client, "Other", database_url),
        "self or author": owner,
        "administrator": await person(client, "Admin", database_url, is_admin=True),
    }
    method, _, template = operation.partition(" ")
    path = template.format(user_id=owner.id, post_id=post["id"])
    caller = callers[kind]

    headers = caller.headers if caller else None
    response = await client.request(method, path, json=BODIES.get(operation), headers=headers)

    assert response.status_code == RULES[operation][CALLERS.index(kind)], response.text
    if response.status_code in (401, 403):
        slug = {401: "not-authenticated", 403: "forbidden"}[response.status_code]
        assert response.json()["type"] == f"/problems/{slug}"
        assert (await client.get(f"/posts/{post['id']}")).json() == post, "a refused request must change nothing"


@pytest.mark.parametrize("operation", [operation for operation, rule in RULES.items() if rule[0] == 401])
@pytest.mark.parametrize(
    "change", ["UPDATE users SET is_active = false WHERE id = %s", "DELETE FROM users WHERE id = %s"]
)
async def test_token_of_inactive_or_deleted_user_is_refused(
    client: AsyncClient, database_url: URL, operation: str, change: str
) -> None:
    former = await person(client, "Former", database_url, is_admin=True)
    owner = await person(client, "Owner", database_url)
    post = (await owner("POST", "/posts", json={"title": "Title", "content": "Content"})).json()
    with connect(database_url) as connection:
        connection.execute(change.encode(), (former.id,))
    method, _, template = operation.partition(" ")
    path = template.format(user_id=owner.id, post_id=post["id"])

    response = await former(method, path, json=BODIES.get(operation))

    assert (response.status_code, response.json()["type"]) == (401, "/problems/not-authenticated")
    assert (await client.get("/posts")).json()["items"] == [post], "a refused request must change nothing"


@pytest.mark.parametrize("field", ["is_admin", "is_active"])
async def test_user_changing_own_flags_is_refused(client: AsyncClient, database_url: URL, field: str) -> None:
    ann = await person(client, "Ann", database_url)

    response = await ann("PATCH", f"/users/{ann.id}", json={field: True})

    assert response.status_code == 403
    assert (await ann("GET", "/users/me")).json()["is_admin"] is False


async def test_administrator_changing_flags_of_a_user_succeeds(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    admin = await person(client, "Admin", database_url, is_admin=True)

    changed = await admin("PATCH", f"/users/{ann.id}", json={"is_active": False, "is_admin": True})

    assert (changed.json()["is_active"], changed.json()["is_admin"]) == (False, True)
    assert (await ann("GET", "/users/me")).status_code == 401
