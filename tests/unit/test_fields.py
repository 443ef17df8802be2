"""Types of schema fields, in an application with fast routes."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel
from typing_extensions import TypedDict

from app.fields import MAX_JSON_LEVELS, JsonObject
from app.web import fast_routes
from app.web.problems import install_problem_handlers


class Note(BaseModel):
    """A request with a JSON object."""

    data: JsonObject


class NoteRead(TypedDict):
    """A response with the same JSON object."""

    data: dict[str, Any]


async def create_note(note: Note) -> NoteRead:
    return {"data": note.data}


def nested(levels: int, *, by: str) -> str:
    """Return JSON with this number of levels. All below the first are objects, or arrays."""
    opening, closing = {"object": ('{"a": ', "}"), "array": ("[", "]")}[by]
    return '{"a": ' + opening * (levels - 1) + "1" + closing * (levels - 1) + "}"


@pytest.fixture
async def notes() -> AsyncClient:
    app = FastAPI()
    install_problem_handlers(app)
    app.post("/notes")(create_note)
    assert fast_routes.install(app)
    assert [each.reason for each in fast_routes.report(app) if each.path == "/notes"] == [None]
    return AsyncClient(transport=ASGITransport(app), base_url="http://test")


async def post(notes: AsyncClient, data: str) -> tuple[int, dict[str, object]]:
    answer = await notes.post("/notes", content=f'{{"data": {data}}}', headers={"content-type": "application/json"})
    return answer.status_code, answer.json()


@pytest.mark.parametrize("by", ["object", "array"])
async def test_json_object_at_the_limit_of_levels_is_answered(notes: AsyncClient, by: str) -> None:
    data = nested(MAX_JSON_LEVELS, by=by)

    assert await post(notes, data) == (200, {"data": json.loads(data)})


@pytest.mark.parametrize("by", ["object", "array"])
@pytest.mark.parametrize("levels", [MAX_JSON_LEVELS + 1, 256, 900])
async def test_json_object_above_the_limit_of_levels_is_refused(notes: AsyncClient, levels: int, by: str) -> None:
    status, problem = await post(notes, nested(levels, by=by))

    assert (status, problem["type"]) == (422, "/problems/validation-error")
    assert problem["errors"] == [
        {"loc": ["body", "data"], "msg": "JSON should have at most 100 levels", "type": "json_too_deep"}
    ]


async def test_json_object_with_many_branches_is_answered(notes: AsyncClient) -> None:
    """The number of levels counts, not the number of values."""
    data = json.dumps({"a": [[], {"b": [1, None, "text"]}] * MAX_JSON_LEVELS, "c": {}})

    assert await post(notes, data) == (200, {"data": json.loads(data)})


async def test_json_object_of_another_type_is_refused(notes: AsyncClient) -> None:
    assert (await post(notes, "[]"))[0] == 422


def test_json_object_documents_the_limit_of_levels() -> None:
    field = Note.model_json_schema()["properties"]["data"]

    assert (field["type"], field["description"]) == (
        "object",
        "A JSON object with at most 100 levels of objects and arrays.",
    )
