"""Errors as `application/problem+json` (RFC 9457). Only this module maps the error tree to HTTP statuses."""

import http
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from app.errors import (
    Conflict,
    DatabaseUnavailable,
    DomainError,
    Forbidden,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    PoolExhausted,
    StatementTimeout,
    TemporaryError,
    TooManyAttempts,
)
from app.observability.logging import request_id

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotAuthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (InvalidInput, 422),
    (TooManyAttempts, 429),
    (TemporaryError, 503),
)
# The errors of every route that uses the database.
DATABASE_ERRORS = (PoolExhausted, DatabaseUnavailable, StatementTimeout)
# The phrase of RFC 9110. Python 3.11 has an older one, and a slug must not depend on Python's version.
_RENAMED_PHRASES = {413: "Content Too Large"}


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


def problem(
    scope: Scope,
    *,
    status: int,
    slug: str,
    title: str,
    detail: str | None = None,
    errors: Sequence[InvalidField] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return a problem response for the request of the ASGI `scope`."""
    body = Problem(
        type=f"/problems/{slug}",
        title=title,
        status=status,
        detail=detail,
        instance=scope["path"],
        request_id=request_id.get(),
        errors=None if errors is None else list(errors),
    )
    return JSONResponse(body.model_dump(exclude_none=True), status, headers=headers, media_type=MEDIA_TYPE)


def http_problem(scope: Scope, error: HTTPException) -> JSONResponse:
    """Return the problem response for an error that is known only by its HTTP status."""
    phrase = http.HTTPStatus(error.status_code).phrase
    title = _title(error.status_code)
    return problem(
        scope,
        status=error.status_code,
        slug=title.lower().replace(" ", "-"),
        title=title,
        detail=None if error.detail in (phrase, title) else error.detail,
        headers=dict(error.headers or {}),
    )


def internal_error(scope: Scope) -> JSONResponse:
    """Return the problem response for an unhandled exception. Only the log has the cause."""
    return problem(scope, status=500, slug="internal-error", title="Internal server error")


def install_problem_handlers(app: FastAPI) -> None:
    """Register the handlers of expected errors. `ErrorMiddleware` handles unexpected ones."""
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(TemporaryError, _temporary_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)


def document_problems(app: FastAPI) -> None:
    """Add the problem schemas, and the errors that any operation can return, to the OpenAPI document."""
    # `responses={404: {"model": Problem}}` would document the media type application/json.
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for operation in (each for methods in document["paths"].values() for each in methods.values()):
            statuses = (400, 413, 500) if "requestBody" in operation else (500,)
            for status in statuses:
                operation["responses"].setdefault(str(status), _documented(_title(status)))
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(schema.pop("$defs"), Problem=schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def _domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DomainError)
    headers = {}
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyAttempts):
        headers["Retry-After"] = str(error.retry_after)
    return problem(
        request.scope,
        status=_status_of(type(error)),
        slug=error.slug,
        title=error.title,
        detail=str(error),
        headers=headers,
    )


async def _temporary_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TemporaryError)
    logger.warning("%s: %s", error.slug, error)
    return problem(
        request.scope,
        status=_status_of(type(error)),
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        headers={"Retry-After": str(error.retry_after)},
    )


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [
        InvalidField(loc=list(detail["loc"]), msg=detail["msg"], type=detail["type"]) for detail in error.errors()
    ]
    return problem(
        request.scope,
        status=422,
        slug=InvalidInput.slug,
        title=InvalidInput.title,
        detail="; ".join(f"{'.'.join(map(str, field.loc))}: {field.msg}" for field in fields),
        errors=fields,
    )


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """Handle the errors that Starlette and FastAPI raise: unknown paths, wrong methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        # Starlette lists only the methods of the first route with this path.
        error = HTTPException(405, headers={"Allow": ", ".join(_allowed_methods(request))})
    return http_problem(request.scope, error)


def _allowed_methods(request: Request) -> list[str]:
    routes = [route for route in iter_route_contexts(request.app.routes) if hasattr(route, "path_regex")]
    matching = [route for route in routes if route.path_regex.match(request.scope["path"])]
    return sorted({method for route in matching for method in route.methods or ()})


def _title(status: int) -> str:
    return _RENAMED_PHRASES.get(status, http.HTTPStatus(status).phrase)


def _status_of(error: type[Exception]) -> int:
    return next(status for kind, status in _STATUS if issubclass(error, kind))
