"""The plan of one operation: an ASGI application that does what FastAPI's own does, prepared once."""

import email.message
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from enum import Enum
from functools import partial
from typing import Any, cast

from fastapi import BackgroundTasks, params
from fastapi.datastructures import DefaultPlaceholder
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import FastAPIError, RequestValidationError, ResponseValidationError
from fastapi.security import SecurityScopes
from fastapi.utils import is_body_allowed_for_status_code
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.request_deadline import held, uninterrupted
from app.web.fast_routes import _fastapi as private
from app.web.fast_routes.parameters import Errors, Values, reader

_NO_HANDLERS: tuple[Any, Any] = ({}, {})  # by class and by status, as Starlette keeps them in the scope


_NOT_AWAITED = (
    "Response not awaited. There's a high chance that the "
    "application code is raising an exception and a dependency with yield "
    "has a block with a bare except, or a block with except Exception, "
    "and is not raising the exception again. Read more about it in the "
    "docs: https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/#dependencies-with-yield-and-except"
)


class NotPlannable(Exception):
    """FastAPI has to run this operation. The message says why."""


class _Kind(Enum):
    COROUTINE = "coroutine"
    THREAD = "thread"
    GENERATOR = "generator"


class _Node:
    """A dependency, or the endpoint: one `Dependant` of FastAPI's, with everything decided that can be.

    `children` are the dependencies whose results it gets: argument name (None: the result is not used) and place.
    """

    def __init__(
        self, dependant: private.Dependant, *, embed: bool, place: int, children: list[tuple[str | None, int]]
    ) -> None:
        self.dependant = dependant
        self.place = place
        self.children = children
        self.call = cast("Callable[..., Any]", dependant.call)
        if private.is_generator(dependant.call) or private.is_async_generator(dependant.call):
            self.kind = _Kind.GENERATOR
        else:
            self.kind = _Kind.COROUTINE if private.is_coroutine(dependant.call) else _Kind.THREAD
        self.use_cache = dependant.use_cache
        self.key = private.cache_key(dependant=dependant)
        self.concurrency = dependant.concurrency
        self.is_shared = False
        # It can then be awaited without a look at the cache or a semaphore.
        self.is_plain_coroutine = self.kind is _Kind.COROUTINE and self.concurrency is None
        self.stack = "fastapi_function_astack" if dependant.scope == "function" else "fastapi_inner_astack"
        readers = (
            reader(dependant.path_params, lambda request: request.path_params),
            reader(dependant.query_params, lambda request: request.query_params),
            reader(dependant.header_params, lambda request: request.headers),
            reader(dependant.cookie_params, lambda request: request.cookies),
        )
        self.readers = [each for each in readers if each is not None]
        self.embed = embed
        self.body_fields = dependant.body_params
        self.body_field = self._single_body_field()
        self.request_names = [
            name for name in (dependant.http_connection_param_name, dependant.request_param_name) if name
        ]
        self.background_name = dependant.background_tasks_param_name
        self.response_name = dependant.response_param_name
        self.scopes_name = dependant.security_scopes_param_name
        self.has_other_values = bool(self.background_name or self.response_name or self.scopes_name)
        self.has_own_values = bool(self.readers or self.body_fields)
        # The name of its argument, if the request is all that it takes: most dependencies are like this.
        self.only_argument: str | None = None
        if (
            self.is_plain_coroutine
            and len(self.request_names) == 1
            and not (children or self.has_own_values or self.has_other_values)
        ):
            self.only_argument = self.request_names[0]

    def _single_body_field(self) -> private.ModelField | None:
        """Return the field that takes the whole JSON body; None if FastAPI's function has to read the body's fields."""
        fields = self.body_fields
        if len(fields) != 1 or self.embed or private.should_embed_body_fields(fields) or private.form_models(fields[0]):
            return None
        return fields[0] if type(fields[0].field_info) is params.Body else None

    def share(self) -> None:
        """Note that another node has the same cache key: this one may have to take its result."""
        self.is_shared = True
        self.is_plain_coroutine = False
        self.only_argument = None


# As FastAPI's SolvedDependency: the endpoint's arguments, validation errors, background tasks and response parameter.
_Solved = tuple[Values, Errors, Any, Response | None]


class _JsonResponse(tuple[int, bytes, Iterable[tuple[bytes, bytes]]]):
    """Status, body and further headers of a JSON response, without the objects of Starlette's Response."""

    __slots__ = ()


class Answer:
    """Sends the response to a request, and notes that it has begun. `handlers` are the exception handlers."""

    __slots__ = ("_handlers", "_send", "has_started")

    def __init__(self, send: Send, handlers: tuple[Any, Any]) -> None:
        self._send = send
        self._handlers = handlers
        self.has_started = False

    async def send(self, message: Message) -> None:
        """Send a message of any response."""
        if message["type"] == "http.response.start":
            self.has_started = True
        await self._send(message)

    async def send_json(self, response: _JsonResponse) -> None:
        """Send a JSON response as Starlette's Response sends it."""
        status, body, own_headers = response
        if is_body_allowed_for_status_code(status):
            headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"), *own_headers]
        else:
            headers, body = [(b"content-type", b"application/json"), *own_headers], b""
        self.has_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def handle(self, error: Exception, request: Request) -> None:
        """Let the handler of an exception answer, as Starlette's `wrap_app_handling_exceptions`. Raise without one."""
        handler = _exception_handler(self._handlers, error)
        if handler is None:
            raise error
        if self.has_started:
            raise RuntimeError("Caught handled exception, but response already started.") from error
        if private.is_async_callable(handler):
            response = await handler(request, error)
        else:
            response = await run_in_threadpool(handler, request, error)
        if response is not None:
            await response(request.scope, request.receive, self.send)
        # Reused exception instances would accumulate tracebacks.
        error.__traceback__ = None


class OperationPlan:
    """Answers the requests of one operation. Takes the place of `APIRoute.app`."""

    def __init__(self, context: Any) -> None:
        """Prepare the plan. `context` is the route, or FastAPI's context of the route in an included router.

        Raise NotPlannable.
        """
        if context.max_body_size is not None:
            raise NotPlannable("it has a body size limit of its own")
        if (replaced := private.replaced_function()) is not None:
            raise NotPlannable(f"an instrumentation replaced {replaced}()")
        found = private.handler_of(context.app, self._respond)
        if found is None:
            raise NotPlannable("its handler was replaced by a subclass or an instrumentation")
        options, handler = found
        dependant = options.dependant
        if dependant.call is None:
            raise NotPlannable("it has no endpoint")
        if (
            options.is_sse_stream
            or options.is_json_stream
            or private.is_generator(dependant.call)
            or private.is_async_generator(dependant.call)
        ):
            raise NotPlannable("it streams its response")

        self.context = context
        self.original_app: ASGIApp = context.app
        self._handler = handler
        self._is_wrapped = handler != self._respond  # the wrapper may change the response that it gets
        self._dependant = dependant
        self._call = dependant.call
        self._is_coroutine = options.is_coroutine
        self._overrides_provider = options.dependency_overrides_provider
        self._body_field = options.body_field
        self._is_form = bool(self._body_field and isinstance(self._body_field.field_info, params.Form))
        self._form_limits: Any = options.form_limits
        self._strict_content_type = options.actual_strict_content_type
        self._status_code = options.status_code
        self._response_class = options.actual_response_class
        self._response_field = options.response_field
        dump_options = {
            "include": options.response_model_include,
            "exclude": options.response_model_exclude,
            "by_alias": options.response_model_by_alias,
            "exclude_unset": options.response_model_exclude_unset,
            "exclude_defaults": options.response_model_exclude_defaults,
            "exclude_none": options.response_model_exclude_none,
        }
        self._dumps_json = False
        if (field := self._response_field) is not None:
            self._dumps_json = isinstance(options.response_class, DefaultPlaceholder)
            self._validate_response = private.validator(field, ("response",))
            self._serialize: Callable[[Any], Any] = (
                private.json_serializer(field, dump_options)
                if self._dumps_json
                else partial(field.serialize, **dump_options)
            )

        nodes: list[_Node] = []
        self._add_node(dependant, options.embed_body_fields, nodes)
        self._endpoint = nodes.pop()
        self._nodes = nodes
        self._nodes_and_endpoint = (*nodes, self._endpoint)
        keys = [node.key for node in nodes]
        for node in nodes:
            if keys.count(node.key) > 1:
                node.share()
        if self._overrides_provider is not None and not all(node.use_cache for node in nodes):
            # If a dependency installs an override, FastAPI solves the rest with the results so far as its cache.
            raise NotPlannable("a dependency has use_cache=False")
        has_exits = any(node.kind is _Kind.GENERATOR for node in nodes)
        self.answer = self._answer_with_exits if has_exits else self._answer
        self._has_response_parameter = any(node.response_name for node in (*nodes, self._endpoint))

    def _add_node(self, dependant: private.Dependant, embed: bool, nodes: list[_Node]) -> int:
        """Add a dependant after its dependencies, the order in which FastAPI solves them. Return its place."""
        children = [(each.name, self._add_node(each, embed, nodes)) for each in dependant.dependencies]
        nodes.append(_Node(dependant, embed=embed, place=len(nodes), children=children))
        return len(nodes) - 1

    @property
    def is_overridden(self) -> bool:
        """Return True if dependencies are overridden at this moment, as tests do: FastAPI then runs the operation."""
        provider = self._overrides_provider
        return provider is not None and bool(provider.dependency_overrides)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as FastAPI's `request_response`."""
        handlers = scope.get("starlette.exception_handlers", _NO_HANDLERS)
        request, answer = Request(scope, receive, send), Answer(send, handlers)
        try:
            await self.answer(request, answer)
        except Exception as error:  # noqa: BLE001 - raised again if it has no handler
            await answer.handle(error, request)

    async def _answer(self, request: Request, answer: "Answer") -> None:
        """Answer a request of an operation without exits. The stacks are there for code that uses them itself."""
        scope = request.scope
        request_stack = scope["fastapi_inner_astack"] = AsyncExitStack()
        function_stack = scope["fastapi_function_astack"] = AsyncExitStack()
        awaited = False
        try:
            try:
                response: Any = await self._handler(request)
            except BaseException:
                if not (private.is_used(function_stack) and await function_stack.__aexit__(*sys.exc_info())):
                    raise
            else:
                if private.is_used(function_stack):
                    await function_stack.aclose()
            # Unbound if a callback of the function stack swallowed the exception: the same error as in FastAPI.
            if type(response) is _JsonResponse:
                await answer.send_json(response)
            else:
                await response(scope, request.receive, answer.send)
            awaited = True
        except BaseException:
            if not (private.is_used(request_stack) and await request_stack.__aexit__(*sys.exc_info())):
                raise
        else:
            if private.is_used(request_stack):
                await request_stack.aclose()
        if not awaited:
            raise FastAPIError(_NOT_AWAITED)

    async def _answer_with_exits(self, request: Request, answer: "Answer") -> None:
        scope = request.scope
        awaited = False
        async with AsyncExitStack() as request_stack:
            scope["fastapi_inner_astack"] = request_stack
            async with AsyncExitStack() as function_stack:
                scope["fastapi_function_astack"] = function_stack
                response: Any = await self._handler(request)
            if type(response) is _JsonResponse:
                await answer.send_json(response)
            else:
                await response(scope, request.receive, answer.send)
            awaited = True
        if not awaited:
            raise FastAPIError(_NOT_AWAITED)

    async def _respond(self, request: Request) -> Any:
        """Return the response, as the handler that FastAPI's `get_request_handler` makes."""
        telemetry = private.get_telemetry_data() if request.scope.get("fastapi.telemetry") is not None else None
        if telemetry is not None:
            telemetry.request = request
        body: Any = private.Undefined
        if self._body_field is not None:
            body = await self._read_body(request)
        if telemetry is None:
            values, errors, background, response = await self._solve(request, body)
        else:
            telemetry.body = None if body is private.Undefined else body
            with private.operation_span(name="dependencies", function=self._call):
                values, errors, background, response = await self._solve(request, body)
                telemetry.values = values
                telemetry.errors = errors
        if errors:
            error = RequestValidationError(
                errors,
                body=None if body is private.Undefined else body,
                endpoint_ctx=self._endpoint_context(request),
            )
            private.record_validation_failure(error)
            raise error
        if not self._is_coroutine:
            with held():  # a cancellation would free the limit of threads, not the thread
                result = await run_in_threadpool(private.run_sync_endpoint, function=self._call, arguments=values)
        elif telemetry is None:
            result = await self._call(**values)
        else:
            with private.operation_span(name="endpoint", function=self._call):
                result = await self._call(**values)
        if isinstance(result, Response):
            if result.background is None:
                result.background = background
            return result
        if telemetry is None:
            content = self._dump(request, result) if self._is_coroutine else await self._dump_somewhere(request, result)
        else:
            with private.operation_span(name="serialization", function=self._call):
                content = await self._dump_somewhere(request, result)
        return self._make_response(content, background, response)

    def _make_response(self, content: Any, background: Any, shared: Response | None) -> Any:
        status = (shared.status_code if shared is not None else None) or self._status_code
        if self._dumps_json and background is None and not self._is_wrapped:
            # A copy: exits of dependencies that run before the response is sent no longer change it.
            return _JsonResponse((status or 200, content, tuple(shared.headers.raw) if shared is not None else ()))
        arguments: Values = {"background": background}
        if status is not None:
            arguments["status_code"] = status
        if self._dumps_json:
            response = Response(content=content, media_type="application/json", **arguments)
        else:
            response = self._response_class(content, **arguments)
        if not is_body_allowed_for_status_code(response.status_code):
            response.body = b""
        if shared is not None:
            response.headers.raw.extend(shared.headers.raw)
        return response

    def _dump(self, request: Request, result: Any) -> Any:
        """Return the content of the response, as FastAPI's `serialize_response`."""
        if self._response_field is None:
            return jsonable_encoder(result)
        return self._dump_valid(request, result, *self._validate_response(result))

    async def _dump_somewhere(self, request: Request, result: Any) -> Any:
        """Return the content of the response. The result of a function is validated in a thread, as in FastAPI."""
        if self._is_coroutine or self._response_field is None:
            return self._dump(request, result)
        return self._dump_valid(request, result, *await run_in_threadpool(self._validate_response, result))

    def _dump_valid(self, request: Request, result: Any, value: Any, errors: Any) -> Any:
        if errors:
            raise ResponseValidationError(errors=errors, body=result, endpoint_ctx=self._endpoint_context(request))
        return self._serialize(value)

    def _endpoint_context(self, request: Request) -> Any:
        context = private.endpoint_context(self._call)
        if self._dependant.path:
            mount_path = request.scope.get("root_path", "").rstrip("/")
            context["path"] = f"{request.method} {mount_path}{self._dependant.path}"
        return context

    async def _read_body(self, request: Request) -> Any:
        scope = request.scope
        try:
            if self._is_form:
                limits = private.resolve_form_limits(scope.get(private.FASTAPI_SCOPE_KEY, {}), self._form_limits)
                form = await request.form(**limits)
                scope[private.FILE_STACK_KEY].push_async_callback(form.close)
                return form
            sent = await private.read_body(request)
            if not sent:
                return private.Undefined
            if not self._is_json(request):
                return sent
            parsed = private.parse_json(request, sent)
            if parsed is private.Undefined:
                parsed = await request.json()
        except json.JSONDecodeError as error:
            invalid = RequestValidationError(
                [
                    {
                        "type": "json_invalid",
                        "loc": ("body", error.pos),
                        "msg": "JSON decode error",
                        "input": {},
                        "ctx": {"error": error.msg},
                    }
                ],
                body=error.doc,
                endpoint_ctx=self._endpoint_context(request),
            )
            private.record_validation_failure(invalid)
            raise invalid from error
        except HTTPException:
            raise
        except Exception as error:
            if private.MAX_BODY_SIZE_SCOPE_KEY in scope and (limit_error := private.get_body_limit_error(error)):
                raise limit_error from error
            raise HTTPException(status_code=400, detail="There was an error parsing the body") from error
        return parsed

    def _is_json(self, request: Request) -> bool:
        """Return True if the content type is JSON, or is missing where that is allowed."""
        content_type = b""
        for name, value in request.scope["headers"]:
            if name == b"content-type":
                content_type = value
                break
        if content_type == b"application/json":
            return True
        if not content_type:
            return not self._strict_content_type
        message = email.message.Message()
        message["content-type"] = content_type.decode("latin-1")
        if message.get_content_maintype() != "application":
            return False
        subtype = message.get_content_subtype()
        return subtype == "json" or subtype.endswith("+json")

    async def _solve(self, request: Request, body: Any) -> _Solved:
        """Return the endpoint's arguments, as FastAPI's `solve_dependencies`: its recursion, walked as a list."""
        background: Any = None
        response = _response_parameter() if self._has_response_parameter else None
        results: list[Any] = []
        cache: dict[Any, Any] = {}
        errors: Errors = []
        failed: set[int] = set()  # places whose parameters, or whose dependencies' parameters, are not valid
        provider = self._overrides_provider
        endpoint = self._endpoint
        for node in self._nodes_and_endpoint:
            if (name := node.only_argument) is not None and node is not endpoint:
                results.append(await node.call(**{name: request}))
                if provider is not None and provider.dependency_overrides:
                    return await self._solve_with_overrides(request, body, results, background, response)
                continue
            values: Values = {}
            errors_before = len(errors)
            is_callable = True
            for child, place in node.children:
                if place in failed:
                    is_callable = False
                elif child is not None:
                    values[child] = results[place]
            if node.has_own_values:
                for read in node.readers:
                    read(request, values, errors)
                if (field := node.body_field) is not None:
                    value, field_errors = private.validate_value(field=field, value=body, values={}, loc=("body",))
                    values[field.name] = value
                    errors.extend(field_errors)
                elif node.body_fields:
                    found, field_errors = await private.request_body_to_args(
                        body_fields=node.body_fields, received_body=body, embed_body_fields=node.embed
                    )
                    values.update(found)
                    errors.extend(field_errors)
            for argument in node.request_names:
                values[argument] = request
            if node.has_other_values:
                if node.background_name is not None:
                    background = background if background is not None else BackgroundTasks()
                    values[node.background_name] = background
                if node.response_name:
                    values[node.response_name] = response
                if node.scopes_name:
                    scopes = private.oauth_scopes(dependant=node.dependant)
                    values[node.scopes_name] = SecurityScopes(scopes=scopes)
            if node is endpoint:
                return values, errors, background, response
            if len(errors) > errors_before or not is_callable:
                failed.add(node.place)
                results.append(None)
                continue
            if node.is_plain_coroutine:
                result = await node.call(**values)
            elif node.is_shared and node.use_cache and node.key in cache:
                result = cache[node.key]
            else:
                result = await self._call_dependency(node, request, values)
            results.append(result)
            if provider is not None and provider.dependency_overrides:
                return await self._solve_with_overrides(request, body, results, background, response)
            if node.is_shared:
                cache.setdefault(node.key, result)
        raise AssertionError("the endpoint is the last node")

    @staticmethod
    async def _call_dependency(node: _Node, request: Request, values: Values) -> Any:
        if node.kind is _Kind.GENERATOR:
            return await private.solve_generator(
                request=request, dependant=node.dependant, stack=request.scope[node.stack], sub_values=values
            )
        if node.concurrency is None:
            return await _call(node, values)
        async with node.concurrency.get_semaphore():
            return await _call(node, values)

    async def _solve_with_overrides(
        self, request: Request, body: Any, results: list[Any], background: Any, response: Response | None
    ) -> _Solved:
        """Let FastAPI solve the rest: a dependency has just installed an override, which applies at once."""
        cache: dict[Any, Any] = {}
        for node, result in zip(self._nodes, results, strict=False):
            cache.setdefault(node.key, result)
        solved = await private.solve_dependencies(
            request=request,
            dependant=self._dependant,
            body=body,
            background_tasks=background,
            response=response,
            dependency_overrides_provider=self._overrides_provider,
            dependency_cache=cache,
            async_exit_stack=request.scope["fastapi_inner_astack"],
            embed_body_fields=self._endpoint.embed,
        )
        return solved.values, solved.errors, solved.background_tasks, solved.response


async def _call(node: _Node, values: Values) -> Any:
    if node.kind is _Kind.COROUTINE:
        return await node.call(**values)
    with uninterrupted():
        return await run_in_threadpool(node.call, **values)


def _response_parameter() -> Response:
    """Return the Response whose headers and status dependencies and the endpoint may set.

    It is a copy: that takes a quarter of the time of `Response()`.
    """
    response = Response.__new__(Response)
    response.__dict__.update(_EMPTY_RESPONSE)
    response.raw_headers = []
    return response


# The attributes of the Response that FastAPI makes for a parameter. A status of None is its marker for "not set".
_EMPTY_RESPONSE = {**vars(Response()), "status_code": None}


def _exception_handler(handlers: tuple[Any, Any], error: Exception) -> Any:
    """Return the handler of an exception, as Starlette looks it up; None if there is none."""
    exception_handlers, status_handlers = handlers
    handler = status_handlers.get(error.status_code) if isinstance(error, HTTPException) else None
    return handler if handler is not None else private.lookup_exception_handler(exception_handlers, error)
