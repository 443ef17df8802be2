"""Middlewares of FastAPI that a request passes by: an exception and an instrumentation see what plain FastAPI does."""

from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observability.http_metrics import HttpMetrics
from app.web import fast_routes
from app.web.fast_routes.shortcuts import OuterShortcut
from app.web.middleware import RequestMiddleware


class _Fails:
    """Middleware that fails before the response, in its middle, or after it."""

    def __init__(self, app: ASGIApp, when: str) -> None:
        self.app = app
        self.when = when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def failing_send(message: Message) -> None:
            await send(message)
            if self.when == "inside" and message["type"] == "http.response.start":
                raise LookupError(self.when)

        if self.when == "before":
            raise LookupError(self.when)
        await self.app(scope, receive, failing_send)
        if self.when == "after":
            raise LookupError(self.when)


def _application(*, when: str = "never", fast: bool = True, **options: Any) -> FastAPI:
    app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False}, **options)

    async def hello() -> str:
        return "hello"

    app.get("/hello")(hello)
    app.add_middleware(_Fails, when=when)
    app.add_middleware(RequestMiddleware, metrics=HttpMetrics())
    if fast:
        assert fast_routes.install(app)
    return app


async def _exchange(app: FastAPI) -> list[Any]:
    """Return the messages of a request, and the exception that left the application."""
    events: list[Any] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        events.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/hello",
        "raw_path": b"/hello",
        "query_string": b"",
        "headers": [(b"x-request-id", b"one")],
    }
    try:
        await app(scope, receive, send)
    except LookupError as error:
        events.append(repr(error))
    return events


@pytest.mark.parametrize("debug", [False, True], ids=["production", "debug"])
@pytest.mark.parametrize("has_handler", [False, True], ids=["default", "handler"])
@pytest.mark.parametrize("when", ["before", "inside", "after", "never"])
async def test_exception_outside_of_the_routes_is_handled_as_in_fastapi(
    when: str, *, has_handler: bool, debug: bool
) -> None:
    outcomes = []
    for fast in (True, False):
        app = _application(when=when, fast=fast, debug=debug)
        handled: list[str] = []

        async def handler(request: Request, error: Exception, handled: list[str] = handled) -> PlainTextResponse:
            handled.append(repr(error))
            return PlainTextResponse("handled", 500)

        if has_handler:
            app.add_exception_handler(Exception, handler)
        events = await _exchange(app)
        if debug and when == "before":  # the traceback names the lines that it passed through
            events = [events[0]["status"], *events[2:]]
        outcomes.append((events, handled))
        assert isinstance(app.middleware_stack, OuterShortcut) == fast

    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0]


async def test_replaced_outermost_middleware_sees_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentry replaces the `__call__` of the middlewares."""
    seen: list[str] = []
    original = ServerErrorMiddleware.__call__

    async def instrumented(self: ServerErrorMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await original(self, scope, receive, send)

    monkeypatch.setattr(ServerErrorMiddleware, "__call__", instrumented)

    assert (await _exchange(_application()))[0]["status"] == 200
    assert seen == ["/hello"]


async def test_application_with_a_body_limit_has_no_outer_shortcut() -> None:
    app = _application(max_body_size=100)

    assert (await _exchange(app))[0]["status"] == 200
    assert not isinstance(app.middleware_stack, OuterShortcut)


async def test_application_with_another_outermost_middleware_has_no_outer_shortcut() -> None:
    app = _application()
    app.add_middleware(_Fails, when="never")

    assert (await _exchange(app))[0]["status"] == 200
    assert not isinstance(app.middleware_stack, OuterShortcut)
