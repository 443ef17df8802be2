"""Finds the operation of a request by an index, in FastAPI's order, and passes everything else to FastAPI's router."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, APIRouter, APIWebSocketRoute
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.web.fast_routes import RouteReport, switched_off
from app.web.fast_routes import _fastapi as private
from app.web.fast_routes.plan import NotPlannable, OperationPlan
from app.web.fast_routes.shortcuts import with_shortcuts

logger = logging.getLogger(__name__)

# Methods that decide how a route or a router behaves. A class that overrides one of them is run by FastAPI.
_ROUTE_METHODS = {name: getattr(APIRoute, name) for name in ("matches", "handle")}
_WEBSOCKET_ROUTES = (APIWebSocketRoute, WebSocketRoute)  # they match no HTTP request; a subclass might
_ROUTER_METHODS = {name: getattr(APIRouter, name) for name in ("matches", "handle", "app", "__call__")}


@dataclass
class _Entry:
    """A route in FastAPI's order. Without a `regex`, only FastAPI can tell what it matches.

    `plan` is None if FastAPI has to run it, for `reason`. `context` and `included_router` are FastAPI's, for a route of
    an included router. `listed` is the route, or the included router that it came with, at `position` in the list of
    the dispatcher's router.
    """

    route: BaseRoute
    listed: Any
    position: int
    regex: Any = None
    convertors: Mapping[str, Any] | None = None
    methods: frozenset[str] | None = None  # None: any
    path_format: str = ""
    endpoint: Any = None
    context: Any = None
    included_router: Any = None
    form_limits: Mapping[str, Any] | None = None
    has_fastapi_scope: bool = False
    plan: OperationPlan | None = None
    reason: str | None = None

    @property
    def first_segment(self) -> str | None:
        """Return the first segment of the path; None if that is a parameter, or not known."""
        first = _first_segment(self.path_format)
        return None if self.regex is None or "{" in first else first


class Dispatcher:
    """ASGI application in the place of a router's `middleware_stack`: inside of every middleware of the application."""

    def __init__(self, router: APIRouter, original: ASGIApp) -> None:
        self._router = router
        self._original = original
        self._entries: list[_Entry] = []
        self._index: dict[tuple[str, str | None], Sequence[_Entry]] = {}
        # What the index was made of: the router's routes, and included routers with the version of their routes.
        self._routes: list[BaseRoute] | None = None
        self._versions: list[tuple[Any, int]] = []
        self.taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request's operation by its plan, or pass the request to FastAPI's router."""
        # FastAPI's applications provide a stack that closes files; a router alone does not, and FastAPI then refuses.
        plan = self.select(scope) if scope["type"] == "http" and private.FILE_STACK_KEY in scope else None
        if plan is None:
            await self._original(scope, receive, send)
        else:
            self.taken += 1
            await plan(scope, receive, send)

    def report(self) -> list[RouteReport]:
        """Return a report of every operation."""
        self._refresh()
        return [
            RouteReport(tuple(sorted(entry.methods or ())), entry.path_format, entry.reason)
            for entry in self._entries
            if isinstance(entry.route, APIRoute)
        ]

    def select(self, scope: Scope) -> OperationPlan | None:
        """Return the request's plan, after updating the scope as FastAPI does; None if FastAPI has to run it."""
        self._refresh()
        path: str = private.get_route_path(scope) if scope.get("root_path") else scope["path"]
        method = scope["method"]
        entries = self._index.get((method, _first_segment(path)))
        if entries is None:
            entries = self._index.get((method, None), ())
        for entry in entries:
            match = entry.regex.match(path)
            if match is None:
                continue
            plan = entry.plan
            if plan is None or plan.context.app is not plan.original_app or plan.is_overridden:
                return None
            if self._router.routes[entry.position] is not entry.listed:
                self._routes = None  # another route that is equal for Starlette: same path, endpoint and methods
                return self.select(scope)
            assert entry.convertors is not None
            values = match.groupdict()
            for name in values:
                values[name] = entry.convertors[name].convert(values[name])
            self._update_scope(scope, entry, values)
            return plan
        return None

    def _update_scope(self, scope: Scope, entry: _Entry, path_params: dict[str, Any]) -> None:
        scope.setdefault("router", self._router)
        if entry.has_fastapi_scope:
            fastapi_scope = scope.setdefault(private.FASTAPI_SCOPE_KEY, {})
            if entry.included_router is not None:
                fastapi_scope["included_router"] = entry.included_router
                fastapi_scope["effective_route_context"] = entry.context
            if entry.form_limits:
                fastapi_scope["form_limits"] = entry.form_limits
        outer = scope.get("path_params")
        scope["endpoint"] = entry.endpoint
        scope["path_params"] = {**outer, **path_params} if outer else path_params
        scope["route"] = entry.route
        if scope.get("fastapi.telemetry") is not None:
            private.record_route(scope=scope, path=entry.path_format)

    def _refresh(self) -> None:
        """Make the index again if routes were added or removed since."""
        # Lists compare by identity first, so this costs 10 ns for each route.
        if self._router.routes == self._routes:
            for router, version in self._versions:
                if router._routes_version != version:
                    break
            else:
                return
        self._routes = list(self._router.routes)
        self._versions = []
        self._entries = []
        self._collect()
        # An entry without a pattern could match anything: FastAPI decides about all that follow it.
        known = next((i for i, entry in enumerate(self._entries) if entry.regex is None), len(self._entries))
        entries = self._entries[:known]
        segments = {entry.first_segment for entry in entries} | {None}
        methods = {method for entry in entries for method in entry.methods or ()}
        self._index = {
            (method, segment): [
                entry
                for entry in entries
                if (entry.methods is None or method in entry.methods) and entry.first_segment in (None, segment)
            ]
            for method in methods
            for segment in segments
        }

    def _collect(self) -> None:
        form_limits = self._router.form_limits
        for position, route in enumerate(self._router.routes):
            if isinstance(route, private.IncludedRouter):
                self._collect_included(route, form_limits, (route, position))
            else:
                self._add(route, route, None, form_limits, (route, position))

    def _collect_included(self, included: Any, form_limits: Any, place: tuple[Any, int]) -> None:
        router = included.original_router
        self._versions.append((router, router._routes_version))
        if _overrides(router, _ROUTER_METHODS):
            self._entries.append(_Entry(included, *place, reason="its router decides itself what it matches"))
            return
        limits = {**(form_limits or {}), **(included.include_context.form_limits or {})}
        for candidate in included.effective_candidates():
            if isinstance(candidate, private.IncludedRouter):
                self._collect_included(candidate, limits, place)
            else:
                self._add(candidate.original_route, candidate, included, limits, place)

    def _add(
        self, route: BaseRoute, context: Any, included_router: Any, form_limits: Any, place: tuple[Any, int]
    ) -> None:
        if type(route) in _WEBSOCKET_ROUTES:
            return
        entry = _entry(route, context, included_router, form_limits, place)
        # FastAPI creates the dictionary already when it tries the routes of an included router.
        entry.has_fastapi_scope = bool(self._versions) or included_router is not None or bool(form_limits)
        self._entries.append(entry)


def install_dispatcher(app: FastAPI) -> bool:
    """Put a dispatcher into the application's router. Return False if the router's class overrides its behaviour.

    An application whose router is replaced before its first request gets a dispatcher in the new router.
    """
    if isinstance(app.router.middleware_stack, Dispatcher):
        return True
    if not _install_in_router(app.router):
        return False
    build = app.build_middleware_stack

    def build_middleware_stack() -> ASGIApp:
        _install_in_router(app.router)
        dispatcher = app.router.middleware_stack
        return with_shortcuts(build(), app.router, dispatcher if isinstance(dispatcher, Dispatcher) else None)

    app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]
    return True


def _install_in_router(router: APIRouter) -> bool:
    if isinstance(router.middleware_stack, Dispatcher):
        return True
    if _overrides(router, _ROUTER_METHODS):
        logger.warning("fast routes are off: %s overrides how FastAPI's router works", type(router).__name__)
        return False
    router.middleware_stack = Dispatcher(router, router.middleware_stack)
    return True


def _entry(route: BaseRoute, context: Any, included_router: Any, form_limits: Any, place: tuple[Any, int]) -> _Entry:
    pattern = getattr(context, "starlette_route", None) or context
    entry = _Entry(
        route,
        *place,
        regex=getattr(pattern, "path_regex", None),
        convertors=getattr(pattern, "param_convertors", None),
        methods=frozenset(pattern.methods) if getattr(pattern, "methods", None) else None,
        path_format=getattr(pattern, "path_format", None) or "",
        endpoint=getattr(pattern, "endpoint", None),
        context=context,
        included_router=included_router,
        form_limits=form_limits,
    )
    if not isinstance(route, APIRoute):
        if isinstance(route, Mount) and isinstance(route.app, FastAPI) and route.app not in switched_off:
            install_dispatcher(route.app)
        if type(route) not in (Route, Mount):
            entry.regex = None
        return entry
    if _overrides(route, _ROUTE_METHODS):
        entry.regex = None
        entry.reason = "its class decides itself what it matches, or how it is run"
        return entry
    try:
        entry.plan = OperationPlan(context)
    except NotPlannable as error:
        entry.reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong while it is prepared, FastAPI can run it
        entry.reason = f"it could not be prepared: {error!r}"
        logger.warning("not fast: %s: %s", entry.path_format, entry.reason)
    return entry


def _overrides(instance: Any, methods: Mapping[str, Any]) -> bool:
    """Return True if the class, or the object itself, overrides one of these methods."""
    return any(
        getattr(type(instance), name) is not method or name in vars(instance) for name, method in methods.items()
    )


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""
