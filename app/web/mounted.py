"""Mounted applications: found wherever they are mounted, and answered with the same problems."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.exception_handlers import (
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)
from fastapi.routing import iter_route_contexts
from starlette.applications import Starlette
from starlette.routing import Host, Mount

from app.web.middleware import ErrorMiddleware
from app.web.problems import PROBLEM_HANDLERS

# A mounted application that has these has no handlers of its own for their exceptions.
_FASTAPI_HANDLERS = (
    http_exception_handler,
    request_validation_exception_handler,
    websocket_request_validation_exception_handler,
)


def mounted_applications(app: Starlette) -> Iterator[Starlette]:
    """Yield the FastAPI and Starlette applications that are mounted in the application, directly or in others."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, Mount | Host):
            continue
        inner: Any = route.app
        while inner is not None and not isinstance(inner, Starlette):
            inner = getattr(inner, "app", None)  # of a middleware around it
        if inner is not None:
            yield inner
            yield from mounted_applications(inner)


def install_in_mounted(app: FastAPI) -> None:
    """Make mounted applications answer errors with problems, when the application serves its first request.

    A mounted application handles the exceptions of its routes itself, and knows neither the error tree nor problems.
    Its own handlers stay.
    """
    build = app.build_middleware_stack

    def build_middleware_stack() -> Any:
        for inner in mounted_applications(app):
            _install(inner)
        return build()

    app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]


def _install(app: Starlette) -> None:
    middleware: list[Any] = [each.cls for each in app.user_middleware]
    if ErrorMiddleware in middleware:
        return
    handlers: Any = app.exception_handlers
    for error, handler in PROBLEM_HANDLERS.items():
        if handlers.get(error) in (None, *_FASTAPI_HANDLERS):
            handlers[error] = handler
    app.middleware_stack = None  # if it has served requests before
    app.add_middleware(ErrorMiddleware)
