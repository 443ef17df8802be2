"""FastAPI's routes, each resolved once instead of once a request.

Measured on a route with one dependency and one model: FastAPI takes 77 microseconds of processor time to find it, to
walk its dependencies and to send its answer; Starlette takes 6 for a plain one. Most of that is finding out, for each
request, what has been known since the start. `FastRoutes` finds it out when the first request comes, and then
does what FastAPI would do: the same validation with the same objects, the same dependencies in the same order, the same
serialisation, the same bytes.

It does so for requests that need nothing out of the ordinary. Whatever else there is goes to FastAPI, untouched: a
request whose parameters or body are not valid (so FastAPI words the complaint), a path nobody has, another method, a
form, a dependency that is a plain function or lives longer than the handler, a stream, an override in a test. A route
is written as any other; nobody who writes one needs to know of this module.

It reads what FastAPI keeps to itself. The version is locked, and tests/unit/web/test_fast_routes.py sends requests of
every kind both ways and compares the answers to the byte.
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

Values = dict[str, Any]


class _NeedsFastAPI(Exception):
    """FastAPI has to do this one."""


class _Call(NamedTuple):
    """A function and what it gets: results by the place of their call, the request, the answer's headers."""

    function: Callable[..., Any]
    results: Sequence[tuple[str, int]]
    request: Sequence[str]
    response: str | None
    opens: bool  # it is a generator that stays open until the handler has returned
    query: "_Query | None"

    def arguments(self, results: list[Any], request: Request, response: Response | None) -> Values:
        values = {name: results[place] for name, place in self.results}
        for name in self.request:
            values[name] = request
        if self.response is not None:
            values[self.response] = response
        return values


class Validated(NamedTuple):
    """The values of a request's parameters: those of the handler, and those of dependencies by their place."""

    of_handler: Values
    of_calls: Mapping[int, Values]


class _Query:
    """The parameters of the query string."""

    def __init__(self, fields: list[ModelField]) -> None:
        self.fields = fields
        model = fields[0].field_info.annotation if len(fields) == 1 else None
        # One model that takes all of them, each at most once: what FastAPI passes to it is what was sent.
        self._is_plain_model = lenient_issubclass(model, BaseModel) and all(
            field.alias is None
            and field.validation_alias is None
            and not field_annotation_is_sequence(field.annotation)
            for field in model.model_fields.values()
        )

    def values(self, sent: bytes) -> Values:
        """Raises _NeedsFastAPI where they are not valid."""
        pairs = parse_qsl(sent.decode("latin-1"), keep_blank_values=True)  # as Starlette's QueryParams
        given = dict(pairs)
        if self._is_plain_model and len(given) == len(pairs):
            [field] = self.fields
            return {field.name: _valid(field, given, ("query",))}
        found, errors = request_params_to_args(self.fields, QueryParams(pairs))
        if errors:
            raise _NeedsFastAPI
        return found


class _Json(NamedTuple):
    """An answer as Starlette's Response would send it, without what that makes of headers on the way."""

    status: int
    body: bytes
    headers: Iterable[tuple[bytes, bytes]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, body = [(b"content-type", b"application/json"), *self.headers], self.body
        if is_body_allowed_for_status_code(self.status):
            headers.insert(0, (b"content-length", b"%d" % len(body)))
        else:
            body = b""
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class FastRoute:
    """What FastAPI would find out of a route. Raises _NeedsFastAPI where that is more than is done here."""

    def __init__(self, context: RouteContext) -> None:
        route, endpoint = context.original_route, context.endpoint
        plain = (
            type(route) is APIRoute
            and isinstance(context.response_class, DefaultPlaceholder)
            and context.max_body_size is None
            and not (context.is_sse_stream or context.is_json_stream)
            and inspect.iscoroutinefunction(endpoint)
        )
        if not plain or endpoint is None:
            raise _NeedsFastAPI
        dependant = context.dependant
        self.route = route
        self.endpoint: Callable[..., Awaitable[Any]] = endpoint
        self.status = context.status_code or 200
        self.path_fields = [(field.name, field.alias, field) for field in dependant.path_params]
        self.query = _Query(dependant.query_params)
        self.body_field = self._body_field(context)
        self.answer_field = context.response_field
        self.dump = {
            "include": context.response_model_include,
            "exclude": context.response_model_exclude,
            "by_alias": context.response_model_by_alias,
            "exclude_unset": context.response_model_exclude_unset,
            "exclude_defaults": context.response_model_exclude_defaults,
            "exclude_none": context.response_model_exclude_none,
        }
        if self.answer_field is None and is_body_allowed_for_status_code(self.status):
            raise _NeedsFastAPI
        self.calls: list[_Call] = []
        places: dict[object, int] = {}
        self.handler = self._call(dependant, places, is_handler=True)
        self.queries = [(place, call.query) for place, call in enumerate(self.calls) if call.query is not None]
        self.opens = any(call.opens for call in self.calls)
        self.headers = any(call.response for call in (*self.calls, self.handler))

    @staticmethod
    def _body_field(context: RouteContext) -> Any:
        if context.body_field is None:
            return None
        [*fields] = context.dependant.body_params
        if len(fields) != 1 or context._embed_body_fields or type(fields[0].field_info) is not params.Body:
            raise _NeedsFastAPI
        return fields[0]

    def _call(self, dependant: Dependant, places: dict[object, int], *, is_handler: bool = False) -> _Call:
        """The call of a dependant, after those that it depends on."""
        here = [dependant.header_params, dependant.cookie_params]
        if not is_handler:
            here += [dependant.path_params, dependant.body_params]
        wants = [
            dependant.websocket_param_name,
            dependant.background_tasks_param_name,
            dependant.security_scopes_param_name,
            dependant.concurrency,
            dependant.own_oauth_scopes,
            dependant.parent_oauth_scopes,
        ]
        if any(here) or any(wants) or dependant.call is None:
            raise _NeedsFastAPI
        results = []
        for dependency in dependant.dependencies:
            key: object = (dependency.call, dependency.scope) if dependency.use_cache else object()
            if key not in places:
                call = self._call(dependency, places)
                places[key] = len(self.calls)
                self.calls.append(call)
            if dependency.name is not None:
                results.append((dependency.name, places[key]))
        function, opens = dependant.call, inspect.isasyncgenfunction(dependant.call)
        if opens:
            if dependant.scope != "function":
                raise _NeedsFastAPI
            function = asynccontextmanager(function)
        elif not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
            raise _NeedsFastAPI
        request = [name for name in (dependant.request_param_name, dependant.http_connection_param_name) if name]
        query = _Query(dependant.query_params) if dependant.query_params and not is_handler else None
        return _Call(function, results, request, dependant.response_param_name, opens, query)

    def values(self, scope: Scope, path_params: Mapping[str, Any], body: bytes) -> Validated | None:
        """What the handler and the dependencies get of path, query and body; None where that is not valid."""
        values: Values = {}
        try:
            query_string = scope["query_string"]
            of_calls = {place: query.values(query_string) for place, query in self.queries}
            for name, alias, field in self.path_fields:
                values[name] = _valid(field, path_params[alias], ("path", alias))
            if self.query.fields:
                values |= self.query.values(query_string)
            if self.body_field is not None:
                values[self.body_field.name] = _valid(self.body_field, _json(scope, body), ("body",))
        except _NeedsFastAPI:
            return None
        return Validated(values, of_calls)

    async def answer(self, values: Validated, request: Request) -> Response | _Json:
        response = _without_content() if self.headers else None
        if self.opens:
            async with AsyncExitStack() as stack:
                return await self._answer(values, request, response, stack)
        return await self._answer(values, request, response, None)

    async def _answer(
        self, values: Validated, request: Request, response: Response | None, stack: AsyncExitStack | None
    ) -> Response | _Json:
        results: list[Any] = []
        of_calls = values.of_calls
        for place, call in enumerate(self.calls):
            arguments = call.arguments(results, request, response)
            if place in of_calls:
                arguments |= of_calls[place]
            result = call.function(**arguments)
            results.append(await (stack.enter_async_context(result) if stack and call.opens else result))
        content = await self.endpoint(**values.of_handler, **self.handler.arguments(results, request, response))
        if isinstance(content, Response):
            return content
        status = response.status_code if response is not None and response.status_code else self.status
        return _Json(status, self._serialize(content), response.raw_headers if response is not None else ())

    def _serialize(self, content: Any) -> bytes:
        if self.answer_field is None:
            return b""
        value, errors = self.answer_field.validate(content, {}, loc=("response",))
        if errors:
            raise ResponseValidationError(errors=errors, body=content)
        body: bytes = self.answer_field.serialize_json(value, **self.dump)
        return body


def _valid(field: ModelField, value: Any, where: tuple[str, ...]) -> Any:
    """Raises _NeedsFastAPI for a value that is not valid."""
    value, errors = field.validate(value, {}, loc=where)
    if errors:
        raise _NeedsFastAPI
    return value


def _json(scope: Scope, body: bytes) -> Any:
    """Raises _NeedsFastAPI for a body that is not said to be JSON, or is none."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    if not body or kinds != [b"application/json"]:
        raise _NeedsFastAPI
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # no JSON, or a hundred thousand brackets
        raise _NeedsFastAPI from None


def _without_content() -> Response:
    """What a dependency or a handler sets headers and the status of."""
    response = Response()
    del response.headers["content-length"]
    response.status_code = None  # type: ignore[assignment]  # as FastAPI has it: not set
    return response


class _Candidate(NamedTuple):
    """A route of the application, in its order; `compiled` is None where FastAPI has to do it."""

    methods: frozenset[str]
    first_segment: str | None  # None: it is a parameter
    regex: Any
    convertors: Mapping[str, Any]
    compiled: FastRoute | None


class FastRoutes:
    """ASGI middleware around a FastAPI application's own router: put it in first, so that it is the innermost."""

    def __init__(self, app: ASGIApp, application: FastAPI) -> None:
        self._app = app
        self._application = application
        self._by_segment: dict[tuple[str, str], list[_Candidate]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._must_leave_to_fastapi(scope):
            await self._app(scope, receive, send)
            return
        route, path_params = self._find(scope)
        if route is None:
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            if route.body_field is not None:
                messages, body = await _read(receive)
                receive = _again(messages, receive)
            values = route.values(scope, path_params, body)
            if values is not None:
                scope.update(path_params=path_params, endpoint=route.endpoint, route=route.route)
                answer = await route.answer(values, Request(scope, receive))
        except Exception as error:
            handler = self._handler(error)
            if handler is None:
                raise
            request = Request(scope, receive)
            is_async = inspect.iscoroutinefunction(handler)
            response = await handler(request, error) if is_async else await run_in_threadpool(handler, request, error)
            await response(scope, receive, send)
            return
        await (self._app if values is None else answer)(scope, receive, send)

    def _must_leave_to_fastapi(self, scope: Scope) -> bool:
        return bool(self._application.dependency_overrides or scope.get("root_path") or "fastapi.telemetry" in scope)

    def _find(self, scope: Scope) -> tuple[FastRoute | None, Mapping[str, Any]]:
        if self._by_segment is None:
            self._by_segment = _by_segment(self._application)
        path, method = scope["path"], scope["method"]
        for candidate in self._by_segment.get((method, _first_segment(path)), ()):
            if (match := candidate.regex.match(path)) is not None:
                found = match.groupdict()
                return candidate.compiled, {name: candidate.convertors[name].convert(found[name]) for name in found}
        return None, {}

    def _handler(self, error: Exception) -> Callable[[Request, Exception], Any] | None:
        """As Starlette's ExceptionMiddleware finds it, which is inside of the router's own stack."""
        handlers: Mapping[Any, Any] = self._application.exception_handlers
        if isinstance(error, HTTPException) and error.status_code in handlers:
            return handlers[error.status_code]  # type: ignore[no-any-return]
        kinds = type(error).__mro__[: type(error).__mro__.index(Exception)]  # `Exception` is ServerErrorMiddleware's
        return next((handlers[kind] for kind in kinds if kind in handlers), None)


def _by_segment(application: FastAPI) -> dict[tuple[str, str], list[_Candidate]]:
    """Who could have a path, by method and first segment, in the order in which FastAPI would ask them."""
    candidates: list[_Candidate] = []
    for context in iter_route_contexts(application.routes):
        if not hasattr(context, "path_regex"):
            break  # it could have any path: what comes after it is FastAPI's to find
        first = _first_segment(context.path_format or "")
        try:
            compiled = FastRoute(context)
        except _NeedsFastAPI:
            compiled = None
        candidates.append(
            _Candidate(
                frozenset(context.methods or ()),
                None if "{" in first else first,
                context.path_regex,
                context.param_convertors,
                compiled,
            )
        )
    segments = {candidate.first_segment for candidate in candidates if candidate.first_segment is not None}
    methods = {method for candidate in candidates for method in candidate.methods}
    return {
        (method, segment): [
            candidate
            for candidate in candidates
            # No methods: a mounted application, which takes any.
            if (method in candidate.methods or not candidate.methods) and candidate.first_segment in (None, segment)
        ]
        for method in methods
        for segment in segments
    }


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    """The messages of a request's body, and the body."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    return messages, b"".join(message.get("body", b"") for message in messages)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that says again what has been read, and then goes on."""
    left = iter(messages)

    async def receive_again() -> Message:
        return next(left, None) or await receive()

    return receive_again
