"""Errors as `application/problem+json` (RFC 9457). The only place that knows which error has which HTTP status."""

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
# What every route that uses the database can answer with.
DATABASE_ERRORS = (PoolExhausted, DatabaseUnavailable, StatementTimeout)
# RFC 9110's name; Python 3.11 still has the one before it, and a slug must not depend on that.
_RENAMED = {413: "Content Too Large"}


class InvalidField(BaseModel):
    """What is wrong with one field. Never says what was sent: it may be a password."""

    loc: list[str | int] = Field(description="Where it is, e.g. ['body', 'email'].")
    msg: str
    type: str


class Problem(BaseModel):
    """A problem, as of RFC 9457."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "title", "status", "instance", "request_id"]})

    type: str = Field(description="`/problems/<slug>`: what to branch on.", examples=["/problems/not-found"])
    title: str
    status: int
    detail: str | None = None
    instance: str = Field(description="The path of the request.")
    request_id: str = Field(description="Quote this when asking for help; every log line of the request has it.")
    errors: list[InvalidField] | None = Field(default=None, description="Of a validation-error: field by field.")


def problem_responses(*errors: type[DomainError] | type[TemporaryError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` of a route that can answer with these errors."""
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
    """The answer that tells `scope`'s client about a problem."""
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
    """The answer to an error that is known by its HTTP status only."""
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
    """The answer to what nobody expected. Says nothing: the log does."""
    return problem(scope, status=500, slug="internal-error", title="Internal server error")


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every expected error with a problem. `ErrorMiddleware` answers the unexpected ones."""
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(TemporaryError, _temporary_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)


def document_problems(app: FastAPI) -> None:
    """Put the schemas that `problem_responses` refers to into the OpenAPI document."""
    # `responses={404: {"model": Problem}}` would document application/json, which is not what is sent.
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
        InvalidField(loc=list(complaint["loc"]), msg=complaint["msg"], type=complaint["type"])
        for complaint in error.errors()
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
    """What Starlette and FastAPI raise themselves: unknown paths, wrong methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        # Starlette names the methods of the first route that has this path, and leaves out the others'.
        error = HTTPException(405, headers={"Allow": ", ".join(_methods(request))})
    return http_problem(request.scope, error)


def _methods(request: Request) -> list[str]:
    routes = [route for route in iter_route_contexts(request.app.routes) if hasattr(route, "path_regex")]
    matching = [route for route in routes if route.path_regex.match(request.scope["path"])]
    return sorted({method for route in matching for method in route.methods or ()})


def _title(status: int) -> str:
    return _RENAMED.get(status, http.HTTPStatus(status).phrase)


def _status_of(error: type[Exception]) -> int:
    return next(status for kind, status in _STATUS if issubclass(error, kind))
