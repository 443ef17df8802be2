"""Bad input gets a 4xx problem, never a 5xx, and does not reach the handler."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy import BigInteger, bindparam, select

from app.errors import NotFound
from app.fields import NOT_BLANK, Trimmed
from app.pagination.page import ListParams
from app.web.deps import ReadDb, WriteDb
from app.web.pagination import ListQuery
from app.web.path_params import Id

_ID = bindparam("id", type_=BigInteger())
_NOTHING = select(_ID.label("id")).where(_ID < 0)

FIRST = {"name": "first"}


class ThingFields(BaseModel):
    """A request."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(max_length=100, pattern=NOT_BLANK), Trimmed]


class ThingListParams(ListParams):
    """The query parameters of a list."""

    sort: Literal["name", "-name"] = "name"


async def chunks(total: int) -> AsyncIterator[bytes]:
    """Yield a body without a Content-Length."""
    for _ in range(total // 65_536):
        yield b" " * 65_536


def post_json(**fields: Any) -> dict[str, Any]:
    return {"method": "POST", "url": "/things", "json": FIRST | fields}


def post_raw(content: Any, content_type: str = "application/json") -> dict[str, Any]:
    return {"method": "POST", "url": "/things", "content": content, "headers": {"content-type": content_type}}


def unescaped_json(**fields: str) -> str:
    """Return JSON with the strings inserted as they are: "\\ud800" stays an escape."""
    return "{" + ", ".join(f'"{name}": "{value}"' for name, value in (FIRST | fields).items()) + "}"


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
    "a lone surrogate in the name": (post_raw(unescaped_json(name="\\ud800")), 422, "validation-error"),
    "a lone surrogate as a field name": (post_raw(b'{"\\ud800":1}'), 422, "validation-error"),
    "a list as the body": ({"method": "POST", "url": "/things", "json": [FIRST]}, 422, "validation-error"),
    "an unknown field": (post_json(is_admin=True), 422, "validation-error"),
    "an empty body": (post_raw(b""), 422, "validation-error"),
    "malformed JSON": (post_raw(b"{"), 422, "validation-error"),
    "malformed UTF-8": (post_raw(b'{"name":"\xff"}'), 400, "bad-request"),
    "JSON of 100,000 levels": (post_raw(b"[" * 100_000), 400, "bad-request"),
    "NaN in JSON": (post_raw(b'{"name":NaN}'), 422, "validation-error"),
    "another content type": (post_raw(b"a=b", "application/x-www-form-urlencoded"), 422, "validation-error"),
    "10 MB with Content-Length": (post_raw(b" " * 10_000_000), 413, "content-too-large"),
    "10 MB in chunks": (post_raw(chunks(10_000_000)), 413, "content-too-large"),
    "an id that is not a number": (get("/things/first"), 404, "not-found"),
    "an id of zero": (get("/things/0"), 422, "validation-error"),
    "a negative id": (get("/things/-1"), 404, "not-found"),
    "an id beyond bigint": (get(f"/things/{2**63}"), 422, "validation-error"),
    "an id of 5,000 digits": (get("/things/" + "9" * 5_000), 422, "validation-error"),
    "the largest id": (get(f"/things/{2**63 - 1}"), 404, "not-found"),
    "a negative offset": (get("/things?offset=-1"), 422, "validation-error"),
    "an offset beyond LIST_MAX_OFFSET": (get("/things?offset=10001"), 422, "validation-error"),
    "an offset beyond bigint": (get(f"/things?offset={2**63}"), 422, "validation-error"),
    "a limit of zero": (get("/things?limit=0"), 422, "validation-error"),
    "a limit beyond 100": (get("/things?limit=101"), 422, "validation-error"),
    "an unknown parameter": (get("/things?page=2"), 422, "validation-error"),
    "a repeated parameter": (get("/things?sort=name&sort=-name"), 422, "validation-error"),
    "a repeated parameter, once percent-encoded": (get("/things?q=ann&%71=bob"), 422, "validation-error"),
    "an unknown path": (get("/nothing/here"), 404, "not-found"),
    "a path with a NUL byte": (get("/things/%00"), 404, "not-found"),
    "a trailing slash": (get("/things/"), 404, "not-found"),
    "a wrong method": ({"method": "PUT", "url": "/things"}, 405, "method-not-allowed"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def things(app: FastAPI) -> None:
    """Add routes of every kind."""

    @app.post("/things")
    async def create(data: ThingFields, db: WriteDb) -> int:
        raise AssertionError(data)

    @app.get("/things")
    async def read_list(params: ListQuery[ThingListParams], db: ReadDb) -> int:
        raise AssertionError(params)

    @app.get("/things/{thing_id:id}")
    async def read(thing_id: Id, db: ReadDb) -> int:
        row = await db.first(_NOTHING, id=thing_id)
        if row is None:
            raise NotFound(f"There is no thing {thing_id}.")
        return thing_id

    @app.delete("/things/{thing_id:id}")
    async def remove(thing_id: Id, db: WriteDb) -> int:
        raise AssertionError(thing_id)


@pytest.mark.parametrize(("request_", "status", "slug"), CASES.values(), ids=CASES.keys())
async def test_bad_input_returns_problem(client: AsyncClient, request_: dict[str, Any], status: int, slug: str) -> None:
    response = await client.request(**request_)

    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{slug}")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_validation_error_names_fields_without_their_values(client: AsyncClient) -> None:
    response = await client.post("/things", json={"name": "hunter2" * 20, "other": 7})

    assert [error["loc"] for error in response.json()["errors"]] == [["body", "name"], ["body", "other"]]
    assert "hunter2" not in response.text


async def test_wrong_method_returns_the_allowed_methods(client: AsyncClient) -> None:
    assert (await client.put("/things")).headers["allow"] == "GET, HEAD, POST"
    assert (await client.put("/things/1")).headers["allow"] == "DELETE, GET, HEAD"
