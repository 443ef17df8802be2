"""Every operation of the API: who may call it, an example of a request, and what it costs.

`test_authorisation.py`, `test_costs.py` and `test_smoke_pgbouncer.py` send all of them. A new operation needs an entry
in OPERATIONS, and a new path parameter one in PARAMETERS. `tests/unit/test_operations.py` names those that are missing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastapi import FastAPI
from sqlalchemy import URL

from tests.support.callers import Caller
from tests.support.people import PASSWORD, Person
from tests.support.postgres import connect

HERE = "tests/support/operations.py"


class Cost(NamedTuple):
    """The limits of one request, with open connections and prepared statements.

    `statements` is the number of executed statements, including BEGIN, COMMIT and the query for the signed-in user,
    those of background tasks, and for a write those of the driver at the first use of an enum.
    `calls` is the number of calls of Python functions, in the application and its libraries: 10 % above the last
    measurement. It is None for a request that cannot be repeated, or that has no JSON body, or that hashes a password.
    `counts` is how many of the statements count a list: they are left out if the page shows the end of the list.
    """

    statements: int
    calls: int | None = None
    counts: int = 0


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What the tests know about an operation.

    `statuses` are those for an anonymous caller, another user, the user or author, and an administrator. `request` has
    the body, as an argument of httpx: `json`, `data` or `files`.
    `costs` has a cost for each query string that matters.
    `after` is an operation that the owner sends first, with the same path parameters: the PUT of what a GET returns.
    """

    statuses: tuple[int, int, int, int]
    request: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """How a path parameter gets a value: the id of a row.

    `created_by` is the operation with which the owner creates a row; its `Location` ends with the id. `insert` is a
    statement that inserts `%(rows)s` rows into `table`.
    """

    table: str
    insert: str
    created_by: str | None = None


ANYONE = (200, 200, 200, 200)

OPERATIONS: dict[str, Operation] = {
    "GET /livez": Operation(statuses=ANYONE),
    "GET /readyz": Operation(statuses=ANYONE),
    "POST /auth/token": Operation(
        statuses=ANYONE,
        request={"data": {"username": "admin@example.com", "password": PASSWORD}},
        # Two transactions: one counts the attempt for address and account, the other records the success.
        costs={"": Cost(10)},
    ),
    "POST /users": Operation(
        statuses=(201, 201, 201, 201),
        request={"json": {"email": "new@example.com", "name": "New", "password": PASSWORD}},
        costs={"": Cost(3)},
    ),
    "GET /users": Operation(
        statuses=(401, 403, 403, 200), costs={"?limit=100": Cost(3, 675, counts=1), "?limit=100&cursor=": Cost(2, 540)}
    ),
    "GET /users/me": Operation(statuses=(401, 200, 200, 200), costs={"": Cost(1, 240)}),
    "GET /users/{user_id}": Operation(statuses=ANYONE, costs={"": Cost(1, 225)}),
    "PATCH /users/{user_id}": Operation(
        statuses=(401, 403, 200, 200), request={"json": {"name": "Changed"}}, costs={"": Cost(5)}
    ),
    "DELETE /users/{user_id}": Operation(statuses=(401, 403, 204, 204), costs={"": Cost(5)}),
    "GET /users/{user_id}/posts": Operation(statuses=ANYONE, costs={"?limit=100": Cost(3, 700, counts=1)}),
    "GET /posts": Operation(
        statuses=ANYONE,
        costs={
            "?limit=100": Cost(2, 505, counts=1),
            "?limit=100&cursor=": Cost(1, 365),
            "?limit=100&q=post&sort=title": Cost(2, 515, counts=1),
        },
    ),
    "POST /posts": Operation(
        statuses=(401, 201, 201, 201),
        request={"json": {"title": "Title", "content": "Content"}},
        costs={"": Cost(1, 275)},
    ),
    "GET /posts/{post_id}": Operation(statuses=ANYONE, costs={"": Cost(1, 225)}),
    "PATCH /posts/{post_id}": Operation(
        statuses=(401, 403, 200, 200), request={"json": {"title": "Changed"}}, costs={"": Cost(5)}
    ),
    "DELETE /posts/{post_id}": Operation(statuses=(401, 403, 204, 204), costs={"": Cost(5)}),
}

# A parameter comes after those whose rows its `insert` refers to.
PARAMETERS: dict[str, Parameter] = {
    "user_id": Parameter(
        table="users",
        insert="INSERT INTO users (email, name, password_hash)"
        " SELECT 'u' || n, 'User', '' FROM generate_series(1, %(rows)s) n",
    ),
    "post_id": Parameter(
        table="posts",
        insert="INSERT INTO posts (author_id, title, content)"
        " SELECT CASE WHEN mod(n, 2) = 0 THEN (SELECT max(id) FROM users) ELSE id END, 'Post', ''"
        " FROM users, generate_series(1, %(rows)s) n ORDER BY users.id LIMIT %(rows)s",
        created_by="POST /posts",
    ),
}


def documented(app: FastAPI) -> dict[str, dict[str, Any]]:
    """Return the operations of the OpenAPI document by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    }


async def path_of(operation: str, owner: Caller) -> str:
    """Return the operation's path, after the owner has created a row for each of its path parameters.

    The owner has sent its `after`, too.
    """
    template = operation.partition(" ")[2]
    ids: dict[str, Any] = {}
    if isinstance(owner, Person):
        ids["user_id"] = owner.id
    for name in re.findall(r"{(\w+)}", template):
        if name not in ids:
            ids[name] = await _create_row(name, owner)
    if (first := OPERATIONS[operation].after) is not None:
        method, _, path = first.partition(" ")
        sent = await owner(method, path.format(**ids), **OPERATIONS[first].request)
        assert sent.is_success, f"{first}, as `after` of {operation} in {HERE}: {sent.text}"
    return template.format(**ids)


async def _create_row(parameter: str, owner: Caller) -> str:
    """Create a row for a path parameter as the owner does. Return its id."""
    operation = PARAMETERS[parameter].created_by
    assert operation, f"add created_by to {parameter!r} of PARAMETERS in {HERE}"
    method = operation.partition(" ")[0]
    created = await owner(method, await path_of(operation, owner), **OPERATIONS[operation].request)
    assert created.status_code == 201, f"{operation}, for {parameter!r} of PARAMETERS in {HERE}: {created.text}"
    return created.headers["location"].rpartition("/")[2]


def insert_rows(url: URL, rows: int) -> dict[str, Any]:
    """Insert that many rows for each path parameter. Return the ids of the last ones."""
    ids: dict[str, Any] = {}
    with connect(url) as connection:
        for name, parameter in PARAMETERS.items():
            connection.execute(parameter.insert.encode(), {"rows": rows})
            last = f"SELECT id FROM {parameter.table} ORDER BY id DESC LIMIT 1"
            [ids[name]] = connection.execute(last.encode()).fetchall()[0]
    return ids
