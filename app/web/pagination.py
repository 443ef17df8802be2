"""FastAPI dependencies for `app/pagination`: the query parameters of a list, and the cursor codec."""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError

from app.fields import BIGINT_MAX
from app.list_limits import ListLimits
from app.pagination.cursor import Cursors
from app.pagination.page import ListParams
from app.web.deps import provided

Params = TypeVar("Params", bound=ListParams)


async def _refuse_repeated(request: Request) -> None:
    """Raise RequestValidationError for a repeated parameter. FastAPI alone would silently use the last value."""
    query: bytes = request.scope["query_string"]
    if b"&" not in query:  # most requests have at most one parameter
        return
    # Names without escapes need no decoding. QueryParams parses the whole query again.
    names = [parameter.partition(b"=")[0] for parameter in query.split(b"&")]
    if len(set(names)) == len(names) and b"%" not in b"".join(names):
        return
    given = Counter(name for name, _ in request.query_params.multi_items())
    if repeated := [name for name, times in given.items() if times > 1]:
        raise RequestValidationError(
            [{"loc": ("query", name), "msg": "Parameter sent more than once", "type": "repeated"} for name in repeated]
        )


def _check_offset(params: ListParams, request: Request) -> None:
    if params.offset is None:
        return
    cursors: Cursors = provided(request, "cursors")
    max_offset = cursors.limits.max_offset
    if params.offset > max_offset:
        message = f"Must be at most {max_offset}: read the pages beyond it with `cursor`"
        raise RequestValidationError([{"loc": ("query", "offset"), "msg": message, "type": "offset_too_large"}])


@cache
def _list_params(model: type[Any]) -> Callable[..., Awaitable[ListParams]]:
    async def list_params(
        request: Request,
        # A dependency runs before FastAPI validates the parameters, so repeated parameters are reported first.
        refused: Annotated[None, Depends(_refuse_repeated)],
        params: Annotated[model, Query()],  # type: ignore[valid-type]
    ) -> ListParams:
        _check_offset(params, request)
        return params

    list_params.refuses_repeated = True  # type: ignore[attr-defined]
    return list_params


def document_limits(app: FastAPI, limits: ListLimits) -> None:
    """Put the largest offset into the OpenAPI document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for operation in (each for methods in document["paths"].values() for each in methods.values()):
            for parameter in operation.get("parameters", ()):
                if (parameter["in"], parameter["name"]) == ("query", "offset"):
                    for schema in parameter["schema"].get("anyOf", ()):
                        if schema.get("maximum") == BIGINT_MAX:
                            schema["maximum"] = limits.max_offset
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def refuses_repeated(call: object) -> bool:
    """Return True if a dependency's callable refuses repeated query parameters."""
    return bool(getattr(call, "refuses_repeated", False))


if TYPE_CHECKING:
    ListQuery = Annotated[Params, "the query parameters of a list"]
else:

    class ListQuery:
        """The parameter type of a list route: `ListQuery[TagListParams]`. Refuses invalid and repeated parameters."""

        def __class_getitem__(cls, model: type[ListParams]) -> Any:
            return Annotated[model, Depends(_list_params(model))]


async def _cursors(request: Request) -> Cursors:
    cursors: Cursors = provided(request, "cursors")
    return cursors


CursorCodec = Annotated[Cursors, Depends(_cursors)]
