"""Who may do what: every operation of the OpenAPI document, by everybody. An operation without a rule fails."""

from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL

from tests.support.people import Person, person
from tests.support.postgres import connect

# What anonymous, another user, the user or author, and an administrator get.
ANYONE = (200, 200, 200, 200)
RULES: dict[str, tuple[int, int, int, int]] = {
    "GET /livez": ANYONE,
    "GET /readyz": ANYONE,
    "POST /auth/token": (422, 422, 422, 422),  # a form; the point is that nobody is refused
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
WHO = ("anonymous", "another user", "self or author", "administrator")


def operations(app: FastAPI) -> set[str]:
    return {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }  # fmt: skip


def test_every_operation_has_a_rule(app: FastAPI) -> None:
    assert operations(app) == RULES.keys()


@pytest.mark.parametrize("operation", RULES)
@pytest.mark.parametrize("who", WHO)
async def test_everybody_gets_what_the_rule_says(
    client: AsyncClient, database_url: URL, operation: str, who: str
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
    caller = callers[who]

    answer = await client.request(method, path, json=BODIES.get(operation), headers=caller.headers if caller else None)

    assert answer.status_code == RULES[operation][WHO.index(who)], answer.text
    if answer.status_code in (401, 403):
        slug = {401: "not-authenticated", 403: "forbidden"}[answer.status_code]
        assert answer.json()["type"] == f"/problems/{slug}"
        assert (await client.get(f"/posts/{post['id']}")).json() == post, "nothing has changed"


@pytest.mark.parametrize("operation", [operation for operation, rule in RULES.items() if rule[0] == 401])
@pytest.mark.parametrize("end", ["UPDATE users SET is_active = false WHERE id = %s", "DELETE FROM users WHERE id = %s"])
async def test_a_token_ends_with_its_user(client: AsyncClient, database_url: URL, operation: str, end: str) -> None:
    former = await person(client, "Former", database_url, is_admin=True)
    owner = await person(client, "Owner", database_url)
    post = (await owner("POST", "/posts", json={"title": "Title", "content": "Content"})).json()
    with connect(database_url) as connection:
        connection.execute(end.encode(), (former.id,))
    method, _, template = operation.partition(" ")

    answer = await former(method, template.format(user_id=owner.id, post_id=post["id"]), json=BODIES.get(operation))

    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/not-authenticated")
    assert (await client.get("/posts")).json()["items"] == [post], "nothing has changed"


@pytest.mark.parametrize("field", ["is_admin", "is_active"])
async def test_nobody_makes_themselves_an_administrator(client: AsyncClient, database_url: URL, field: str) -> None:
    ann = await person(client, "Ann", database_url)

    answer = await ann("PATCH", f"/users/{ann.id}", json={field: True})

    assert answer.status_code == 403
    assert (await ann("GET", "/users/me")).json()["is_admin"] is False


async def test_an_administrator_can_deactivate_and_promote(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    admin = await person(client, "Admin", database_url, is_admin=True)

    changed = await admin("PATCH", f"/users/{ann.id}", json={"is_active": False, "is_admin": True})

    assert (changed.json()["is_active"], changed.json()["is_admin"]) == (False, True)
    assert (await ann("GET", "/users/me")).status_code == 401
