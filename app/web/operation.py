"""The path template of a request's route, for metrics and logs: a series for each path would be unbounded."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from starlette.routing import BaseRoute, Mount

UNMATCHED = "unmatched"
# Key in the ASGI scope.
_OUTER = "headroom.outer_application"


def remember_outer_application(scope: MutableMapping[str, Any]) -> None:
    """Note which application received the request, before a mount changes the scope."""
    scope[_OUTER] = scope.get("app"), scope.get("root_path", "")


def outer_application(scope: Mapping[str, Any]) -> Any:
    """Return the application that received the request: the same for a request to a mounted application."""
    return scope[_OUTER][0] if _OUTER in scope else scope["app"]


def route_template(scope: Mapping[str, Any]) -> str:
    """Return the full template of the request's route, prefixes of routers and mounts included, or "unmatched"."""
    app, root_path = scope.get(_OUTER, (None, scope.get("root_path", "")))
    mounted = scope.get("root_path", "") != root_path
    prefix = _mount_template(getattr(app, "routes", ()), scope["path"].removeprefix(root_path)) if mounted else ""
    operation = selected_operation(scope)
    if operation is not None and not isinstance(operation, Mount):
        return prefix + str(operation.path_format)
    if mounted:
        return f"{prefix}/{{path}}"
    # Starlette's plain routes, such as /docs, set only the endpoint. They have no path parameters.
    return str(scope["path"]) if "endpoint" in scope else UNMATCHED


def selected_operation(scope: Mapping[str, Any]) -> Any:
    """Return FastAPI's route of a request with its effective options, None if it has none.

    Of a route in an included router, that is FastAPI's context: with the router's prefix and other options.
    """
    route = scope.get("route")
    context = scope.get("fastapi", {}).get("effective_route_context")
    return context if context is not None and context.original_route is route else route


def _mount_template(routes: Iterable[BaseRoute], path: str) -> str:
    for route in routes:
        if isinstance(route, Mount) and (match := route.path_regex.match(path)):
            inner = _mount_template(getattr(route.app, "routes", []), "/" + match["path"])
            return route.path_format.removesuffix("/{path}") + inner
    return ""
