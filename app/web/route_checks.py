"""Checks of every route at startup. The application does not start with a route that fails one."""

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from app.pagination.page import ListParams
from app.web.deps import get_db
from app.web.pagination import refuses_repeated


def check_routes(app: FastAPI) -> None:
    """Check the application's routes, and those of mounted FastAPI applications.

    Raise RuntimeError for a route that would commit after the response is sent, and for a list route that would ignore
    all but the last of repeated query parameters.
    """
    for mounted in app.routes:
        if isinstance(mounted, Mount) and isinstance(mounted.app, FastAPI):
            check_routes(mounted.app)
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        if isinstance(dependant, Dependant):
            for each in _all_dependants(dependant):
                _check(route.path, each)


def _check(path: str | None, dependant: Dependant) -> None:
    if dependant.call is get_db and dependant.scope != "function":
        raise RuntimeError(
            f'{path} depends on get_db without scope="function": its transaction would be committed after the '
            f"response is sent. Annotate the parameter as WriteDb."
        )
    if not refuses_repeated(dependant.call):
        for field in dependant.query_params:
            annotation = field.field_info.annotation
            if isinstance(annotation, type) and issubclass(annotation, ListParams):
                raise RuntimeError(  # noqa: TRY004 - nothing here has a wrong type
                    f"{path} takes {annotation.__name__} as a plain Query(): repeated parameters would be ignored. "
                    f"Annotate it as ListQuery[{annotation.__name__}]."
                )


def _all_dependants(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for dependency in dependant.dependencies:
        yield from _all_dependants(dependency)
