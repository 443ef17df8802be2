"""Compiled routes answer as FastAPI does: every kind of request goes both ways, and the answers are the same."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from unittest.mock import patch

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Form, Header, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import OAuth2PasswordBearer
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict, Field

from app.errors import NotFound
from app.web.fast_routes import FastRoute, FastRoutes
from app.web.middleware import BodyLimitMiddleware, ErrorMiddleware
from app.web.path_params import Id
from app.web.problems import install_problem_handlers


class Thing(BaseModel):
    id: int
    name: str = Field(default="none", serialization_alias="called")


class NewThing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=5)]
    size: int = 1


class Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sort: Literal["name", "-name"] = "name"
    limit: int = Field(default=20, le=100)
    q: str | None = None


class WantedMany(BaseModel):
    tag: list[str] = []


class ThingNotFound(NotFound):
    title = "Thing not found"


async def log(request: Request) -> list[str]:
    events: list[str] = request.app.state.events
    events.append("log")
    return events


Log = Annotated[list[str], Depends(log)]


async def inner(events: Log, request: Request) -> str:
    events.append("inner")
    return request.url.path


async def opened(events: Log) -> AsyncIterator[str]:
    events.append("opened")
    try:
        yield "open"
    except ValueError:
        events.append("failed")
        raise
    events.append("closed")


def plain_function() -> int:
    return 7


async def sets_headers(response: Response) -> None:
    response.headers["x-set"] = "by a dependency"
    response.set_cookie("a", "1")


OpenInHandler = Annotated[str, Depends(opened, scope="function")]
OpenUntilSent = Annotated[str, Depends(opened)]
bearer = OAuth2PasswordBearer(tokenUrl="/token", auto_error=False)
router = APIRouter(prefix="/things")


@router.get("/static")
async def static() -> Thing:
    return Thing(id=0, name="static")


@router.get("/{thing_id:id}")
async def read(thing_id: Id, path: Annotated[str, Depends(inner)], events: Log) -> Thing:
    if thing_id == 404:
        raise ThingNotFound(thing_id)
    if thing_id == 418:
        raise HTTPException(418, headers={"x-pot": "tea"})
    if thing_id == 500:
        raise ValueError("nobody expected this")
    return Thing(id=thing_id, name=path)


@router.get("")
async def search(wanted: Annotated[Wanted, Query()]) -> list[Thing]:
    return [Thing(id=wanted.limit, name=f"{wanted.sort} {wanted.q!r}")]


@router.post("", status_code=201)
async def create(
    data: NewThing,
    response: Response,
    events: Log,
    opened: OpenInHandler,
    token: Annotated[str | None, Depends(bearer)],
) -> Thing:
    events.append("handler")
    if data.name == "bad":
        raise ValueError
    response.headers["location"] = "/things/1"
    if data.size > 1:
        response.status_code = {2: 202, 3: 204}[data.size]
    return Thing(id=data.size, name=f"{data.name} {token}")


@router.delete("/{thing_id}", status_code=204)
async def delete(thing_id: int, headers: Annotated[None, Depends(sets_headers)]) -> None: ...


@router.get("/many/tags")
async def many(wanted: Annotated[WantedMany, Query()]) -> list[str]:
    return wanted.tag


@router.get("/one/scalars")
async def scalars(limit: int = 20, tag: Annotated[list[str], Query()] = []) -> list[str]:  # noqa: B006 - FastAPI's way
    return [*tag, str(limit)]


@router.get("/dependency/header")
async def header(x_token: Annotated[str, Header()]) -> str:
    return x_token


@router.get("/dependency/function")
async def function(seven: Annotated[int, Depends(plain_function)]) -> int:
    return seven


@router.get("/dependency/until-sent")
async def until_sent(opened: OpenUntilSent) -> str:
    return opened


@router.get("/dependency/twice")
async def twice(
    first: Log, second: Annotated[list[str], Depends(log, use_cache=False)], third: Annotated[str, Depends(inner)]
) -> list[str]:
    return [*first, "handler"]


@router.post("/form")
async def form(name: Annotated[str, Form()]) -> str:
    return name


@router.get("/answer/response")
async def response() -> Response:
    return PlainTextResponse("plain", 203)


@router.get("/answer/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(iter(["a", "b"]))


@router.get("/answer/invalid")
async def invalid() -> Thing:
    return {"id": "none"}  # type: ignore[return-value]


@router.get("/answer/background")
async def background(tasks: BackgroundTasks, events: Log) -> str:
    tasks.add_task(events.append, "background")
    return "later"


def application(*, compiled: bool) -> FastAPI:
    app = FastAPI()
    app.state.events = []
    if compiled:
        app.add_middleware(FastRoutes, application=app)
    app.add_middleware(BodyLimitMiddleware, max_bytes=200_000)
    app.add_middleware(ErrorMiddleware)
    install_problem_handlers(app)
    app.include_router(router)
    return app


async def ask(app: FastAPI, method: str, url: str, **request: Any) -> tuple[object, ...]:
    """All there is to see of an answer, and what happened on the way to it."""
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        answer = await client.request(method, url, **request)
    return answer.status_code, answer.headers.multi_items(), answer.content, app.state.events


ORDINARY: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/things/static", {}),
    ("GET", "/things/7", {}),
    ("GET", "/things/7?unknown=1", {}),
    ("GET", "/things/404", {}),
    ("GET", "/things/418", {}),
    ("GET", "/things/500", {}),
    ("GET", "/things", {}),
    ("GET", "/things?limit=5&sort=-name&q=", {}),
    ("GET", "/things?q=%C3%A4%20b+c", {}),
    ("GET", "/things?limit=1&limit=2", {}),
    ("POST", "/things", {"json": {"name": "a"}}),
    ("POST", "/things", {"json": {"name": "a", "size": 2}, "headers": {"authorization": "Bearer abc"}}),
    ("POST", "/things", {"json": {"name": "a", "size": 3}}),
    ("POST", "/things", {"json": {"name": "bad"}}),
    ("DELETE", "/things/7", {}),
    ("GET", "/things/many/tags?tag=a&tag=b", {}),
    ("GET", "/things/many/tags", {}),
    ("GET", "/things/one/scalars?tag=a&tag=b", {}),
    ("GET", "/things/dependency/twice", {}),
    ("GET", "/things/answer/invalid", {}),
]
OUT_OF_THE_ORDINARY: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/things/99999999999999999999", {}),
    ("GET", "/things/seven", {}),
    ("GET", "/nowhere", {}),
    ("PUT", "/things/7", {}),
    ("HEAD", "/things/7", {}),
    ("GET", "/things/7/", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/things?limit=101", {}),
    ("GET", "/things?limit=x&unknown=1", {}),
    ("GET", "/things/one/scalars?limit=x", {}),
    ("DELETE", "/things/seven", {}),
    ("POST", "/things", {}),
    ("POST", "/things", {"content": b"{"}),
    ("POST", "/things", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("POST", "/things", {"content": b"[" * 900, "headers": {"content-type": "application/json"}}),
    ("POST", "/things", {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}),
    ("POST", "/things", {"content": b'{"name": "a"}', "headers": {"content-type": "text/plain"}}),
    ("POST", "/things", {"content": b'{"name": "a"}', "headers": {"content-type": "application/json; charset=utf-8"}}),
    ("POST", "/things", {"json": {"name": "too long"}}),
    ("POST", "/things", {"json": {"name": "a", "color": "red"}}),
    ("POST", "/things", {"json": [1]}),
    ("POST", "/things", {"json": {"name": "x" * 300_000}}),
    ("POST", "/things/form", {"data": {"name": "a"}}),
    ("GET", "/things/dependency/header", {"headers": {"x-token": "a"}}),
    ("GET", "/things/dependency/function", {}),
    ("GET", "/things/dependency/until-sent", {}),
    ("GET", "/things/answer/response", {}),
    ("GET", "/things/answer/stream", {}),
    ("GET", "/things/answer/background", {}),
]


@pytest.mark.parametrize(
    ("method", "url", "request_", "is_ordinary"),
    [(*each, True) for each in ORDINARY] + [(*each, False) for each in OUT_OF_THE_ORDINARY],
)
async def test_an_answer_is_fastapis_to_the_byte(
    method: str, url: str, request_: dict[str, Any], is_ordinary: bool
) -> None:
    with patch.object(FastRoute, "answer", autospec=True, side_effect=FastRoute.answer) as answer:
        ours = await ask(application(compiled=True), method, url, **request_)
    theirs = await ask(application(compiled=False), method, url, **request_)

    assert ours == theirs
    assert answer.called == is_ordinary


async def test_a_body_in_pieces_is_put_together_and_one_that_is_not_valid_reaches_fastapi_whole() -> None:
    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    for parts in ((b'{"na', b'me": "a"}'), (b'{"na', b'me": "too long"}')):
        headers = {"content-type": "application/json"}
        ours, theirs = [
            await ask(application(compiled=compiled), "POST", "/things", content=pieces(*parts), headers=headers)
            for compiled in (True, False)
        ]
        assert ours == theirs


async def test_a_route_that_was_declared_first_wins_whoever_serves_it() -> None:
    for paths in (("/a/{id}", "/a/me"), ("/a/me", "/a/{id}"), ("/{any}/me", "/a/me"), ("/a/me", "/{any}/me")):
        answers = []
        for compiled in (True, False):
            app = application(compiled=compiled)
            for path in paths:
                # The function is not one that is compiled, the coroutine is.
                endpoint = _sync(path) if "{" in path else _async(path)
                app.add_api_route(path, endpoint, response_model=str)
            answers.append(await ask(app, "GET", "/a/me"))
        assert answers[0] == answers[1]


async def test_a_dependency_that_a_test_overrides_is_overridden() -> None:
    app = application(compiled=True)
    app.dependency_overrides[inner] = lambda: "overridden"

    _, _, body, _ = await ask(app, "GET", "/things/7")

    assert body == b'{"id":7,"called":"overridden"}'


async def test_a_route_that_is_added_later_is_served() -> None:
    app = application(compiled=True)
    await ask(app, "GET", "/things/7")
    app.add_api_route("/later", _async("later"), response_model=str)

    assert (await ask(app, "GET", "/later"))[2] == b'"later"'


def _async(text: str) -> Any:
    async def endpoint() -> str:
        return text

    return endpoint


def _sync(text: str) -> Any:
    def endpoint() -> str:
        return text

    return endpoint
