"""FastAPI routes, resolved once per route instead of once per request.

For a route with one dependency and one response model, FastAPI takes 77 us of CPU to match the route, walk its
dependencies and send the response; a plain Starlette route takes 6 us. Most of the difference is spent on facts that do
not change between requests (docs/decisions/0002-fast-routes.md). `FastRoutes` collects these facts at the first
request. Then it does what FastAPI would do: the same field objects validate, the same dependencies run in the same
order, and the response has the same bytes.

FastAPI handles every request and route that needs more: invalid parameters or bodies (FastAPI words the error), unknown
paths and methods, forms, dependencies that are plain functions or that end after the response, streams, dependency
overrides in tests. A route is written as in any FastAPI application.

This module reads private attributes of FastAPI, so the version is pinned. tests/unit/web/test_fast_routes.py compares
its responses with FastAPI's, byte by byte.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fastapi import FastAPI, params
from fastapi._compat import ModelField, field_annotation_is_sequence, lenient_issubclass
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import ResponseValidationError
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Arguments by parameter name.
Values = dict[str, Any]


class _NeedsFastAPI(Exception):
    """FastAPI must handle this route or this request."""


class _Call(NamedTuple):
    """A dependency's callable, or the route handler, and the sources of its arguments.

    `results` are pairs of a parameter name and the index of the dependency whose result it takes. The parameters in
    `request_names` take the request. The parameter `response_name` takes the response's headers and status.
    `is_context` is true for a generator, which stays open until the handler has returned.
    """

    function: Callable[..., Any]
    results: Sequence[tuple[str, int]]
    request_names: Sequence[str]
    response_name: str | None
    is_context: bool
    query: "_QueryFields | None"

    def arguments(self, results: list[Any], request: Request, response: Response | None) -> Values:
        """Return the arguments. `results` are the results of the dependencies, by index."""
        values = {name: results[index] for name, index in self.results}
        for name in self.request_names:
            values[name] = request
        if self.response_name is not None:
            values[self.response_name] = response
        return values


class ValidParameters(NamedTuple):
    """The validated parameters of a request: those of the handler, and those of dependencies by index."""

    handler: Values
    dependencies: Mapping[int, Values]


class _QueryFields:
    """The query parameters of a dependency or of the handler."""

    def __init__(self, fields: list[ModelField]) -> None:
        self.fields = fields
        model = fields[0].field_info.annotation if len(fields) == 1 else None
        # If one model takes every parameter, without aliases and lists, FastAPI validates the query string as a dict.
        self._is_plain_model = lenient_issubclass(model, BaseModel) and all(
            field.alias is None
            and field.validation_alias is None
            and not field_annotation_is_sequence(field.annotation)
            for field in model.model_fields.values()
        )

    def validate(self, query_string: bytes) -> Values:
        """Return the arguments. Raise _NeedsFastAPI if a parameter is invalid."""
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)  # as Starlette's QueryParams
        by_name = dict(pairs)
        if self._is_plain_model and len(by_name) == len(pairs):
            [field] = self.fields
            return {field.name: _validate(field, by_name, ("query",))}
        values, errors = request_params_to_args(self.fields, QueryParams(pairs))
        if errors:
            raise _NeedsFastAPI
        return values


class _JSONResponse(NamedTuple):
    """A response with the bytes of Starlette's Response, without the cost of its header objects."""

    status: int
    body: bytes
    headers: Iterable[tuple[bytes, bytes]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        headers, body = [(b"content-type", b"application/json"), *self.headers], self.body
        if is_body_allowed_for_status_code(self.status):
            headers.insert(0, (b"content-length", b"%d" % len(body)))
        else:
            body = b""
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class FastRoute:
    """A resolved route. The constructor raises _NeedsFastAPI for a route that needs more than this class does."""

    def __init__(self, context: RouteContext) -> None:
        route, endpoint = context.original_route, context.endpoint
        is_supported = (
            type(route) is APIRoute
            and isinstance(context.response_class, DefaultPlaceholder)
            and context.max_body_size is None
            and not (context.is_sse_stream or context.is_json_stream)
            and inspect.iscoroutinefunction(endpoint)
        )
        if not is_supported or endpoint is None:
            raise _NeedsFastAPI
        dependant = context.dependant
        self.route = route
        self.endpoint: Callable[..., Awaitable[Any]] = endpoint
        self.status = context.status_code or 200
        self.path_fields = [(field.name, field.alias, field) for field in dependant.path_params]
        self.query = _QueryFields(dependant.query_params)
        self.body_field = self._body_field(context)
        self.response_field = context.response_field
        self.serialization_options = {
            "include": context.response_model_include,
            "exclude": context.response_model_exclude,
            "by_alias": context.response_model_by_alias,
            "exclude_unset": context.response_model_exclude_unset,
            "exclude_defaults": context.response_model_exclude_defaults,
            "exclude_none": context.response_model_exclude_none,
        }
        if self.response_field is None and is_body_allowed_for_status_code(self.status):
            raise _NeedsFastAPI
        self.dependencies: list[_Call] = []  # in the order in which they run
        self.handler = self._resolve(dependant, {}, is_handler=True)
        self.dependency_queries = [
            (index, call.query) for index, call in enumerate(self.dependencies) if call.query is not None
        ]
        self.has_contexts = any(call.is_context for call in self.dependencies)
        self.has_response_parameter = any(call.response_name for call in (*self.dependencies, self.handler))

    @staticmethod
    def _body_field(context: RouteContext) -> Any:
        if context.body_field is None:
            return None
        [*fields] = context.dependant.body_params
        if len(fields) != 1 or context._embed_body_fields or type(fields[0].field_info) is not params.Body:
            raise _NeedsFastAPI
        return fields[0]

    def _resolve(self, dependant: Dependant, indexes: dict[object, int], *, is_handler: bool = False) -> _Call:
        """Return the call of a dependant, after adding the calls of its dependencies to `self.dependencies`."""
        parameters = [dependant.header_params, dependant.cookie_params]
        if not is_handler:
            parameters += [dependant.path_params, dependant.body_params]
        features = [
            dependant.websocket_param_name,
            dependant.background_tasks_param_name,
            dependant.security_scopes_param_name,
            dependant.concurrency,
            dependant.own_oauth_scopes,
            dependant.parent_oauth_scopes,
        ]
        if any(parameters) or any(features) or dependant.call is None:
            raise _NeedsFastAPI
        results = []
        for dependency in dependant.dependencies:
            key: object = (dependency.call, dependency.scope) if dependency.use_cache else object()
            if key not in indexes:
                call = self._resolve(dependency, indexes)
                indexes[key] = len(self.dependencies)
                self.dependencies.append(call)
            if dependency.name is not None:
                results.append((dependency.name, indexes[key]))
        function, is_context = dependant.call, inspect.isasyncgenfunction(dependant.call)
        if is_context:
            if dependant.scope != "function":
                raise _NeedsFastAPI
            function = asynccontextmanager(function)
        elif not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
            raise _NeedsFastAPI
        request_names = [name for name in (dependant.request_param_name, dependant.http_connection_param_name) if name]
        query = _QueryFields(dependant.query_params) if dependant.query_params and not is_handler else None
        return _Call(function, results, request_names, dependant.response_param_name, is_context, query)

    def validate(self, scope: Scope, path_params: Mapping[str, Any], body: bytes) -> ValidParameters | None:
        """Return the parameters from path, query string and body; None if one is invalid."""
        values: Values = {}
        try:
            query_string = scope["query_string"]
            of_dependencies = {index: query.validate(query_string) for index, query in self.dependency_queries}
            for name, alias, field in self.path_fields:
                values[name] = _validate(field, path_params[alias], ("path", alias))
            if self.query.fields:
                values |= self.query.validate(query_string)
            if self.body_field is not None:
                values[self.body_field.name] = _validate(self.body_field, _parse_json(scope, body), ("body",))
        except _NeedsFastAPI:
            return None
        return ValidParameters(values, of_dependencies)

    async def respond(self, parameters: ValidParameters, request: Request) -> Response | _JSONResponse:
        """Run the dependencies and the handler, and return the response. Raise what they raise."""
        response = _response_parameter() if self.has_response_parameter else None
        if self.has_contexts:
            async with AsyncExitStack() as stack:
                return await self._run(parameters, request, response, stack)
        return await self._run(parameters, request, response, None)

    async def _run(
        self, parameters: ValidParameters, request: Request, response: Response | None, stack: AsyncExitStack | None
    ) -> Response | _JSONResponse:
        results: list[Any] = []
        of_dependencies = parameters.dependencies
        for index, call in enumerate(self.dependencies):
            arguments = call.arguments(results, request, response)
            if index in of_dependencies:
                arguments |= of_dependencies[index]
            result = call.function(**arguments)
            results.append(await (stack.enter_async_context(result) if stack and call.is_context else result))
        content = await self.endpoint(**parameters.handler, **self.handler.arguments(results, request, response))
        if isinstance(content, Response):
            return content
        status = response.status_code if response is not None and response.status_code else self.status
        return _JSONResponse(status, self._serialize(content), response.raw_headers if response is not None else ())

    def _serialize(self, content: Any) -> bytes:
        if self.response_field is None:
            return b""
        value, errors = self.response_field.validate(content, {}, loc=("response",))
        if errors:
            raise ResponseValidationError(errors=errors, body=content)
        body: bytes = self.response_field.serialize_json(value, **self.serialization_options)
        return body


def _validate(field: ModelField, value: Any, location: tuple[str, ...]) -> Any:
    """Return the validated value. Raise _NeedsFastAPI if it is invalid."""
    value, errors = field.validate(value, {}, loc=location)
    if errors:
        raise _NeedsFastAPI
    return value


def _parse_json(scope: Scope, body: bytes) -> Any:
    """Return the parsed body. Raise _NeedsFastAPI if it is not JSON, or has another content type."""
    content_types = [value for name, value in scope["headers"] if name == b"content-type"]
    if not body or content_types != [b"application/json"]:
        raise _NeedsFastAPI
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: too deeply nested
        raise _NeedsFastAPI from None


def _response_parameter() -> Response:
    """Return the object on which dependencies and the handler set headers and a status."""
    response = Response()
    del response.headers["content-length"]
    response.status_code = None  # type: ignore[assignment]  # FastAPI's value for "not set"
    return response


class _RouteEntry(NamedTuple):
    """A route of the application. `first_segment` is None for a parameter, `fast_route` if FastAPI must handle it."""

    methods: frozenset[str]
    first_segment: str | None
    regex: Any
    convertors: Mapping[str, Any]
    fast_route: FastRoute | None


class FastRoutes:
    """ASGI middleware that serves the resolved routes. Add it first, so that it is the innermost middleware."""

    def __init__(self, app: ASGIApp, application: FastAPI) -> None:
        self._app = app
        self._application = application
        self._routes: dict[tuple[str, str], list[_RouteEntry]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or pass it to FastAPI."""
        if scope["type"] != "http" or self._needs_fastapi(scope):
            await self._app(scope, receive, send)
            return
        route, path_params = self._find(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            if route.body_field is not None:
                messages, body = await _read_body(receive)
                receive = _replay(messages, receive)
            parameters = route.validate(scope, path_params, body)
            if parameters is not None:
                scope.update(path_params=path_params, endpoint=route.endpoint, route=route.route)
                response = await route.respond(parameters, Request(scope, receive))
        except Exception as error:
            handler = self._exception_handler(error)
            if handler is None:
                raise
            request = Request(scope, receive)
            is_async = inspect.iscoroutinefunction(handler)
            problem = await handler(request, error) if is_async else await run_in_threadpool(handler, request, error)
            await problem(scope, receive, send)
            return
        await (self._app if parameters is None else response)(scope, receive, send)

    def _needs_fastapi(self, scope: Scope) -> bool:
        return bool(self._application.dependency_overrides or scope.get("root_path") or "fastapi.telemetry" in scope)

    def _find(self, scope: Scope) -> tuple[FastRoute | None, Mapping[str, Any]]:
        """Return the route of a request and its path parameters; None for a route that FastAPI must handle."""
        if self._routes is None:
            self._routes = _index_routes(self._application)
        path, method = scope["path"], scope["method"]
        for entry in self._routes.get((method, _first_segment(path)), ()):
            if (match := entry.regex.match(path)) is not None:
                found = match.groupdict()
                return entry.fast_route, {name: entry.convertors[name].convert(found[name]) for name in found}
        return None, {}

    def _exception_handler(self, error: Exception) -> Callable[[Request, Exception], Any] | None:
        """Return the registered handler, as Starlette's ExceptionMiddleware would choose it."""
        handlers: Mapping[Any, Any] = self._application.exception_handlers
        if isinstance(error, HTTPException) and error.status_code in handlers:
            return handlers[error.status_code]  # type: ignore[no-any-return]
        # Not for `Exception` itself: ServerErrorMiddleware calls that handler.
        kinds = type(error).__mro__[: type(error).__mro__.index(Exception)]
        return next((handlers[kind] for kind in kinds if kind in handlers), None)


def _index_routes(application: FastAPI) -> dict[tuple[str, str], list[_RouteEntry]]:
    """Return the routes by method and first path segment, each list in the order in which FastAPI matches them."""
    entries: list[_RouteEntry] = []
    for context in iter_route_contexts(application.routes):
        if not hasattr(context, "path_regex"):
            break  # this route may match any path, so FastAPI must match the routes after it
        first = _first_segment(context.path_format or "")
        try:
            fast_route = FastRoute(context)
        except _NeedsFastAPI:
            fast_route = None
        entries.append(
            _RouteEntry(
                frozenset(context.methods or ()),
                None if "{" in first else first,
                context.path_regex,
                context.param_convertors,
                fast_route,
            )
        )
    segments = {entry.first_segment for entry in entries if entry.first_segment is not None}
    methods = {method for entry in entries for method in entry.methods}
    return {
        (method, segment): [
            entry
            for entry in entries
            # A mounted application has no methods: it accepts any.
            if (method in entry.methods or not entry.methods) and entry.first_segment in (None, segment)
        ]
        for method in methods
        for segment in segments
    }


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""


async def _read_body(receive: Receive) -> tuple[list[Message], bytes]:
    """Return the ASGI messages of the request's body, and the body."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    return messages, b"".join(message.get("body", b"") for message in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that repeats the messages, and then continues with the original one."""
    remaining = iter(messages)

    async def receive_again() -> Message:
        return next(remaining, None) or await receive()

    return receive_again
