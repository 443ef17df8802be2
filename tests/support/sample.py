"""The resource that tests of the whole service create, change and read: change this module with your domains.

Tests of stacks and faults name no other route of a domain, except in files about that domain.
"""

from typing import Any, NamedTuple

import httpx

PATH = "/users"
"""POST adds a row. GET and PATCH of `/users/{id}` read and change it."""
TABLE = "users"
READ = f"{PATH}/1"
"""A read of one row, which may not exist."""


class Row(NamedTuple):
    """A row: its path, and the headers of a client that may change it."""

    path: str
    headers: dict[str, str]


def new(key: str) -> dict[str, Any]:
    """Return the body of a request that adds a row. The key, lower-case letters and digits, is unique."""
    return {"email": f"{key}@example.com", "name": key, "password": "correct horse"}


def create(client: httpx.Client, key: str) -> Row:
    """Add a row with this name, which can be changed: `{"name": "other"}`."""
    data = new(key)
    created = client.post(PATH, json=data).raise_for_status()
    form = {"username": data["email"], "password": data["password"]}
    signed_in = client.post("/auth/token", data=form).raise_for_status()
    return Row(created.headers["location"], {"Authorization": f"Bearer {signed_in.json()['access_token']}"})
