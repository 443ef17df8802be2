"""Fast routes respond as FastAPI does: each request is sent to both, and the responses are compared."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Form, Header, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import OAuth2PasswordBearer
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import NotFound
from app.observability.http_metrics import HttpMetrics
from app.pagination.page import ListParams
from app.web import fast_routes
from app.web.middleware import BodyLimitMiddleware, ErrorMiddleware, RequestMiddleware
from app.web.pagination import ListQuery
from app.web.path_params import Id
from app.web.problems import install_problem_handlers


class Thing(BaseModel):
    id: int
    name: str = Field(default="none", serialization_alias="called")


class NewThing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=5)]
    size: int = 1


class SearchParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sort: Literal["name", "-name"] = "name"
    limit: int = Field(default=20, le=100)
    q: str | None = None


class TagParams(BaseModel):
    tag: list[str] = []


class ThingListParams(ListParams):
    sort: Literal["name", "-name"] = "name"


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


async def context(events: Log) -> AsyncIterator[str]:
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


async def page_size(limit: int = 20, tag: Annotated[list[str], Query()] = []) -> str:  # noqa: B006 - FastAPI's way
    return f"{limit} {tag}"


async def nested_page_size(size: Annotated[str, Depends(page_size)], limit: int = 30) -> str:
    return f"{size} {limit}"


FunctionContext = Annotated[str, Depends(context, scope="function")]
RequestContext = Annotated[str, Depends(context)]
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
        raise ValueError("unexpected")
    return Thing(id=thing_id, name=path)


@router.get("")
async def search(params: Annotated[SearchParams, Query()]) -> list[Thing]:
    return [Thing(id=params.limit, name=f"{params.sort} {params.q!r}")]


@router.post("", status_code=201)
async def create(
    data: NewThing,
    response: Response,
    events: Log,
    context: FunctionContext,
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
async def many(params: Annotated[TagParams, Query()]) -> list[str]:
    return params.tag


@router.get("/one/scalars")
async def scalars(limit: int = 20, tag: Annotated[list[str], Query()] = []) -> list[str]:  # noqa: B006 - FastAPI's way
    return [*tag, str(limit)]


@router.get("/dependency/header")
async def header(x_token: Annotated[str, Header()]) -> str:
    return x_token


@router.get("/dependency/function")
async def function(seven: Annotated[int, Depends(plain_function)]) -> int:
    return seven


@router.get("/dependency/request-scope")
async def request_scope(context: RequestContext) -> str:
    return context


@router.get("/dependency/twice")
async def twice(
    first: Log, second: Annotated[list[str], Depends(log, use_cache=False)], third: Annotated[str, Depends(inner)]
) -> list[str]:
    return [*first, "handler"]


@router.get("/dependency/list")
async def list_things(params: ListQuery[ThingListParams]) -> list[str]:
    return [params.sort, f"{params.limit} {params.q!r}"]


@router.get("/dependency/query")
async def query(size: Annotated[str, Depends(page_size)]) -> str:
    return size


@router.get("/dependency/nested-query")
async def nested_query(size: Annotated[str, Depends(nested_page_size)], events: Log, limit: int = 40) -> list[str]:
    return [*events, size, str(limit)]


@router.post("/form")
async def form(name: Annotated[str, Form()]) -> str:
    return name


@router.get("/response/response")
async def response() -> Response:
    return PlainTextResponse("plain", 203)


@router.get("/response/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(iter(["a", "b"]))


@router.get("/response/invalid")
async def invalid() -> Thing:
    return {"id": "none"}  # type: ignore[return-value]


@router.get("/response/background")
async def background(tasks: BackgroundTasks, events: Log) -> str:
    tasks.add_task(events.append, "background")
    return "later"


def application(*, fast: bool) -> FastAPI:
    app = FastAPI()
    app.state.events = []
    if fast:
        assert fast_routes.install(app)
    app.add_middleware(BodyLimitMiddleware, max_bytes=200_000)
    app.add_middleware(ErrorMiddleware)
    install_problem_handlers(app)
    app.include_router(router)
    return app


async def send(app: FastAPI, method: str, url: str, **request: Any) -> tuple[object, ...]:
    """Return the response's status, headers and body, and the events that the route logged."""
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.request(method, url, **request)
    return response.status_code, response.headers.multi_items(), response.content, app.state.events


# Requests that the fast routes serve.
FAST: list[tuple[str, str, dict[str, Any]]] = [
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
    ("GET", "/things/dependency/list", {}),
    ("GET", "/things/dependency/list?limit=5&sort=-name&q=%C3%A4", {}),
    ("GET", "/things/dependency/list?limit=5&limit=6", {}),
    ("GET", "/things/dependency/list?q=a&%71=b", {}),
    ("GET", "/things/dependency/query", {}),
    ("GET", "/things/dependency/query?limit=7&tag=a&tag=b&unknown=1", {}),
    ("GET", "/things/dependency/query?limit=7&limit=8", {}),
    ("GET", "/things/dependency/nested-query", {}),
    ("GET", "/things/dependency/nested-query?limit=7", {}),
    ("GET", "/things/response/invalid", {}),
    ("POST", "/things", {"json": {"name": "x" * 300_000}}),
    ("GET", "/things/99999999999999999999", {}),
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
    ("POST", "/things/form", {"data": {"name": "a"}}),
    ("GET", "/things/dependency/header", {"headers": {"x-token": "a"}}),
    ("GET", "/things/dependency/function", {}),
    ("GET", "/things/dependency/list?limit=101", {}),
    ("GET", "/things/dependency/list?limit=101&limit=102", {}),
    ("GET", "/things/dependency/list?offset=1&cursor=", {}),
    ("GET", "/things/dependency/list?unknown=1", {}),
    ("GET", "/things/dependency/query?limit=x", {}),
    ("GET", "/things/dependency/query?limit=x&limit=y", {}),
    ("GET", "/things/dependency/nested-query?limit=x", {}),
    ("GET", "/things/dependency/request-scope", {}),
    ("GET", "/things/response/response", {}),
    ("GET", "/things/response/stream", {}),
    ("GET", "/things/response/background", {}),
]
# Requests that FastAPI serves: no operation has this path or method, or a dependency has use_cache=False.
SLOW: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/things/dependency/twice", {}),
    ("GET", "/things/seven", {}),
    ("GET", "/nowhere", {}),
    ("PUT", "/things/7", {}),
    ("HEAD", "/things/7", {}),
    ("GET", "/things/7/", {}),
    ("GET", "/openapi.json", {}),
]


@pytest.mark.parametrize(
    ("method", "url", "request_", "is_fast"),
    [(*request, True) for request in FAST] + [(*request, False) for request in SLOW],
)
async def test_fast_route_any_request_responds_as_fastapi(
    method: str, url: str, request_: dict[str, Any], is_fast: bool
) -> None:
    app = application(fast=True)
    ours = await send(app, method, url, **request_)
    theirs = await send(application(fast=False), method, url, **request_)

    assert ours == theirs
    assert fast_routes.taken(app) == is_fast


async def test_list_query_repeated_parameter_is_refused() -> None:
    """The comparison with FastAPI alone would also pass if both ignored the repetition."""
    status, _, body, _ = await send(application(fast=True), "GET", "/things/dependency/list?limit=5&limit=6")

    assert status == 422
    assert b'"loc":["query","limit"]' in body  # type: ignore[operator]


async def test_fast_route_chunked_body_responds_as_fastapi() -> None:
    async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    for parts in ((b'{"na', b'me": "a"}'), (b'{"na', b'me": "too long"}')):
        headers = {"content-type": "application/json"}
        ours, theirs = [
            await send(application(fast=fast), "POST", "/things", content=chunks(*parts), headers=headers)
            for fast in (True, False)
        ]
        assert ours == theirs


async def test_path_matching_two_routes_is_served_by_the_first() -> None:
    for paths in (("/a/{id}", "/a/me"), ("/a/me", "/a/{id}"), ("/{any}/me", "/a/me"), ("/a/me", "/{any}/me")):
        responses = []
        for fast in (True, False):
            app = application(fast=fast)
            for path in paths:
                # FastAPI serves the function, a fast route the coroutine.
                endpoint = _sync(path) if "{" in path else _async(path)
                app.add_api_route(path, endpoint, response_model=str)
            responses.append(await send(app, "GET", "/a/me"))
        assert responses[0] == responses[1]


async def test_dependency_overridden_by_a_test_is_replaced() -> None:
    app = application(fast=True)
    app.dependency_overrides[inner] = lambda: "overridden"

    _, _, body, _ = await send(app, "GET", "/things/7")

    assert body == b'{"id":7,"called":"overridden"}'


async def test_route_added_after_the_first_request_is_served() -> None:
    app = application(fast=True)
    await send(app, "GET", "/things/7")
    app.add_api_route("/later", _async("later"), response_model=str)

    assert (await send(app, "GET", "/later"))[2] == b'"later"'


def _async(text: str) -> Any:
    async def endpoint() -> str:
        return text

    return endpoint


def _sync(text: str) -> Any:
    def endpoint() -> str:
        return text

    return endpoint


async def test_wrapped_handler_gets_a_response_that_it_can_change() -> None:
    class TimedRoute(APIRoute):
        def get_route_handler(self) -> Any:
            handler = super().get_route_handler()

            async def timed_handler(request: Request) -> Response:
                response: Response = await handler(request)
                response.headers["x-timed"] = "yes"
                return response

            return timed_handler

    responses = []
    for fast in (True, False):
        app = application(fast=fast)
        app.router.route_class = TimedRoute
        app.add_api_route("/timed", _async("timed"), response_model=str)
        responses.append(await send(app, "GET", "/timed"))
        assert fast_routes.taken(app) == fast

    assert responses[0] == responses[1]
    assert ("x-timed", "yes") in responses[0][1]  # type: ignore[operator]


async def test_replaced_exception_middleware_sees_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentry replaces the `__call__` of the middlewares: plans may not run outside of it."""
    seen: list[str] = []
    original = ExceptionMiddleware.__call__

    async def instrumented(self: ExceptionMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
        await original(self, scope, receive, send)

    monkeypatch.setattr(ExceptionMiddleware, "__call__", instrumented)
    app = application(fast=True)
    status, *_ = await send(app, "GET", "/things/7")
    assert (status, seen, fast_routes.taken(app)) == (200, ["/things/7"], 1)


async def test_application_between_the_middlewares_and_the_router_sees_every_request() -> None:
    seen: list[str] = []

    class Subclass(FastAPI):
        def build_middleware_stack(self) -> ASGIApp:
            stack = super().build_middleware_stack()
            innermost: Any = stack
            while innermost.app is not self.router:
                innermost = innermost.app

            async def between(scope: Scope, receive: Receive, send: Send) -> None:
                seen.append(scope["path"])
                await self.router(scope, receive, send)

            innermost.app = between
            return stack

    app = Subclass()
    app.state.events = []
    assert fast_routes.install(app)
    app.include_router(router)
    status, *_ = await send(app, "GET", "/things/7")
    assert (status, seen, fast_routes.taken(app)) == (200, ["/things/7"], 1)


def _application_with_route(path: str) -> FastAPI:
    app = FastAPI()
    app.add_api_route(path, _async(path), response_model=str)
    return app


async def test_router_replaced_before_the_first_request_is_fast() -> None:
    app = _application_with_route("/old")
    assert fast_routes.install(app)
    app.router = APIRouter()
    app.add_api_route("/new", _async("new"), response_model=str)
    app.state.events = []

    assert (await send(app, "GET", "/new"))[2] == b'"new"'
    assert (await send(app, "GET", "/old"))[0] == 404
    assert fast_routes.taken(app) == 1


async def test_router_replaced_by_one_with_own_matching_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class OwnRouter(APIRouter):
        async def app(self, scope: Any, receive: Any, send: Any) -> None:
            await super().app(scope, receive, send)

    app = _application_with_route("/old")
    assert fast_routes.install(app)
    app.router = OwnRouter()
    app.add_api_route("/new", _async("new"), response_model=str)
    app.state.events = []

    assert (await send(app, "GET", "/new"))[2] == b'"new"'
    assert fast_routes.taken(app) == 0
    assert [record.message for record in caplog.records if record.name.startswith("app.web.fast_routes")] == [
        "fast routes are off: OwnRouter overrides how FastAPI's router works"
    ]


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_mounted_application_has_fast_routes_unless_off(mode: fast_routes.Mode) -> None:
    outer, inner = _application_with_route("/outer"), _application_with_route("/inner")
    assert fast_routes.install(outer)
    assert fast_routes.install(inner, mode) == (mode == "auto")
    outer.mount("/mounted", inner)
    outer.state.events = []

    assert (await send(outer, "GET", "/outer"))[2] == b'"/outer"'
    assert (await send(outer, "GET", "/mounted/inner"))[2] == b'"/inner"'
    assert (fast_routes.taken(outer), fast_routes.taken(inner)) == (1, 1 if mode == "auto" else 0)


async def test_route_in_a_thread_answers_with_its_result_after_the_deadline() -> None:
    """A cancellation does not end the thread: its effects, and the number of threads, would be unknown."""
    may_end = threading.Event()
    ended: list[int] = []
    app = FastAPI()
    app.add_middleware(ErrorMiddleware)
    app.add_middleware(RequestMiddleware, metrics=HttpMetrics())

    @app.post("/thread")
    def in_thread() -> str:
        may_end.wait(60)
        ended.append(1)
        return "done"

    assert fast_routes.install(app)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        asking = asyncio.create_task(client.post("/thread", headers={"request-timeout": "0.05"}))
        await asyncio.sleep(0.3)  # longer than the deadline
        assert not asking.done()
        may_end.set()
        response = await asking

    assert (response.status_code, response.json(), ended) == (200, "done", [1])
