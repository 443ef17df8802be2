"""Errors as `application/problem+json` (RFC 9457). Only this module maps the error tree to HTTP statuses."""

import http.client
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.routing import iter_route_contexts
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from app.errors import (
    Conflict,
    DatabaseUnavailable,
    DeadlineExceeded,
    DomainError,
    Forbidden,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    OutcomeUnknown,
    PoolExhausted,
    SchemaChanged,
    StatementTimeout,
    TemporaryError,
    TooManyAttempts,
    TransactionConflict,
)
from app.request_context import request_id

MAX_ERRORS = 50  # the longest list of validation errors in a problem; one body can cause thousands of errors

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotAuthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (InvalidInput, 422),
    (TooManyAttempts, 429),
    (DomainError, 400),
    (TemporaryError, 503),
)
# The errors of every route that uses the database.
DATABASE_ERRORS = (
    PoolExhausted,
    DatabaseUnavailable,
    StatementTimeout,
    OutcomeUnknown,
    TransactionConflict,
    SchemaChanged,
    DeadlineExceeded,
)
# The phrases of RFC 9110. Python 3.11 has older ones, and a slug must not depend on Python's version.
_RENAMED_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
# Set by ErrorMiddleware in the ASGI scope of a WebSocket: "connecting", "accepted" or "closed".
WEBSOCKET_STATE = "headroom.websocket_state"


class InvalidField(BaseModel):
    """An invalid field of the request. Its value is never included, because it may be a password."""

    loc: list[str | int] = Field(description="Path to the field, for example ['body', 'email'].")
    msg: str
    type: str


class Problem(BaseModel):
    """An error response, as defined by RFC 9457."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "title", "status", "instance", "request_id"]})

    type: str = Field(
        description="`/problems/<slug>`: the kind of error, for programs.", examples=["/problems/not-found"]
    )
    title: str
    status: int
    detail: str | None = None
    instance: str = Field(description="Path of the request.")
    request_id: str = Field(description="Id of the request in the server's log. Include it in a support request.")
    errors: list[InvalidField] | None = Field(
        default=None, description="The invalid fields. Only in a `/problems/validation-error`."
    )
    data: Any = Field(default=None, description="Details for programs, if an error has them: any JSON.")


def problem_responses(*errors: type[DomainError] | type[TemporaryError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of a route, which documents these errors in the OpenAPI document."""
    titles: dict[int, list[str]] = {}
    for error in errors:
        titles.setdefault(_status_of(error), []).append(f"{error.title} (`/problems/{error.slug}`)")
    return {status: _documented("; ".join(each)) for status, each in titles.items()}


def _documented(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


class _ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        # A message may repeat a lone surrogate of the request, which UTF-8 cannot encode. "\ud800" is valid JSON.
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def problem(
    scope: Scope,
    *,
    status: int,
    slug: str,
    title: str,
    detail: str | None = None,
    errors: Sequence[Mapping[str, Any]] | None = None,
    data: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem response for the request of the ASGI `scope`. `errors` are InvalidFields."""
    body = {
        "type": f"/problems/{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": scope["path"],
        "request_id": request_id.get(),
        "errors": errors,
        "data": data,
    }
    content = {name: value for name, value in body.items() if value is not None}
    return _ProblemResponse(content, status, headers=headers)


def http_problem(scope: Scope, error: HTTPException) -> Response:
    """Return the problem response for an error that is known only by its HTTP status.

    A `detail` that is not a string becomes the member `data`. A status that allows no body (1xx, 204, 304) gets none.
    """
    status = int(error.status_code)
    # The body is this module's, not the caller's.
    headers = {
        name: str(value)
        for name, value in dict(error.headers or {}).items()
        if name.lower() not in ("content-length", "content-type")
    }
    if not is_body_allowed_for_status_code(status):
        return Response(status_code=status, headers=headers)
    if status == 503 and not any(name.lower() == "retry-after" for name in headers):
        headers["Retry-After"] = str(TemporaryError.retry_after)
    title = _title(status)
    detail = _json(error.detail)
    is_text = isinstance(detail, str)
    return problem(
        scope,
        status=status,
        slug=re.sub("[^a-z0-9]+", "-", title.lower()),
        title=title,
        detail=detail if is_text and detail not in ("", title, _phrase(status)) else None,
        data=None if is_text else detail,
        headers=headers,
    )


def _json(value: Any) -> Any:
    """Return the value as JSON, encoded as FastAPI does; None, with a log line, if it cannot be."""
    try:
        encoded = jsonable_encoder(value)
        json.dumps(encoded, allow_nan=False)
    except Exception:
        logger.exception("the detail of an HTTPException is not JSON, and is left out: %.200r", value)
        return None
    return encoded


async def answer_websocket(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Answer a WebSocket with a problem: as the response to its handshake, or, after that, by closing it.

    The close code is 1013 (try again later) for 503, 1011 (internal error) for another 5xx, otherwise 1008 (policy
    violation). The reason is the problem's type.
    """
    state = scope.get(WEBSOCKET_STATE, "connecting")
    if state == "connecting" and "websocket.http.response" in (scope.get("extensions") or {}):
        await response(scope, receive, send)
    elif state != "closed":
        status = response.status_code
        code = 1013 if status == 503 else 1011 if status >= 500 else 1008
        reason = json.loads(bytes(response.body))["type"] if response.body else ""
        await send({"type": "websocket.close", "code": code, "reason": reason})


def internal_error(scope: Scope) -> Response:
    """Return the problem response for an unhandled exception. Only the log has the cause."""
    return problem(scope, status=500, slug="internal-error", title="Internal server error")


def install_problem_handlers(app: FastAPI) -> None:
    """Register the handlers of expected errors. `ErrorMiddleware` handles unexpected ones."""
    for error, handler in PROBLEM_HANDLERS.items():
        app.add_exception_handler(error, handler)


def document_problems(app: FastAPI, root_path: str = "") -> None:
    """Add the problem schemas, and the errors that any operation can return, to the OpenAPI document.

    `root_path` is the prefix under which a proxy publishes the application.
    """
    # `responses={404: {"model": Problem}}` would document the media type application/json.
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for operation in (each for methods in document["paths"].values() for each in methods.values()):
            statuses = (400, 408, 413, 431, 500) if "requestBody" in operation else (431, 500)
            for status in statuses:
                operation["responses"].setdefault(str(status), _documented(_title(status)))
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(schema.pop("$defs"), Problem=schema)
        for scheme in components.get("securitySchemes", {}).values():
            for flow in scheme.get("flows", {}).values():
                # The page at /docs would ask for it on the host, outside of the prefix that a proxy adds.
                flow["tokenUrl"] = root_path + flow["tokenUrl"].removeprefix(root_path)  # FastAPI caches it
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def _respond(connection: HTTPConnection, response: Response) -> Response | None:
    """Return the response of a request. Answer a WebSocket, and return None."""
    if not isinstance(connection, WebSocket):
        return response
    await answer_websocket(connection.scope, connection.receive, connection.send, response)
    return None


async def _domain_error(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, DomainError)
    headers = {}
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyAttempts):
        headers["Retry-After"] = str(error.retry_after)
    response = problem(
        connection.scope,
        status=_status_of(type(error)),
        slug=error.slug,
        title=error.title,
        detail=str(error) or None,
        headers=headers,
    )
    return await _respond(connection, response)


async def _temporary_error(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, TemporaryError)
    return await _respond(connection, temporary_problem(connection.scope, error))


def temporary_problem(scope: Scope, error: TemporaryError) -> Response:
    """Log the error, and return its problem response."""
    logger.warning("%s: %s", error.slug, error)
    return problem(
        scope,
        status=_status_of(type(error)),
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        headers={} if error.retry_after is None else {"Retry-After": str(error.retry_after)},
    )


async def _validation_error(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    errors = error.errors()
    fields = [
        {"loc": list(detail.get("loc", ())), "msg": detail.get("msg", ""), "type": detail.get("type", "")}
        for detail in errors[:MAX_ERRORS]
    ]
    more = f"; and {len(errors) - MAX_ERRORS} more" if len(errors) > MAX_ERRORS else ""
    response = problem(
        connection.scope,
        status=422,
        slug=InvalidInput.slug,
        title=InvalidInput.title,
        detail="; ".join(f"{'.'.join(map(str, field['loc']))}: {field['msg']}" for field in fields) + more,
        errors=fields,
    )
    return await _respond(connection, response)


async def _http_exception(connection: HTTPConnection, error: Exception) -> Response | None:
    """Handle HTTPException, of the routes and of Starlette and FastAPI: unknown paths, wrong methods and others."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and set(error.headers or ()) <= {"Allow"}:
        # Starlette lists only the methods of the first route with this path.
        error = HTTPException(405, error.detail, headers={"Allow": ", ".join(_allowed_methods(connection))})
    return await _respond(connection, http_problem(connection.scope, error))


# In the order of the error tree: the most derived class of an error decides.
PROBLEM_HANDLERS: Mapping[type[Exception], Any] = {
    DomainError: _domain_error,
    TemporaryError: _temporary_error,
    RequestValidationError: _validation_error,
    WebSocketRequestValidationError: _validation_error,
    HTTPException: _http_exception,
}


def _allowed_methods(connection: HTTPConnection) -> list[str]:
    scope = connection.scope
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    routes = [route for route in iter_route_contexts(scope["app"].routes) if hasattr(route, "path_regex")]
    matching = [route for route in routes if route.path_regex.match(path)]
    methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)  # HeadMiddleware answers HEAD wherever GET is


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "")


def _title(status: int) -> str:
    return _RENAMED_PHRASES.get(status) or _phrase(status) or f"HTTP {status}"


def _status_of(error: type[Exception]) -> int:
    return next(status for kind, status in _STATUS if issubclass(error, kind))
