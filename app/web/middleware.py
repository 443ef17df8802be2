"""Pure ASGI middleware. A request passes through it in the order of this file."""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from random import getrandbits
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observability.http_metrics import HttpMetrics
from app.observability.logging import REQUESTS, request_id, request_scope
from app.web.problems import http_problem, internal_error

logger = logging.getLogger(REQUESTS)

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}", re.ASCII)
_PROBES = frozenset({"/livez", "/readyz"})

# What a browser needs to hear of an API: guess no types, appear in no frame, run nothing, tell nobody the path.
_SECURITY_OF_DOCS: Sequence[tuple[bytes, bytes]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
# Not for /docs, whose page has scripts and styles.
_SECURITY: Sequence[tuple[bytes, bytes]] = (
    *_SECURITY_OF_DOCS,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_OURS = frozenset({b"x-request-id", *(name for name, _ in _SECURITY)})


def route_of(scope: Mapping[str, Any]) -> str:
    """The template of the route that a request has taken. What no route has, everything unknown shares."""
    if (route := scope.get("route")) is not None:  # FastAPI's
        return str(route.path_format)
    # Starlette's plain routes, /docs among them, leave no trace but what they call; they have no parameters.
    return str(scope["path"]) if "endpoint" in scope else "unmatched"


def _header(scope: Scope, name: bytes) -> str:
    """The first of this name, in lower case; empty where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return ""


class RequestMiddleware:
    """Gives a request its id, its place in the metrics and its line in the log, and its answer what browsers look for.

    One layer for all of them: each that looks at what is sent costs a request two more coroutines and a closure.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = perf_counter()
        callers = _header(scope, b"x-request-id")
        # Told apart, not guessed: no secret, so no system call for it. Python seeds it anew in each forked worker.
        identity = callers if _SANE_REQUEST_ID.fullmatch(callers) else f"{getrandbits(128):032x}"
        id_token, scope_token = request_id.set(identity), request_scope.set(scope)
        self.metrics.started()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ())]
                added = _SECURITY_OF_DOCS if scope["path"].startswith("/docs") else _SECURITY
                if not _OURS.isdisjoint([name for name, _ in headers]):  # the application has its own opinion
                    headers = [header for header in headers if header[0] != b"x-request-id"]
                    there = {name for name, _ in headers}
                    added = [header for header in added if header[0] not in there]
                message["headers"] = [*headers, *added, (b"x-request-id", identity.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            status = status or 499  # the server is stopping, and this took too long
            raise
        finally:
            seconds = perf_counter() - started
            self.metrics.finished(scope["method"], route_of(scope), status, seconds)
            self._log(scope, status, seconds)
            request_scope.reset(scope_token)
            request_id.reset(id_token)

    @staticmethod
    def _log(scope: Scope, status: int, seconds: float) -> None:
        level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
        if logger.isEnabledFor(level):
            # As it was sent: decoded, it could hold a line break and write a line of its own.
            path = scope["raw_path"].decode("ascii", "backslashreplace")
            method, milliseconds = scope["method"], round(seconds * 1000, 1)
            # As logger.log() would, without looking up the stack for who called it.
            record = logging.LogRecord(
                logger.name, level, __file__, 0, "%s %s %d %.1f ms", (method, path, status, milliseconds), None
            )
            record.__dict__.update(method=method, path=path, status=status, duration_ms=milliseconds)
            logger.handle(record)


class ErrorMiddleware:
    """Gives an answer to an unhandled exception. FastAPI's own handler for those is outside of every middleware, so its
    answer would have no id, and a browser would not let a page of another origin read it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            logger.exception("unhandled exception in %s %r", scope["method"], scope["path"])
            if started:  # half an answer is out; only breaking the connection can tell the client
                raise
            await internal_error(scope)(scope, receive, send)


class BodyLimitMiddleware:
    """Refuses a request body of more than `max_bytes` with 413: at once if it is announced, else when it gets there.

    Starlette's own limit answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        announced = _header(scope, b"content-length")
        if not announced and not _header(scope, b"transfer-encoding"):  # there is none: RFC 9112, 6.3
            await self.app(scope, receive, send)
            return
        if announced.isdecimal() and int(announced) > self.max_bytes:
            await http_problem(scope, self._too_large)(scope, receive, send)
            return

        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large  # FastAPI lets it through to the problem handler
            return message

        await self.app(scope, receive_counted, send)

    @property
    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"A request body may have {self.max_bytes} bytes at most.")
