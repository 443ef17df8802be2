"""Checks of every route at startup. The application does not start with a route that fails one."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from app.database import Database
from app.pagination.page import ListParams
from app.web.deps import get_database, get_db
from app.web.mounted import mounted_applications
from app.web.pagination import refuses_repeated


def check_routes(app: FastAPI) -> None:
    """Check the application's routes, and those of mounted applications.

    Raise RuntimeError for a route that would commit after the response is sent, and for a streaming route whose
    transaction ends before the stream. Also for a list route that would ignore all but the last of repeated parameters.
    """
    for application in (app, *mounted_applications(app)):
        for route in iter_route_contexts(application.routes):
            dependant = getattr(route, "dependant", None)
            if isinstance(dependant, Dependant):
                _check_stream(route.path, dependant)
                _check_list(route.path, dependant)
                for each in _dependencies(dependant):
                    _check_commit(route.path, each)
                    _check_list(route.path, each)


def _check_commit(path: str | None, dependency: Dependant) -> None:
    if dependency.scope == "function":
        return
    if dependency.call is get_db:
        raise RuntimeError(
            f'{path} depends on get_db without scope="function": its transaction would be committed after the '
            f"response is sent. Annotate the parameter as WriteDb."
        )
    call = dependency.call
    if call is not None and (_is_generator(call) and (_takes_database(dependency) or _yields_inside_write(call))):
        name = getattr(call, "__qualname__", type(call).__qualname__)
        raise RuntimeError(
            f"{path} depends on {name}, which yields and can write: with FastAPI's default scope, its transaction would"
            f' be committed after the response is sent. Declare it as Depends({name}, scope="function"). If it only'
            f" reads, let it take ReadDb instead of the Database."
        )


def _check_stream(path: str | None, endpoint: Dependant) -> None:
    takes_write_session = any(dependency.call is get_db for dependency in endpoint.dependencies)
    if takes_write_session and endpoint.call is not None and _is_generator(endpoint.call):
        raise RuntimeError(
            f"{path} streams its response and takes WriteDb: the session would end before the first item. Take"
            f" DatabaseDep, and open `async with database.write()` in the stream."
        )


def _check_list(path: str | None, dependant: Dependant) -> None:
    if refuses_repeated(dependant.call):
        return
    # As a query parameter, alone or in a union, and as `Depends()` of the class itself.
    annotations = [
        annotation for field in dependant.query_params for annotation in _members(field.field_info.annotation)
    ]
    for annotation in (*annotations, dependant.call):
        if isinstance(annotation, type) and issubclass(annotation, ListParams):
            raise RuntimeError(  # noqa: TRY004 - nothing here has a wrong type
                f"{path} takes {annotation.__name__} without ListQuery: repeated parameters would be ignored. "
                f"Annotate it as ListQuery[{annotation.__name__}]."
            )


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _dependencies(dependant: Dependant) -> Iterator[Dependant]:
    for dependency in dependant.dependencies:
        yield dependency
        yield from _dependencies(dependency)


def _function(call: Callable[..., Any]) -> Any:
    """Return the function that FastAPI runs for a dependency: without partial() and decorators, or its __call__()."""
    while isinstance(call, partial):
        call = call.func
    call = inspect.unwrap(call)
    return call if inspect.isroutine(call) or inspect.isclass(call) else inspect.unwrap(type(call).__call__)


def _is_generator(call: Callable[..., Any]) -> bool:
    function = _function(call)
    return inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)


def _takes_database(dependency: Dependant) -> bool:
    """Return True if one of the dependency's own arguments is a Database."""
    if any(each.call is get_database for each in dependency.dependencies):
        return True
    signature = inspect.signature(_function(dependency.call))  # type: ignore[arg-type]
    with suppress(Exception):  # an annotation that cannot be evaluated here
        signature = inspect.signature(_function(dependency.call), eval_str=True)  # type: ignore[arg-type]
    return any(_is_database(parameter.annotation) for parameter in signature.parameters.values())


def _is_database(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return isinstance(annotation, type) and issubclass(annotation, Database)


def _yields_inside_write(call: Callable[..., Any]) -> bool:
    """Return True if the function's source has a `yield` inside `async with ....write():`.

    A function that enters the block in another way is refused when it is used: by `RequestMiddleware`.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(_function(call))))
    except (OSError, TypeError, SyntaxError):  # without source, or a lambda
        return False
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncWith)]
    return any(
        any(_is_write(item.context_expr) for item in block.items)
        and any(isinstance(inner, ast.Yield) for statement in block.body for inner in ast.walk(statement))
        for block in blocks
    )


def _is_write(expression: ast.expr) -> bool:
    """Return True for a call of a method `write` without arguments, as of a Database, not of a file."""
    if not isinstance(expression, ast.Call) or expression.args or expression.keywords:
        return False
    return isinstance(expression.func, ast.Attribute) and expression.func.attr == "write"
