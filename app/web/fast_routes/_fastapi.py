"""The private names of FastAPI and Starlette that fast routes use, under names that say what they are here.

Only `_routes_version` is read elsewhere, by the dispatcher for each request. tests/unit/test_private_names.py lists
all of them, and fails if an upgrade removes one.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

import fastapi._body_limit as _body_limit
import fastapi._compat.v2 as _fields
import fastapi.dependencies.utils as _dependencies
import fastapi.middleware.asyncexitstack as _asyncexitstack
import fastapi.routing as _routing
import fastapi.telemetry._asgi as _telemetry
import starlette.middleware.errors as _starlette_errors
import starlette.middleware.exceptions as _starlette_exceptions
import starlette.routing as _starlette_routing
from fastapi._body_limit import AppBodyLimitMiddleware
from fastapi._compat import ModelField, Undefined, field_annotation_is_sequence, lenient_issubclass
from fastapi._compat.v2 import _regenerate_error_with_loc as with_location
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.models import _get_cache_key as cache_key
from fastapi.dependencies.models import _get_oauth_scopes as oauth_scopes
from fastapi.dependencies.models import _is_async_gen_callable as is_async_generator
from fastapi.dependencies.models import _is_coroutine_callable as is_coroutine
from fastapi.dependencies.models import _is_gen_callable as is_generator
from fastapi.dependencies.utils import _get_form_models as form_models
from fastapi.dependencies.utils import _get_param_aliases as param_aliases
from fastapi.dependencies.utils import _get_param_model as param_model
from fastapi.dependencies.utils import _is_json_field as is_json_field
from fastapi.dependencies.utils import _should_embed_body_fields as should_embed_body_fields
from fastapi.dependencies.utils import _solve_generator as solve_generator
from fastapi.dependencies.utils import _validate_value_with_model_field as validate_value
from fastapi.dependencies.utils import (  # type: ignore[attr-defined]  # what it imports itself
    get_cached_model_fields,
    request_body_to_args,
    request_params_to_args,
    solve_dependencies,
)
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import _FASTAPI_SCOPE_KEY as FASTAPI_SCOPE_KEY
from fastapi.routing import _extract_endpoint_context as endpoint_context
from fastapi.routing import _IncludedRouter as IncludedRouter
from fastapi.routing import _resolve_form_limits as resolve_form_limits
from fastapi.routing import get_body_limit_error  # type: ignore[attr-defined]  # not in its __all__
from fastapi.telemetry._api import _operation as operation_span
from fastapi.telemetry._api import _route_selected as record_route
from fastapi.telemetry._api import _run_sync_endpoint as run_sync_endpoint
from fastapi.telemetry._api import _validation_failed as record_validation_failure
from fastapi.telemetry._api import get_telemetry_data
from fastapi.telemetry._asgi import ExceptionTelemetryMiddleware
from pydantic import ValidationError
from starlette._exception_handler import _lookup_exception_handler as lookup_exception_handler
from starlette._utils import get_route_path, is_async_callable
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

__all__ = [
    "FASTAPI_SCOPE_KEY",
    "FILE_STACK_KEY",
    "MAX_BODY_SIZE_SCOPE_KEY",
    "Dependant",
    "Handler",
    "HandlerOptions",
    "IncludedRouter",
    "ModelField",
    "Undefined",
    "are_inner_middlewares",
    "cache_key",
    "endpoint_context",
    "field_annotation_is_sequence",
    "form_models",
    "get_body_limit_error",
    "get_cached_model_fields",
    "get_route_path",
    "get_telemetry_data",
    "handler_of",
    "handlers_of",
    "inside_outer_middlewares",
    "is_async_callable",
    "is_async_generator",
    "is_coroutine",
    "is_generator",
    "is_json_field",
    "is_used",
    "json_serializer",
    "lenient_issubclass",
    "lookup_exception_handler",
    "oauth_scopes",
    "operation_span",
    "param_aliases",
    "param_model",
    "parse_json",
    "read_body",
    "record_route",
    "record_validation_failure",
    "replaced_function",
    "request_body_to_args",
    "request_params_to_args",
    "resolve_form_limits",
    "run_sync_endpoint",
    "should_embed_body_fields",
    "solve_dependencies",
    "solve_generator",
    "validate_value",
    "validator",
]

FILE_STACK_KEY = "fastapi_middleware_astack"
"""The scope's key of the stack that closes files. FastAPI's applications put it there; a router alone does not."""

Handler = Callable[[Request], Awaitable[Response]]


def _is_made_by(maker: str, function: Any) -> bool:
    """Return True if `function` is the inner function `app` that a function of fastapi.routing has made.

    Its code tells. An instrumentation may have replaced the maker in the module before this module was imported.
    """
    return _is_defined_in(_routing, function) and function.__code__.co_qualname == f"{maker}.<locals>.app"


def _is_defined_in(module: ModuleType, function: Any) -> bool:
    # type(), as wrapt's proxies claim to be functions and lend the code of what they wrap.
    return type(function) is FunctionType and function.__code__.co_filename == module.__file__


def _is_handler(function: Any) -> bool:
    return _is_made_by("get_request_handler", function)


# What FastAPI runs for each request and a plan does not: owner, name, and the module that defines it.
_FUNCTIONS: tuple[tuple[Any, str, ModuleType], ...] = (
    (_routing, "solve_dependencies", _dependencies),
    (_routing, "run_endpoint_function", _routing),
    (_routing, "serialize_response", _routing),
    *((_routing.APIRoute, name, _routing) for name in ("matches", "handle")),
    *((_routing.APIRouter, name, _routing) for name in ("matches", "handle", "app")),
    *((IncludedRouter, name, _routing) for name in ("matches", "handle", "_match", "_handle_selected")),
    *((_starlette_routing.Route, name, _starlette_routing) for name in ("matches", "handle")),
)


class HandlerOptions(NamedTuple):
    """The arguments with which FastAPI made a handler, under their names in `get_request_handler`.

    FastAPI's handler keeps them. Later changes of the route's attributes have no effect on it.
    """

    dependant: Dependant
    body_field: ModelField | None
    embed_body_fields: bool
    form_limits: Mapping[str, Any] | None
    actual_strict_content_type: bool
    status_code: int | None
    response_class: Any
    actual_response_class: Any
    response_field: ModelField | None
    response_model_include: Any
    response_model_exclude: Any
    response_model_by_alias: bool
    response_model_exclude_unset: bool
    response_model_exclude_defaults: bool
    response_model_exclude_none: bool
    dependency_overrides_provider: Any
    is_coroutine: bool
    is_sse_stream: bool
    is_json_stream: bool


def handler_of(app: Any, own: Handler) -> tuple[HandlerOptions, Handler] | None:
    """Return the options of the FastAPI handler in an operation's ASGI app, and that app's handler around `own`.

    An instrumentation that wraps FastAPI's handler (Sentry does) keeps its wrapper, which then calls `own`. None if
    `app` or its handler is not FastAPI's own work: a subclass or an instrumentation replaced it.
    """
    if not _is_made_by("request_response", app):
        return None
    handler = _cells(app)["f"].cell_contents
    if _is_handler(handler):
        return _options(handler), own
    if not isinstance(handler, FunctionType) or handler.__closure__ is None:
        return None
    found = [cell for cell in handler.__closure__ if _is_handler(cell.cell_contents)]
    if len(found) != 1:
        return None
    closure = tuple(CellType(own) if cell is found[0] else cell for cell in handler.__closure__)
    wrapper = FunctionType(
        handler.__code__, handler.__globals__, handler.__name__, handler.__defaults__, closure=closure
    )
    wrapper.__kwdefaults__ = handler.__kwdefaults__
    return _options(found[0].cell_contents), wrapper


def replaced_function() -> str | None:
    """Return the name of a function that an instrumentation has replaced and that a plan would not call."""
    for owner, name, module in _FUNCTIONS:
        if not _is_defined_in(module, getattr(owner, name)):
            return f"{owner.__name__}.{name}"
    return None


def _options(handler: Any) -> HandlerOptions:
    cells = _cells(handler)
    return HandlerOptions(**{name: cells[name].cell_contents for name in HandlerOptions._fields})


def _cells(function: Any) -> dict[str, CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


_BODY, _JSON = Request.body, Request.json


def _is_untouched(request: Request) -> bool:
    """Return True if the request is Starlette's own, and nothing has read its body: a wrapper may have done so."""
    return (
        type(request) is Request
        and Request.body is _BODY
        and Request.json is _JSON
        and not request._stream_consumed
        and not hasattr(request, "_body")
    )


async def read_body(request: Request) -> bytes:
    """Return `await request.body()`; of an untouched request, without its async generator."""
    if not _is_untouched(request):
        return await request.body()
    message = await request._receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
    else:
        chunks = []
        while True:
            if message["type"] == "http.request":
                chunks.append(message.get("body", b""))
                if not message.get("more_body", False):
                    break
            elif message["type"] == "http.disconnect":
                request._is_disconnected = True
                raise ClientDisconnect
            message = await request._receive()
        body = b"".join(chunks)
    request._stream_consumed = True
    request._body = body
    return body


def parse_json(request: Request, body: bytes) -> Any:
    """Return `await request.json()` of a request with this body, without a coroutine; `Undefined` if it was replaced.

    Raise json.JSONDecodeError.
    """
    if type(request) is not Request or Request.json is not _JSON or hasattr(request, "_json"):
        return Undefined
    request._json = json.loads(body)
    return request._json


def is_used(stack: AsyncExitStack) -> bool:
    """Return True if something was pushed onto the stack: leaving it without that does nothing."""
    return bool(stack._exit_callbacks)  # type: ignore[attr-defined]


def validator(field: ModelField, loc: tuple[str, ...]) -> Callable[[Any], tuple[Any, Sequence[Any]]]:
    """Return a function that does what `field.validate()` does with a value at this location: with one call, not three.

    It returns the valid value and errors.
    """
    if not _is_own(field, "validate"):
        return lambda value: field.validate(value, {}, loc=loc)
    adapter = field._type_adapter  # its validator is replaced when a forward reference is resolved

    def validate(value: Any) -> tuple[Any, Sequence[Any]]:
        try:
            return adapter.validator.validate_python(value, from_attributes=True), ()
        except ValidationError as error:
            return None, with_location(errors=error.errors(include_url=False), loc_prefix=loc)

    return validate


def json_serializer(field: ModelField, options: Mapping[str, Any]) -> Callable[[Any], bytes]:
    """Return a function that does what `field.serialize_json()` does with a value: with one call, not three."""
    if not _is_own(field, "serialize_json"):
        return lambda value: field.serialize_json(value, **options)
    adapter = field._type_adapter
    given = {name: value for name, value in options.items() if name == "by_alias" or value not in (None, False)}
    return lambda value: adapter.serializer.to_json(value, **given)


def _is_own(field: ModelField, method: str) -> bool:
    return type(field) is ModelField and _is_defined_in(_fields, getattr(ModelField, method))


def are_inner_middlewares(outer: Any, inner: Any) -> bool:
    """Return True if these are FastAPI's innermost middlewares, and no instrumentation has replaced what they do."""
    return (
        type(outer) is ExceptionMiddleware
        and type(inner) is AsyncExitStackMiddleware
        and inner.context_name == FILE_STACK_KEY
        and _is_defined_in(_starlette_exceptions, ExceptionMiddleware.__call__)
        and _is_defined_in(_asyncexitstack, AsyncExitStackMiddleware.__call__)
    )


def inside_outer_middlewares(stack: Any) -> Any:
    """Return what FastAPI's outermost three middlewares wrap.

    None if they are not its own, an instrumentation has replaced what they do, or the application limits bodies.
    """
    expected = (
        (ServerErrorMiddleware, _starlette_errors),
        (ExceptionTelemetryMiddleware, _telemetry),
        (AppBodyLimitMiddleware, _body_limit),
    )
    for middleware, module in expected:
        if type(stack) is not middleware or not _is_defined_in(module, middleware.__call__):
            return None
        stack = stack.app
    return stack


def handlers_of(middleware: ExceptionMiddleware) -> tuple[Any, Any]:
    """Return the exception handlers by class and by status, as the middleware puts them into the scope."""
    return middleware._exception_handlers, middleware._status_handlers
