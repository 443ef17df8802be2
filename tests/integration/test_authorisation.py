"""Authorisation: each operation of the OpenAPI document, sent by each kind of caller."""

from typing import Any

import pytest
from httpx import AsyncClient
from sqlalchemy import URL

from app.database import Base
from tests.support.operations import OPERATIONS, path_of
from tests.support.people import Person, person
from tests.support.postgres import connect

CALLERS = ("anonymous", "another user", "self or author", "administrator")


def stored(url: URL) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of every table."""
    with connect(url) as connection:
        return {
            table.name: connection.execute(f"SELECT * FROM {table.name} ORDER BY 1, 2".encode()).fetchall()
            for table in Base.metadata.sorted_tables
        }


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", CALLERS)
async def test_operation_by_each_caller_returns_its_status(
    client: AsyncClient, database_url: URL, operation: str, kind: str
) -> None:
    owner = await person(client, "Owner", database_url)
    callers: dict[str, Person | None] = {
        "anonymous": None,
        "another user": await person(client, "Other", database_url),
        "self or author": owner,
        "administrator": await person(client, "Admin", database_url, is_admin=True),
    }
    method = operation.partition(" ")[0]
    path = await path_of(operation, owner)
    caller = callers[kind]
    before = stored(database_url)

    headers = caller.headers if caller else None
    response = await client.request(method, path, headers=headers, **OPERATIONS[operation].request)

    assert response.status_code == OPERATIONS[operation].statuses[CALLERS.index(kind)], response.text
    if response.status_code in (401, 403):
        slug = {401: "not-authenticated", 403: "forbidden"}[response.status_code]
        assert response.json()["type"] == f"/problems/{slug}"
        assert stored(database_url) == before, "a refused request must change nothing"


@pytest.mark.parametrize("operation", [name for name, operation in OPERATIONS.items() if operation.statuses[0] == 401])
@pytest.mark.parametrize(
    "change", ["UPDATE users SET deactivated_at = now() WHERE id = %s", "DELETE FROM users WHERE id = %s"]
)
async def test_token_of_inactive_or_deleted_user_is_refused(
    client: AsyncClient, database_url: URL, operation: str, change: str
) -> None:
    former = await person(client, "Former", database_url, is_admin=True)
    owner = await person(client, "Owner", database_url)
    method = operation.partition(" ")[0]
    path = await path_of(operation, owner)
    with connect(database_url) as connection:
        connection.execute(change.encode(), (former.id,))
    before = stored(database_url)

    response = await former(method, path, **OPERATIONS[operation].request)

    assert (response.status_code, response.json()["type"]) == (401, "/problems/not-authenticated")
    assert stored(database_url) == before, "a refused request must change nothing"


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
