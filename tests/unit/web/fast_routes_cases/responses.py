"""Responses: models and their options, status codes without a body, response classes, streams, files, NaN, tasks."""

import dataclasses
import enum
import functools
import http
import math
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import ResponseValidationError
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_serializer, field_validator
from pydantic.alias_generators import to_camel
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from tests.support.asgi_comparison import Call, Cases, Journal, New, get, unannotated

CASES = Cases()
T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[..., Any])


class Item(BaseModel):
    name: str = "default"
    price: float | None = None
    tags: list[str] = []


class Secret(Item):
    password: str = "secret"
    token: SecretStr = SecretStr("t")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    first_name: str = "a"
    last_name: str = Field("b", serialization_alias="surname")


class Computed(BaseModel):
    n: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.n

    @field_serializer("n")
    def as_text(self, value: int) -> str:
        return f"<{value}>"


class Wrapper(BaseModel, Generic[T]):
    value: T


class Row(TypedDict):
    id: int
    name: str


@dataclasses.dataclass
class Point:
    x: int
    y: float = math.nan


class Orm:
    def __init__(self) -> None:
        self.name, self.price, self.tags, self._sa_instance_state = "orm", 1, ["a"], object()


class Attributes(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    name: str


class Grade(enum.Enum):
    A = 1


MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "model": (Item, lambda: Item(name="a"), {}),
    "model-from-dict": (Item, lambda: {"name": "a", "other": 1}, {}),
    "model-of-subclass": (Item, Secret, {}),
    "model-invalid": (Item, lambda: {"price": "x"}, {}),
    "model-none": (Item, lambda: None, {}),
    "model-optional": (Item | None, lambda: None, {}),
    "model-list": (list[Item], lambda: [Item(), {"name": "b"}], {}),
    "model-tuple": (tuple[int, str], lambda: [1, "a"], {}),
    "model-generator-value": (list[int], lambda: (n for n in range(3)), {}),
    "model-set": (set[int], lambda: {1}, {}),
    "model-generic": (Wrapper[int], lambda: Wrapper(value=1), {}),
    "model-union": (Item | Camel, Camel, {}),
    "model-camel": (Camel, Camel, {}),
    "model-camel-by-name": (Camel, Camel, {"response_model_by_alias": False}),
    "model-computed": (Computed, lambda: Computed(n=2), {}),
    "model-typed-dict": (Row, lambda: {"id": 1, "name": "a"}, {}),
    "model-typed-dict-invalid": (Row, lambda: {"id": "x"}, {}),
    "model-dataclass": (Point, lambda: Point(1), {}),
    "model-attributes": (Attributes, Orm, {}),
    "model-nan": (Item, lambda: Item(price=math.nan), {}),
    "model-infinity-in-dict": (dict[str, float], lambda: {"a": math.inf}, {}),
    "model-any": (Any, lambda: {"a": Decimal("1.10"), "b": datetime(2026, 1, 2), "c": {1}, "d": Grade.A}, {}),  # noqa: DTZ001
    "model-any-object": (Any, object, {}),
    "model-bytes": (bytes, lambda: b"\xff", {}),
    "model-decimal": (Decimal, lambda: Decimal("1.10"), {}),
    "model-timedelta": (timedelta, lambda: timedelta(days=1, seconds=1.5), {}),
    "model-integer-from-text": (int, lambda: "5", {}),
    "model-integer-invalid": (int, lambda: "x", {}),
    "model-bool-as-int": (int, lambda: True, {}),
    "model-text-surrogate": (str, lambda: "\ud800", {}),
    "model-text-unicode": (str, lambda: "ä\u2028</script>", {}),
    "model-none-annotation": (None, lambda: None, {}),
    "model-none-annotation-with-value": (None, lambda: {"a": 1}, {}),
    "model-constrained": (Annotated[int, Query(le=3)], lambda: 5, {}),
    "include": (Item, Item, {"response_model_include": {"name"}}),
    "exclude": (Item, Item, {"response_model_exclude": {"name"}}),
    "exclude-nested": (list[Item], lambda: [Item()], {"response_model_exclude": {0: {"tags"}}}),
    "exclude-unset": (Item, lambda: Item(price=1), {"response_model_exclude_unset": True}),
    "exclude-unset-of-dict": (Item, lambda: {"price": 1}, {"response_model_exclude_unset": True}),
    "exclude-defaults": (Item, lambda: Item(name="default"), {"response_model_exclude_defaults": True}),
    "exclude-none": (Item, Item, {"response_model_exclude_none": True}),
    "status-201": (Item, Item, {"status_code": 201}),
    "status-enum": (Item, Item, {"status_code": http.HTTPStatus.ACCEPTED}),
    "status-204": (None, lambda: None, {"status_code": 204}),
    "status-204-with-value": (None, lambda: "dropped", {"status_code": 204, "response_model": None}),
    "status-205": (None, lambda: "dropped", {"status_code": 205, "response_model": None}),
    "status-304": (None, lambda: None, {"status_code": 304}),
    "status-100": (None, lambda: None, {"status_code": 100, "response_model": None}),
    "status-599": (str, lambda: "x", {"status_code": 599}),
    "response-model-none": (Item, lambda: Secret(), {"response_model": None}),
    "response-model-other": (Secret, lambda: Secret(), {"response_model": Item}),
    "class-json": (Item, lambda: Item(price=math.nan), {"response_class": JSONResponse}),
    "class-json-plain": (dict[str, Any], lambda: {"a": 1}, {"response_class": JSONResponse}),
    "class-text": (str, lambda: "text", {"response_class": PlainTextResponse}),
    "class-text-with-dict": (dict[str, Any], lambda: {"a": 1}, {"response_class": PlainTextResponse}),
    "class-html": (str, lambda: "<p>ä", {"response_class": HTMLResponse}),
    "class-redirect": (str, lambda: "/elsewhere?a=ä", {"response_class": RedirectResponse}),
    "class-redirect-status": (str, lambda: "/x", {"response_class": RedirectResponse, "status_code": 303}),
    "class-response": (bytes, lambda: b"\xff", {"response_class": Response, "response_model": None}),
    "class-response-with-dict": (Any, lambda: {"a": 1}, {"response_class": Response, "response_model": None}),
    "class-file": (str, lambda: __file__ + ".missing", {"response_class": FileResponse}),
    "class-stream": (Any, lambda: ["a", "b"], {"response_class": StreamingResponse, "response_model": None}),
}


def _returning(value: Any, annotation: Any, *, sync: bool) -> Any:
    async def handler() -> Any:
        return value()

    def sync_handler() -> Any:
        return value()

    function: Any = sync_handler if sync else handler
    if annotation is not _MISSING:
        function.__annotations__["return"] = annotation
        return function
    return unannotated(function)


_MISSING = object()


@CASES.many("returns", {name.replace("-", "_"): get(f"/{name}") for name in MODELS})
def _models(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.exception_handler(ResponseValidationError)
    async def invalid(request: Request, error: ResponseValidationError) -> Response:
        log("invalid", error, error.body)
        return PlainTextResponse("invalid response", 500)

    for name, (annotation, value, options) in MODELS.items():
        app.get(f"/{name}", **options)(_returning(value, annotation, sync=False))
    return app


SYNC_MODELS = ("model", "model-invalid", "model-camel", "model-nan", "class-json", "status-204", "exclude-unset")


@CASES.many("returns_sync", {name.replace("-", "_"): get(f"/{name}") for name in SYNC_MODELS})
def _sync_models(new: New, log: Journal) -> FastAPI:
    app = new()
    for name in SYNC_MODELS:
        annotation, value, options = MODELS[name]
        app.get(f"/{name}", **options)(_returning(value, annotation, sync=True))
    return app


UNANNOTATED: dict[str, Any] = {
    "dict": lambda: {"a": 1, "_sa_state": 2},
    "model": lambda: Secret(price=1),
    "camel": Camel,
    "list": lambda: [Item(), Point(1, 2.0)],
    "none": lambda: None,
    "nan": lambda: {"a": math.nan},
    "dataclass": lambda: Point(1, 2.5),
    "orm": Orm,
    "set": lambda: {1},
    "generator": lambda: (n for n in range(3)),
    "decimal": lambda: [Decimal("1.10"), Decimal(2)],
    "bytes": lambda: b"abc",
    "bytes-invalid": lambda: b"\xff",
    "path": lambda: Path("/a/b"),
    "datetime": lambda: datetime(2026, 1, 2),  # noqa: DTZ001
    "enum": lambda: Grade.A,
    "keys": lambda: {1: "a", None: "b", (1, 2): "c"},
    "object": object,
    "text": lambda: "ä",
    "true": lambda: True,
    "huge": lambda: 10**30,
    "nested-none": lambda: {"a": None, "b": [None]},
    "class": lambda: Item,
    "exception": lambda: ValueError("returned"),
}


@CASES.many("unannotated", {name.replace("-", "_"): get(f"/{name}") for name in UNANNOTATED})
def _unannotated(new: New, log: Journal) -> FastAPI:
    app = new()
    for name, value in UNANNOTATED.items():
        app.get(f"/{name}")(_returning(value, _MISSING, sync=name in {"model", "orm"}))
    return app


class Upper(JSONResponse):
    media_type = "application/x-upper"

    def render(self, content: Any) -> bytes:
        return super().render(content).upper()


class WithoutStatus(PlainTextResponse):
    def __init__(self, content: Any, **options: Any) -> None:
        super().__init__(content, **options)
        self.headers["x-options"] = ",".join(sorted(options))


class Failing(JSONResponse):
    def render(self, content: Any) -> bytes:
        raise LookupError("render")


@CASES.many(
    "class",
    default_of_app=get("/app"),
    default_of_router=get("/router/router"),
    default_of_include=get("/included/included"),
    of_route=get("/route"),
    of_route_in_router=get("/router/route"),
    model_with_app_default=get("/model"),
    model_with_render_error=get("/failing"),
    options=get("/options"),
    returned_json=get("/returned"),
)
def _classes(new: New, log: Journal) -> FastAPI:
    app = new(default_response_class=Upper)
    router, included = APIRouter(default_response_class=PlainTextResponse), APIRouter()

    async def text() -> str:
        return "text"

    app.get("/app")(text)
    router.get("/router")(text)
    included.get("/included")(text)
    app.get("/route", response_class=HTMLResponse)(text)
    router.get("/route", response_class=HTMLResponse)(text)
    app.get("/failing", response_class=Failing)(text)
    app.get("/options", response_class=WithoutStatus)(text)
    app.include_router(router, prefix="/router")
    app.include_router(included, prefix="/included", default_response_class=HTMLResponse)

    @app.get("/model")
    async def model() -> Item:
        return Item(price=math.inf)

    @app.get("/returned")
    async def returned() -> Any:
        return JSONResponse({"a": 1})

    return app


class Own(Response):
    """A response with an ASGI interface of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"own " + scope["path"].encode(), "more_body": False})
        await send({"type": "http.response.trailers", "headers": [(b"x", b"y")]})


@CASES.many(
    "returned",
    json=get("/json"),
    json_nan=get("/json-nan"),
    text=get("/text"),
    redirect=get("/redirect"),
    own=get("/own"),
    without_headers=get("/empty"),
    memoryview=get("/memoryview"),
    stream=get("/stream"),
    stream_old_server=Call("GET /stream", spec_version="2.3"),
    stream_sync=get("/stream-sync"),
    stream_fails=get("/stream-fails"),
    stream_client_gone=Call("GET /stream", send_fails_at=2),
    stream_client_gone_at_start=Call("GET /stream", send_fails_at=0),
    stream_disconnect_old_server=Call("GET /stream-endless", after="disconnect", spec_version="2.3"),
    client_gone=Call("GET /json", send_fails_at=0),
    client_gone_in_the_body=Call("GET /json", send_fails_at=1),
    file=get("/file"),
    file_missing=get("/file-missing"),
    file_range=get("/file", range="bytes=0-3"),
    file_head=Call("HEAD /file"),
    file_pathsend=Call("GET /file", scope={"extensions": {"http.response.pathsend": {}}}),
    background=get("/background"),
    background_fails=get("/background-fails"),
    early_hints=Call("GET /hints", scope={"extensions": {"http.response.early_hint": {}, "http.response.push": {}}}),
    annotated=get("/annotated"),
    annotated_returns_dict=get("/annotated-dict"),
    annotated_any=get("/any"),
    ignores_status=get("/status"),
    ignores_model=get("/model"),
    same_object_twice=get("/constant"),
    status_none=get("/status-none"),
    cookie=get("/cookie"),
    asgi_callable=get("/asgi"),
)
def _returned(new: New, log: Journal) -> FastAPI:
    app = new()
    path = Path(__file__).with_name("__init__.py")

    async def watch() -> AsyncIterator[None]:
        yield
        log("exit")

    @app.exception_handler(RuntimeError)
    async def runtime(request: Request, error: RuntimeError) -> Response:
        log("handler", str(error).rpartition("/")[2])
        return PlainTextResponse("handled", 404)

    def route(target: str) -> Callable[[Handler], Handler]:
        return app.get(target, dependencies=[Depends(watch)], response_model=None)

    @route("/json")
    async def json() -> Response:
        return JSONResponse({"a": 1}, 203, {"x-a": "b"})

    @route("/json-nan")
    async def json_nan() -> Response:
        return JSONResponse(math.nan)

    @route("/text")
    def text() -> Response:
        return PlainTextResponse("ä", media_type="text/x")

    @route("/redirect")
    async def redirect() -> Response:
        return RedirectResponse("/x", background=BackgroundTask(log, "task"))

    @route("/own")
    async def own() -> Response:
        return Own()

    @route("/empty")
    async def empty() -> Response:
        response = Response()
        response.raw_headers = []
        return response

    @route("/memoryview")
    async def view() -> Response:
        return Response(memoryview(b"view"))

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in (b"a", b"b", b"c"):
            log("chunk", chunk)
            yield chunk

    @route("/stream")
    async def stream() -> Response:
        return StreamingResponse(chunks(), 202, background=BackgroundTask(log, "task"))

    @route("/stream-sync")
    async def stream_sync() -> Response:
        return StreamingResponse(iter(["a", "b"]))

    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise LookupError("stream")

    @route("/stream-fails")
    async def stream_fails() -> Response:
        return StreamingResponse(failing())

    async def endless() -> AsyncIterator[bytes]:
        import anyio

        yield b"a"
        await anyio.sleep_forever()

    @route("/stream-endless")
    async def stream_endless() -> Response:
        return StreamingResponse(endless())

    app.api_route("/file", methods=["GET", "HEAD"], response_model=None)(
        _returning(lambda: FileResponse(path, headers={"last-modified": "x", "etag": "y"}), Any, sync=False)
    )

    @route("/file-missing")
    async def file_missing() -> Response:
        return FileResponse("/nowhere/missing")

    @route("/background")
    async def background() -> Response:
        return Response(background=BackgroundTask(log, "task"))

    async def fail() -> None:
        raise LookupError("task")

    @route("/background-fails")
    async def background_fails() -> Response:
        return Response(background=BackgroundTask(fail))

    @route("/hints")
    async def hints(request: Request) -> str:
        await request.send_early_hints("</a.css>")
        await request.send_push_promise("/b.css")
        return "ok"

    @app.get("/annotated")
    async def annotated() -> JSONResponse:
        return JSONResponse("a")

    @app.get("/annotated-dict")
    async def annotated_dict() -> JSONResponse:
        return {"a": 1}  # type: ignore[return-value]

    @app.get("/any")
    async def anything() -> Any:
        return PlainTextResponse("any")

    @app.get("/status", status_code=201)
    async def status() -> Any:
        return PlainTextResponse("own status")

    @app.get("/model", response_model=Item)
    async def model() -> Any:
        return JSONResponse({"not": "an item"})

    constant = JSONResponse("constant")

    @app.get("/constant")
    async def of_constant() -> Any:
        log("before", constant.background)
        return constant

    @app.get("/status-none")
    async def status_none() -> Any:
        response = Response("x")
        response.status_code = None  # type: ignore[assignment]
        return response

    @app.get("/cookie")
    async def cookie() -> Any:
        response = JSONResponse("c")
        response.set_cookie("a", "b", httponly=True)
        return response

    @app.get("/asgi")
    async def asgi() -> Any:
        return functools.partial(PlainTextResponse("x"))

    return app


@CASES.many(
    "stream",
    slow="it streams its response",
    jsonl=get("/jsonl"),
    jsonl_sync=get("/jsonl-sync"),
    jsonl_invalid=get("/jsonl-invalid"),
    jsonl_fails=get("/jsonl-fails"),
    jsonl_parameter_invalid=get("/jsonl?n=x"),
    sse=get("/sse"),
    sse_sync=get("/sse-sync"),
    sse_events=get("/sse-events"),
    sse_fails=get("/sse-fails"),
    sse_dependency=get("/sse-dependency"),
    raw=get("/raw"),
    raw_sync=get("/raw-sync"),
)
def _streams(new: New, log: Journal) -> FastAPI:
    app = new()

    async def watch() -> AsyncIterator[None]:
        yield
        log("exit")

    @app.get("/jsonl", dependencies=[Depends(watch)])
    async def jsonl(n: int = 2) -> AsyncIterator[Item]:
        for _ in range(n):
            log("item")
            yield Item()

    @app.get("/jsonl-sync")
    def jsonl_sync() -> Iterator[dict[str, float]]:
        yield {"a": math.nan}

    @app.get("/jsonl-invalid")
    async def jsonl_invalid() -> AsyncIterator[int]:
        yield "x"  # type: ignore[misc]

    @app.get("/jsonl-fails", dependencies=[Depends(watch)])
    async def jsonl_fails() -> AsyncIterator[int]:
        yield 1
        raise LookupError("stream")

    @app.get("/sse", response_class=EventSourceResponse)
    async def sse(response: Response) -> AsyncIterator[Item]:
        response.headers["x-a"] = "b"
        yield Item()

    @app.get("/sse-sync", response_class=EventSourceResponse)
    def sse_sync() -> Iterator[int]:
        yield from (1, 2)

    @app.get("/sse-events", response_class=EventSourceResponse)
    async def sse_events() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(data={"a": 1}, event="e", id="1")
        yield ServerSentEvent(raw_data="raw", comment="c")

    @app.get("/sse-fails", response_class=EventSourceResponse)
    async def sse_fails() -> AsyncIterator[int]:
        yield 1
        raise LookupError("stream")

    @app.get("/sse-dependency", response_class=EventSourceResponse, dependencies=[Depends(watch)])
    async def sse_dependency() -> AsyncIterator[int]:
        yield 1

    @app.get("/raw", response_class=StreamingResponse)
    async def raw() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    @app.get("/raw-sync", response_class=StreamingResponse)
    def raw_sync() -> Iterator[str]:
        yield "a"

    return app


@CASES.one("response-validator-order", "GET /")
def _validators_of_the_response(new: New, log: Journal) -> FastAPI:
    """A response model validates once, also a model instance of the same class."""
    app = new()

    class Noted(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def note(cls, value: int) -> int:
            log("validated", value)
            return value

    @app.get("/")
    async def handler() -> Noted:
        return Noted(n=1)

    return app


@CASES.many("thread", sync=get("/sync"), asynchronous=get("/async"), dependency=get("/dependency"))
def _threads(new: New, log: Journal) -> FastAPI:
    """The kind of thread in which handlers, dependencies and validators of responses run."""
    import threading

    app = new()

    def here() -> str:
        return "main" if threading.current_thread() is threading.main_thread() else "worker"

    class Placed(BaseModel):
        where: str

        @field_validator("where")
        @classmethod
        def note(cls, value: str) -> str:
            log("validated in", here())
            return value

    @app.get("/sync")
    def sync() -> Placed:
        return {"where": here()}  # type: ignore[return-value]

    @app.get("/async")
    async def asynchronous() -> Placed:
        return {"where": here()}  # type: ignore[return-value]

    def sync_dependency() -> str:
        return here()

    async def async_dependency() -> str:
        return here()

    @app.get("/dependency")
    async def dependency(
        a: Annotated[str, Depends(sync_dependency)], b: Annotated[str, Depends(async_dependency)]
    ) -> list[str]:
        return [a, b]

    return app
