"""The state of a request: the application that received it, its route's template, and its response's progress."""

import asyncio
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from starlette.routing import BaseRoute, Mount, Route

UNMATCHED = "unmatched"
# Key of the Exchange in the ASGI scope.
_EXCHANGE = "headroom.exchange"


class Exchange:
    """A request and its response, as the outermost middleware sees them: before a mount changes the scope.

    `status` is 0 until the response has begun, `ended` is 0 or the time of its last message. `task` may be cancelled to
    end the request; it `is_abandoned` if that happens because its client has disconnected.
    """

    __slots__ = ("application", "ended", "is_abandoned", "request_id", "root_path", "status", "task")

    def __init__(self, scope: MutableMapping[str, Any], request_id: str) -> None:
        self.request_id = request_id
        self.application = scope.get("app")
        self.root_path = scope.get("root_path", "")
        self.status = 0
        self.ended = 0.0
        self.task: asyncio.Task[Any] | None = None
        self.is_abandoned = False
        scope[_EXCHANGE] = self


def exchange_of(scope: Mapping[str, Any]) -> Exchange | None:
    """Return the request's Exchange; None if no middleware has created one."""
    return scope.get(_EXCHANGE)


def outer_application(scope: Mapping[str, Any]) -> Any:
    """Return the application that received the request: the same for a request to a mounted application."""
    exchange: Exchange | None = scope.get(_EXCHANGE)
    return scope["app"] if exchange is None else exchange.application


def route_template(scope: Mapping[str, Any]) -> str:
    """Return the full template of the request's route, prefixes of routers and mounts included, or "unmatched"."""
    exchange: Exchange | None = scope.get(_EXCHANGE)
    prefix, root_path = "", scope.get("root_path", "")
    mounted = exchange is not None and exchange.root_path != root_path
    if exchange is not None and mounted:
        routes = getattr(exchange.application, "routes", ())
        prefix = _mount_template(routes, scope["path"].removeprefix(exchange.root_path))
    operation = selected_operation(scope)
    if operation is not None and not isinstance(operation, Mount):
        return prefix + str(operation.path_format)
    if mounted:
        return f"{prefix}/{{path}}"
    return _plain_template(scope) if "endpoint" in scope else UNMATCHED


def _plain_template(scope: Mapping[str, Any]) -> str:
    """Return the template of a plain route of Starlette's, such as /docs: in FastAPI's router it sets no route."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    for route in getattr(scope.get("app"), "routes", ()):
        if isinstance(route, Route) and route.endpoint is scope["endpoint"] and route.path_regex.match(path):
            return route.path_format
    return UNMATCHED  # not the path: each one would be a series of its own


def selected_operation(scope: Mapping[str, Any]) -> Any:
    """Return FastAPI's route of a request with its effective options, None if it has none.

    Of a route in an included router, that is FastAPI's context: with the router's prefix and other options.
    """
    route = scope.get("route")
    if (fastapi_scope := scope.get("fastapi")) is None:
        return route
    context = fastapi_scope.get("effective_route_context")
    return context if context is not None and context.original_route is route else route


def _mount_template(routes: Iterable[BaseRoute], path: str) -> str:
    for route in routes:
        if isinstance(route, Mount) and (match := route.path_regex.match(path)):
            inner = _mount_template(getattr(route.app, "routes", []), "/" + match["path"])
            return route.path_format.removesuffix("/{path}") + inner
    return ""
