"""Concurrent requests, telemetry without an SDK, and cases from reports."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import fastapi.routing
import pytest
import starlette.routing
from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.telemetry import get_telemetry_data
from opentelemetry import trace
from pydantic import BaseModel
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from tests.support.asgi_comparison import NOTE, Call, Cases, Drive, Journal, New, exchange, get, post, together

CASES = Cases()


def _one_then_other(first: Call, second: Call, *, until: str) -> Drive:
    """Start the second request when the first has set the event `until`, and wait for both."""

    async def drive(app: ASGIApp, journal: Journal) -> None:
        task = asyncio.create_task(exchange(app, first, journal))
        await journal.event(until).wait()
        await asyncio.create_task(exchange(app, second, journal))
        await task

    return drive


@CASES.one("interleaved", drive=_one_then_other(get("/1?wait=1"), get("/2"), until="entered"))
def _interleaved(new: New, log: Journal) -> FastAPI:
    """The second request runs completely while the first waits in its handler."""
    app = new()

    async def dependency(request: Request, n: int) -> AsyncIterator[int]:
        NOTE.set(str(n))
        yield n
        log("exit", n, NOTE.get(), request.path_params)

    @app.get("/{n}")
    async def handler(n: int, d: Annotated[int, Depends(dependency)], response: Response, wait: bool = False) -> Any:
        if wait:
            log.event("entered").set()
            await log.event("leave").wait()
        else:
            log.event("leave").set()
        response.headers["x-n"] = str(n)
        log("handler", n, d, NOTE.get())
        return [n, d]

    return app


@CASES.one(
    "semaphore",
    drive=_one_then_other(get("/?wait=1"), get("/waits"), until="entered"),
)
def _semaphore(new: New, log: Journal) -> FastAPI:
    """`max_concurrency=1`: the second request enters the dependency when the first has left it."""
    app = new()

    async def exclusive() -> AsyncIterator[None]:
        log("enter")
        yield
        log("exit")

    one = Depends(exclusive, max_concurrency=1)

    async def before() -> None:
        log.event("leave").set()

    @app.get("/", dependencies=[one])
    async def handler(wait: bool = False) -> str:
        log.event("entered").set()
        await log.event("leave").wait()
        return "first"

    @app.get("/waits", dependencies=[Depends(before), one])
    async def waits() -> str:
        return "second"

    return app


@CASES.one("semaphore-of-a-function-dependency", drive=together(get("/"), get("/")))
def _function_semaphore(new: New, log: Journal) -> FastAPI:
    app = new()
    running = 0

    async def limited() -> int:
        nonlocal running
        running += 1
        log("running", running)
        await asyncio.sleep(0)
        running -= 1
        return running

    @app.get("/")
    async def handler(n: Annotated[int, Depends(limited, max_concurrency=1)]) -> int:
        return n

    return app


@CASES.one(
    "cancelled-while-another-runs",
    drive=_one_then_other(Call("GET /1", cancels=True), get("/2"), until="entered"),
)
def _cancelled_next_to(new: New, log: Journal) -> FastAPI:
    app = new()

    async def exclusive() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)
            log("exit")

    @app.get("/{n}", dependencies=[Depends(exclusive, max_concurrency=2)])
    async def handler(n: int) -> str:
        if n == 1:
            log.event("entered").set()
            await asyncio.Event().wait()
        log.cancel()
        return "second"

    return app


@CASES.one("same-request-many-times", *[get(f"/?n={n % 3}") for n in range(6)])
def _many_times(new: New, log: Journal) -> FastAPI:
    """State that leaks from one request into the next shows up here."""
    app = new()

    async def grow(values: Annotated[list[int], Query()] = [1]) -> list[int]:  # noqa: B006
        values.append(len(values))
        return values

    @app.get("/")
    async def handler(n: int, values: Annotated[list[int], Depends(grow)], response: Response, request: Request) -> Any:
        response.headers["x-n"] = str(n)
        if n == 1:
            response.status_code = 201
        if n == 2:
            raise HTTPException(400)
        return [values, request.scope["state"]]

    return app


class Proxy:
    """A function wrapper that claims to be the function, as those of wrapt do."""

    def __init__(self, wrapped: Any, note: Callable[[], None]) -> None:
        self.__dict__.update(wrapped=wrapped, note=note)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["wrapped"], name)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.__dict__["note"]()
        return self.__dict__["wrapped"](*args, **options)


def _wraps(wrapped: Any, note: Callable[[], None]) -> Any:
    @functools.wraps(wrapped)
    def wrapper(*args: Any, **options: Any) -> Any:
        note()
        return wrapped(*args, **options)

    return wrapper


def _patched(owner: Any, name: str, wrap: Callable[..., Any]) -> Drive:
    """Wrap a function of FastAPI before the first request, as profilers and instrumentations do."""

    async def drive(app: ASGIApp, journal: Journal) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, wrap(getattr(owner, name), lambda: journal("patched", name)))
            for target in ("/?n=1", "/included?n=1"):
                await exchange(app, get(target), journal)

    return drive


PATCHED: tuple[tuple[Any, str], ...] = (
    *((fastapi.routing, name) for name in ("solve_dependencies", "run_endpoint_function", "serialize_response")),
    *((fastapi.routing.APIRoute, name) for name in ("matches", "handle")),
    *((starlette.routing.Route, name) for name in ("matches", "handle")),
    *((fastapi.routing.APIRouter, name) for name in ("matches", "handle")),
)


def _patchable(new: New, log: Journal) -> FastAPI:
    app = new()

    async def dependency(n: int) -> int:
        return n

    async def handler(n: Annotated[int, Depends(dependency)]) -> int:
        return n

    router = APIRouter()
    app.get("/")(handler)
    router.get("/included")(handler)
    app.include_router(router)
    return app


for _owner, _name in PATCHED:
    for _wrap in (_wraps, Proxy):
        CASES.one(
            f"patched-{_owner.__name__}-{_name}-{_wrap.__name__}",
            drive=_patched(_owner, _name, _wrap),
            slow="a function of FastAPI was replaced",
        )(_patchable)


class RecordedSpan(trace.NonRecordingSpan):
    """A span that notes what is done to it."""

    def __init__(self, name: str, log: Journal, number: int) -> None:
        super().__init__(trace.SpanContext(1, number, False, trace.TraceFlags(1)))
        self.name, self.log = name, log

    def is_recording(self) -> bool:
        return True

    def end(self, end_time: int | None = None) -> None:
        self.log("span end", self.name)

    def set_attribute(self, key: str, value: Any) -> None:
        self.log("span attribute", self.name, key, value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.log("span attributes", self.name, attributes)

    def update_name(self, name: str) -> None:
        self.log("span name", self.name, name)
        self.name = name

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.log("span status", self.name, str(status), description)

    def record_exception(self, exception: BaseException, *args: Any, **options: Any) -> None:
        self.log("span exception", self.name, exception)


class RecordingTracer(trace.Tracer):
    """A tracer whose spans go to the journal."""

    def __init__(self, log: Journal) -> None:
        self.log, self.count = log, 0

    def start_span(self, name: str, context: Any = None, *args: Any, **options: Any) -> trace.Span:
        self.count += 1
        parent = trace.get_current_span(context)
        self.log("span start", name, getattr(parent, "name", None), str(options.get("kind")), options.get("attributes"))
        return RecordedSpan(name, self.log, self.count)

    @contextmanager
    def start_as_current_span(  # type: ignore[override]
        self, name: str, *args: Any, **options: Any
    ) -> Iterator[trace.Span]:
        span = self.start_span(name, *args, **options)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield span


class RecordingProvider(trace.TracerProvider):
    """A tracer provider of this test, as the project installs no OpenTelemetry SDK."""

    def __init__(self, log: Journal) -> None:
        self.tracer = RecordingTracer(log)

    def get_tracer(self, *args: Any, **options: Any) -> trace.Tracer:
        return self.tracer


TELEMETRY: dict[str, Call] = {
    "ok": get("/items/1"),
    "sync": get("/sync"),
    "invalid": get("/items/x"),
    "body": post("/body", b'{"name": "a"}'),
    "invalid-body": post("/body", b"{"),
    "handled": get("/http"),
    "error": get("/error"),
    "not-found": get("/none"),
    "method": Call("PUT /items/1"),
    "background": get("/background"),
    "dependency": get("/dependency"),
    "dependency-fails": get("/dependency?fail=1"),
    "response-invalid": get("/response-invalid"),
    "included": get("/r/items/1"),
    "mounted": get("/sub/items/1"),
    "returned": get("/returned"),
    "client-gone": Call("GET /items/1", send_fails_at=0),
    "disconnect": Call("POST /body", messages=[{"type": "http.disconnect"}]),
    "parent": get("/items/1", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
}


def _telemetry(new: New, log: Journal) -> FastAPI:
    app = new(telemetry={"tracer_provider": RecordingProvider(log), "metrics": False, "logs": False})
    sub, router = new(), APIRouter()

    def data(where: str) -> None:
        seen = get_telemetry_data()
        log("data", where, seen and (seen.body, seen.values, seen.errors, type(seen.request)))

    async def items(n: int, q: Annotated[int, Query()] = 5) -> int:
        data("handler")
        return n

    for each in (app, sub, router):
        each.get("/items/{n}")(items)
    app.include_router(router, prefix="/r")
    app.mount("/sub", sub)

    @app.get("/sync")
    def sync() -> int:
        data("sync")
        return 1

    class Item(BaseModel):
        name: str

    @app.post("/body")
    async def body(item: Item, request: Request) -> Item:
        data("body")
        seen = get_telemetry_data()
        log("same request", seen is not None and seen.request is request)
        return item

    @app.get("/http")
    async def http() -> None:
        raise HTTPException(503)

    @app.get("/error")
    async def error() -> None:
        raise KeyError("error")

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(data, "background")
        return "ok"

    async def dependency(fail: bool = False) -> AsyncIterator[int]:
        data("dependency")
        if fail:
            raise KeyError("dependency")
        yield 1
        data("exit")

    @app.get("/dependency")
    async def with_dependency(n: Annotated[int, Depends(dependency)]) -> int:
        return n

    @app.get("/response-invalid")
    async def response_invalid() -> int:
        return "x"  # type: ignore[return-value]

    @app.get("/returned")
    async def returned() -> Any:
        return PlainTextResponse("returned")

    return app


CASES.many("telemetry", {name.replace("-", "_"): call for name, call in TELEMETRY.items()})(_telemetry)


@CASES.one(
    "telemetry-of-an-inner-application",
    "GET /x",
    slow="not slow: both applications count",
    fast=2,
    differs="FastAPI gives the inner application's spans to the outer application's tracer",
)
def _inner_telemetry(new: New, log: Journal) -> FastAPI:
    """A handler calls an application without telemetry in process, as a client with an ASGI transport does."""
    app, inner = new(telemetry={"tracer_provider": RecordingProvider(log), "metrics": False, "logs": False}), new()

    @inner.get("/y")
    async def y() -> int:
        return 1

    @app.get("/x")
    async def x() -> int:
        await exchange(inner, get("/y"), Journal())
        return 2

    return app


@CASES.one("telemetry-without-operation-spans", "GET /x")
def _no_operation_spans(new: New, log: Journal) -> FastAPI:
    provider = RecordingProvider(log)
    app = new(telemetry={"tracer_provider": provider, "operation_spans": False, "metrics": False, "logs": False})

    @app.get("/x")
    async def x() -> int:
        return 1

    return app


@CASES.one("telemetry-excluded", "GET /x")
def _excluded(new: New, log: Journal) -> FastAPI:
    app = new(telemetry={"tracer_provider": RecordingProvider(log), "exclude": lambda scope: True})

    @app.get("/x")
    async def x(n: Annotated[int, Body()] = 1) -> int:
        return n

    return app
