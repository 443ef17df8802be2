"""Pure ASGI middleware. A request passes through the classes in the order of this file."""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from inspect import iscoroutinefunction
from random import getrandbits
from time import perf_counter
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.database.write_session import WriteSession, open_write_session
from app.errors import DeadlineExceeded
from app.observability.http_metrics import HttpMetrics, count_cancelled_request
from app.observability.logging import REQUEST_LOGGER
from app.observability.request_log import RequestLog
from app.request_context import request_id, request_scope
from app.request_deadline import cancelled_write
from app.web.cancellation import deadline_in, requested_timeout
from app.web.operation import Exchange, exchange_of, route_template, selected_operation
from app.web.problems import WEBSOCKET_STATE, answer_websocket, http_problem, internal_error, temporary_problem

logger = logging.getLogger(REQUEST_LOGGER)

_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
_PROBES = frozenset({"/livez", "/readyz"})

# For browsers: no content sniffing, no frames, no referrer. The page at /docs needs its own scripts and styles.
_DOCS_SECURITY_HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_SECURITY_HEADERS: Sequence[tuple[bytes, bytes]] = (
    *_DOCS_SECURITY_HEADERS,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_ADDED_NAMES = frozenset({b"x-request-id", *(name for name, _ in _SECURITY_HEADERS)})


def _publish_behind(prefix: str, scope: Scope) -> None:
    """Give the scope the path that clients use, as ASGI defines it. The proxy may have removed the prefix from it."""
    scope["root_path"] = prefix
    if not f"{scope['path']}/".startswith(f"{prefix}/"):
        scope["path"] = prefix + scope["path"]


def _behind_prefix(header: tuple[bytes, bytes], prefix: str) -> tuple[bytes, bytes]:
    """Return the header; a `Location` within the application with the prefix under which a proxy publishes it.

    Only of a 201, which names the created resource. Redirects of FastAPI have the prefix already.
    """
    name, value = header
    start = prefix.encode() + b"/"
    if name.lower() != b"location" or not value.startswith(b"/") or value.startswith((b"//", start)):
        return header
    return name, prefix.encode() + value


def _request_id(scope: Scope) -> str:
    """Return the id that the client sent, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _VALID_REQUEST_ID.fullmatch(value):
                return str(value, "ascii")
            break
    return _new_request_id()


def _new_request_id() -> str:
    # A request id is unique, not secret, so it needs no system call for randomness. Python reseeds after a fork.
    return getrandbits(128).to_bytes(16).hex()


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1"})
# In the OpenAPI document of an operation: the limit of its request body, in bytes.
BODY_LIMIT = "x-max-body-bytes"


def body_limit(max_bytes: int) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that takes request bodies of up to `max_bytes`."""
    return {BODY_LIMIT: max_bytes}


_LATE_COMMIT = (
    "The response would be sent before its transaction is committed, so the client could read a success that is not"
    ' stored. A dependency around Database.write() needs scope="function" (app/web/deps.py).'
)


def _refuse_response(session: WriteSession, status: int) -> None:
    """Refuse to commit a session that is open when a response begins. Raise RuntimeError instead of sending a success.

    `check_routes()` finds most of such routes at startup. An error response is sent: the transaction is rolled back.
    """
    session.refuse_commit(_LATE_COMMIT)
    if status < 400:
        raise RuntimeError(_LATE_COMMIT)


class RequestMiddleware:
    """Assigns the request id, records metrics, logs the request and adds security headers to the response.

    One class for all of this: every middleware that wraps `send` adds two coroutines and a closure to a request.
    """

    records_exchange = True  # for `app.web.fast_routes.shortcuts`

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, log: RequestLog | None = None, root_path: str = "") -> None:
        self.app = app
        self._root_path = root_path
        self.metrics = metrics
        self.log = log or RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event stream."""
        if self._root_path and scope["type"] != "lifespan":
            _publish_behind(self._root_path, scope)
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return

        started = perf_counter()
        exchange = Exchange(scope, _request_id(scope))
        path: str = scope["path"].removeprefix(exchange.root_path)
        id_token, scope_token = request_id.set(exchange.request_id), request_scope.set(scope)
        callers_session = open_write_session.get()  # of a test that calls the application inside a transaction
        self.metrics.started()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send(message)
                if not message.get("more_body"):
                    exchange.ended = perf_counter()
                return
            if message["type"] == "http.response.start":
                session = open_write_session.get()
                if session is not None and session is not callers_session and session.is_open:
                    _refuse_response(session, message["status"])
                headers = [*message.get("headers", ())]
                is_docs = path.startswith("/docs")
                added = _DOCS_SECURITY_HEADERS if is_docs else _SECURITY_HEADERS
                if not _ADDED_NAMES.isdisjoint([name for name, _ in headers]):  # the route's own headers win
                    headers = [header for header in headers if header[0] != b"x-request-id"]
                    present = {name for name, _ in headers}
                    added = [header for header in added if header[0] not in present]
                if exchange.root_path and message["status"] == 201:
                    headers = [_behind_prefix(header, exchange.root_path) for header in headers]
                message["headers"] = [*headers, *added, (b"x-request-id", exchange.request_id.encode())]
                exchange.status = message["status"]
            await send(message)

        try:
            # Starlette's routes also match a path with a newline at its end, which a rule of a proxy may not.
            if not path.isprintable() and _CONTROL.search(path):
                await http_problem(scope, HTTPException(404))(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            exchange.status = exchange.status or 499  # the server stopped before the response began
            raise
        finally:
            seconds = (exchange.ended or perf_counter()) - started  # without background tasks
            route = route_template(scope)
            self.metrics.finished(scope["method"], route, exchange.status, seconds)
            level = logging.DEBUG if path in _PROBES else logging.INFO
            self.log.write(level, scope["method"], scope["raw_path"], route, exchange.status, seconds)
            request_scope.reset(scope_token)
            request_id.reset(id_token)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a lifespan or a WebSocket. The response to a WebSocket's handshake gets the headers too."""
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, _request_id(scope))
        id_token = request_id.set(exchange.request_id)

        async def send_with_headers(message: Message) -> None:
            added = _HANDSHAKE_HEADERS.get(message["type"])
            if added is not None:
                headers = [each for each in message.get("headers", ()) if each[0].lower() != b"x-request-id"]
                present = {name.lower() for name, _ in headers}
                headers += [header for header in added if header[0] not in present]
                message["headers"] = [*headers, (b"x-request-id", exchange.request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            request_id.reset(id_token)


# Added to the response to the handshake of a WebSocket, which is an upgrade or a refusal.
_HANDSHAKE_HEADERS = {"websocket.accept": (), "websocket.http.response.start": _SECURITY_HEADERS}


class HeadMiddleware:
    """Answers HEAD wherever GET is: with the headers of GET's answer. A route of the application for HEAD wins.

    FastAPI's routes refuse HEAD. Only then is the request repeated as GET, so other requests cost nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event stream."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}  # before a router changes the scope
        is_refused = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start":
                is_refused = message["status"] == 405 and _allows_get(message)
            if not is_refused:
                await send(message)

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app(scope, receive, send_unless_refused)
        if is_refused:
            try:
                await self.app(as_get, receive, send_without_body)
            finally:
                scope.update(as_get, method="HEAD")  # the route, for metrics and logs


def _allows_get(message: Message) -> bool:
    allowed = b", ".join(value for name, value in message.get("headers", ()) if name == b"allow")
    return b"GET" in allowed.replace(b" ", b"").split(b",")


class ErrorMiddleware:
    """Answers an unhandled exception with a problem response, or with the application's own handler of Exception.

    A request that was cancelled because its client has left ends here without a response. One that was cancelled at its
    deadline gets a problem.

    FastAPI handles such an exception outside every middleware. Its response would have no request id and no CORS
    headers, so a browser would hide it from a page of another origin.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event stream."""
        if scope["type"] != "http":
            await self._pass_on(scope, receive, send)
            return

        application = scope.get("app")  # a mount replaces it
        # RequestMiddleware notes how far the response is. It may be missing around a mounted application.
        exchange = exchange_of(scope)
        if exchange is None:
            _, send = _recorded(scope, send)
            token = request_scope.set(scope)
            try:
                await self(scope, receive, send)  # finds the exchange now
            finally:
                request_scope.reset(token)
            return
        timeout = None
        if exchange.task is None:  # the outermost of these middlewares: mounted applications have their own
            exchange.task = asyncio.current_task()
            try:
                timeout = requested_timeout(scope)
            except ValueError as error:
                await http_problem(scope, HTTPException(400, str(error)))(scope, receive, send)
                return
        try:
            if timeout is None:
                await self.app(scope, receive, send)
            else:
                await self._within(timeout, exchange, scope, receive, send)
        except asyncio.CancelledError:
            if not exchange.is_abandoned:
                raise
            if exchange.task is not None:
                exchange.task.uncancel()
            exchange.status = 499  # no client reads it: for the metrics and the log
            count_cancelled_request("client_gone")
        except Exception as error:
            logger.exception("unhandled exception in %s %r", scope["method"], scope["path"])
            if exchange.ended:
                # A background task failed. Uvicorn would close the connection, under the client's next request.
                return
            if exchange.status:
                raise  # part of a response was sent: only closing the connection tells the client
            response = await _respond_to(error, application, Request(scope, receive, send))
            await response(scope, receive, send)

    async def _within(self, seconds: float, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request that its client gives up after `seconds`."""
        with deadline_in(seconds, exchange) as deadline:
            try:
                if seconds:
                    await self.app(scope, receive, send)
                    return
                deadline.is_over = True
            except asyncio.CancelledError:
                if not deadline.is_over or exchange.is_abandoned:
                    raise
                if exchange.task is not None:
                    exchange.task.uncancel()
            finally:
                if (deadline.is_over or deadline.has_refused_commit) and not exchange.is_abandoned:
                    count_cancelled_request("deadline")
        late = DeadlineExceeded(f"not completed within {seconds:g} s")
        response = temporary_problem(scope, cancelled_write() if deadline.is_unknown else late)
        await response(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a lifespan or a WebSocket. Note the state of a WebSocket: it decides how an error is answered."""
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        scope.setdefault(WEBSOCKET_STATE, "connecting")

        async def receive_and_note() -> Message:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                scope[WEBSOCKET_STATE] = "closed"
            return message

        async def send_and_note(message: Message) -> None:
            scope[WEBSOCKET_STATE] = _WEBSOCKET_STATES.get(message["type"], scope[WEBSOCKET_STATE])
            await send(message)

        try:
            await self.app(scope, receive_and_note, send_and_note)
        except Exception:
            logger.exception("unhandled exception in WebSocket %r", scope["path"])
            with suppress(OSError):  # the client has left
                await answer_websocket(scope, receive, send_and_note, internal_error(scope))


def _recorded(scope: Scope, send: Send) -> tuple[Exchange, Send]:
    """Return an Exchange, and a `send` that records the response in it."""
    exchange = Exchange(scope, request_id.get())

    async def send_and_record(message: Message) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            exchange.ended = perf_counter()

    return exchange, send_and_record


# The state of a WebSocket after a message of the application.
_WEBSOCKET_STATES = {
    "websocket.accept": "accepted",
    "websocket.close": "closed",
    "websocket.http.response.start": "closed",
}


async def _respond_to(error: Exception, application: Any, request: Request) -> Response:
    """Return the response of the application's own handler of Exception (or 500), or a problem if it has none."""
    handlers = getattr(application, "exception_handlers", {})
    # Starlette uses the one that was registered last.
    handler = next((handlers[key] for key in reversed(handlers) if key in (500, Exception)), None)
    if handler is not None:
        try:
            if iscoroutinefunction(handler) or iscoroutinefunction(type(handler).__call__):
                response = await handler(request, error)
            else:
                response = await run_in_threadpool(handler, request, error)
        except Exception:
            logger.exception("the handler of unhandled exceptions failed in %r", request.scope["path"])
        else:
            if isinstance(response, Response):
                return response
    return internal_error(request.scope)


# A key of the ASGI scope that the server sets when a body did not arrive in time. Then `receive` returns.
BODY_OVERDUE = "headroom.body_overdue"


class BodyLimitMiddleware:
    """Refuses a request body of more than `max_bytes` with 413, when the route begins to read it; a late one with 408.

    Refuses a form with an unusual charset with 400: Starlette decodes with any codec of Python's, some of which take
    minutes for a small form, and Python keeps each unknown name for ever.

    A route has a limit of its own with `openapi_extra=body_limit(bytes)` in its decorator. FastAPI's `max_body_size` is
    respected too, but its refusal is plain text, not a problem.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event stream."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        announced = None
        has_usual_charset = True
        for name, value in scope["headers"]:
            if name == b"content-length" or name == b"transfer-encoding":
                if announced is None:
                    announced = int(value) if name == b"content-length" and value.isdigit() else 0
            elif name == b"content-type" and b"charset" in (lower := value.lower()) and b"multipart" in lower:
                has_usual_charset = parse_options_header(value)[1].get(b"charset", b"utf-8").lower() in _CHARSETS
        if announced is None:  # no body (RFC 9112, section 6.3)
            await self.app(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            if not has_usual_charset:
                raise HTTPException(400, "The charset of a form must be utf-8, us-ascii or iso-8859-1.")
            limit = self._limit(scope)
            if announced > limit:
                raise _too_large(limit)  # FastAPI passes it to the problem handler
            message = await receive()
            if BODY_OVERDUE in scope:
                raise HTTPException(408, "The request body did not arrive in time.")
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self.app(scope, receive_counted, send)

    def _limit(self, scope: Scope) -> int:
        """Return the limit of the request's route, in bytes."""
        operation = selected_operation(scope)
        extra = getattr(operation, "openapi_extra", None) or {}
        limit: int | None = extra.get(BODY_LIMIT, getattr(operation, "max_body_size", None))
        return self.max_bytes if limit is None else limit


def protocol_problem(status: int, detail: str, path: str) -> tuple[Sequence[tuple[bytes, bytes]], bytes]:
    """Return headers and body of a problem response to a request that the server refuses without the application."""
    own_id = _new_request_id()
    token = request_id.set(own_id)
    try:
        response = http_problem({"path": path}, HTTPException(status, detail))
    finally:
        request_id.reset(token)
    headers = (*response.raw_headers, *_SECURITY_HEADERS, (b"x-request-id", own_id.encode()))
    return headers, bytes(response.body)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"The request body exceeds the limit of {limit} bytes.")
