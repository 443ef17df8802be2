"""Pages: the parameters of a list, its answer, and reading one page."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Annotated, Any, Generic, Literal, NotRequired, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from app.database.lanes import current_lane, in_lane
from app.database.session import ReadSession, Row
from app.errors import InvalidInput
from app.fields import BIGINT_MAX, NoNul
from app.lanes import EXPENSIVE, NORMAL
from app.pagination.cursor import Cursors
from app.pagination.statements import ListStatements, Part, has_trigram, like_pattern

Item = TypeVar("Item")

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
# A page beyond it is expensive. PostgreSQL reads the rows before a page: a thousand take about 2 ms.
MAX_CHEAP_OFFSET = 1_000


class SearchTooShort(InvalidInput):
    """No index can find the text, and the list is too long to be read for it."""

    def __init__(self, max_count: int) -> None:
        super().__init__(
            f"q: a list of more than {max_count} items is searched only for text with three letters or digits in a row"
        )


class ListParams(BaseModel):
    """The query parameters of every list.

    A list derives its own class, with `sort` and its filters. Unknown parameters are refused: ignoring a filter would
    answer another question. Routes take it as `app.web.pagination.ListQuery[...]`, which refuses repeated parameters.
    """

    model_config = ConfigDict(extra="forbid")

    q: Annotated[str, NoNul] | None = Field(
        default=None, max_length=100, description="Text to search for, case-insensitive."
    )
    sort: str
    offset: int | None = Field(
        default=None,
        ge=0,
        le=BIGINT_MAX,
        description="Items to skip. Default: 0. Beyond the maximum, page with `cursor`.",
    )
    limit: int = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Maximum number of items to return.")
    cursor: str | None = Field(
        default=None,
        max_length=4_000,
        description="Keyset pagination: empty for the first page, then the `next_cursor` of the page before, with the "
        "other parameters unchanged. Pages are not counted and cost the same at any depth.",
    )

    # A list whose callers may have all of its rows counted adds "exact" in its own class.
    total: Literal["bounded", "none"] = Field(
        default="bounded",
        description="How a page by offset is counted: `bounded` up to a limit of the server, beyond which the page has "
        "`total_at_least` instead of `total`; `none` not at all; `exact`, where a list allows it, to the end.",
    )

    @model_validator(mode="after")
    def _one_way_to_page(self) -> Self:
        if self.cursor is not None:
            if self.offset is not None:
                raise ValueError("offset and cursor exclude each other")
            if "total" in self.model_fields_set:
                raise ValueError("total and cursor exclude each other")
        return self

    def filters(self) -> dict[str, Any]:
        """Return the filters that were sent, by name, as the list's statements expect them."""
        given = {}
        for name in _filter_names(type(self)):
            value = getattr(self, name)
            if value is not None and value != "":
                given[name] = like_pattern(value) if name == "q" else value
        return given


@cache
def _filter_names(kind: type[ListParams]) -> list[str]:
    return sorted({"q", *(kind.model_fields.keys() - ListParams.model_fields.keys())})


# A TypedDict: FastAPI validates and documents it like a model, and no object is created per item. A page of 20 items
# takes 24 us of CPU this way and 65 us with models.
class Page(TypedDict, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    total: Annotated[
        int | None, Field(description="Number of items in the list; null in a page by cursor, and if it is not known.")
    ]
    total_at_least: NotRequired[
        Annotated[int, Field(description="Only if counting ended at a limit of the server: the list has more items.")]
    ]
    offset: Annotated[int | None, Field(description="Number of items before this page; null in a page by cursor.")]
    limit: int
    has_more: bool
    next_cursor: Annotated[
        str | None, Field(description="Cursor of the next page; null on the last page and in a page by offset.")
    ]


async def read_page(
    session: ReadSession,
    statements: ListStatements,
    params: ListParams,
    *,
    cursors: Cursors,
    make: Callable[[Row], Item],
    also: Mapping[str, Any] | None = None,
) -> Page[Item]:
    """Return the page that `params` describes, with `make(row)` as its items.

    `also` holds filters that do not come from the query string. A search, and a page at a large offset, are in the lane
    expensive. Raise InvalidCursor, SearchTooShort.
    """
    filters = params.filters() | dict(also or {})
    if params.q and not has_trigram(params.q):
        max_count = cursors.limits.max_count
        others = {name: value for name, value in filters.items() if name != "q"}
        if await _count(session, statements, others, max_count + 1) > max_count:
            raise SearchTooShort(max_count)
    read = _page_by_offset if params.cursor is None else _page_by_cursor
    # A lane that the route has declared remains.
    has_a_choice = session.has_lanes and current_lane.get() == NORMAL
    with in_lane(EXPENSIVE) if has_a_choice and _is_expensive(params) else nullcontext():
        return await read(session, statements, params, filters, make, cursors)


def _is_expensive(params: ListParams) -> bool:
    return bool(params.q) or (params.offset or 0) > MAX_CHEAP_OFFSET


async def _page_by_cursor(
    session: ReadSession,
    statements: ListStatements,
    params: ListParams,
    filters: Mapping[str, Any],
    make: Callable[[Row], Item],
    cursors: Cursors,
) -> Page[Item]:
    names = frozenset(filters)
    order = statements.order(params.sort)
    context = [order.context, filters]
    after = {} if not params.cursor else order.parameters(cursors.read(params.cursor, context))
    row_limit = params.limit + 1  # the row after the page tells whether there is a next page
    # A literal LIMIT is planned once, but each literal is a statement of its own: only the common limits get one. Not
    # with filters: there, the best plan depends on the filter's value.
    is_common = not filters and params.limit in (DEFAULT_LIMIT, MAX_LIMIT)
    limit, parameters = (row_limit, after) if is_common else (None, {**filters, **after, "limit": row_limit})
    part: Part = "nulls" if after and after["after_0"] is None else "values"
    select = statements.page_after if after else statements.first_page
    rows = await session.all(select(params.sort, names, limit, part), **parameters)
    if order.nullable and part == "values" and len(rows) < row_limit:
        nulls = await session.all(statements.first_page(params.sort, names, limit, "nulls"), **parameters)
        rows = [*rows, *nulls]
    page, has_more = rows[: params.limit], len(rows) > params.limit
    return Page(
        items=[make(row) for row in page],
        total=None,
        offset=None,
        limit=params.limit,
        has_more=has_more,
        next_cursor=cursors.write(context, order.position(page[-1])) if has_more else None,
    )


async def _page_by_offset(
    session: ReadSession,
    statements: ListStatements,
    params: ListParams,
    filters: Mapping[str, Any],
    make: Callable[[Row], Item],
    cursors: Cursors,
) -> Page[Item]:
    max_count = cursors.limits.max_count
    offset = params.offset or 0
    select = statements.by_offset(params.sort, frozenset(filters))
    rows = await session.all(select, offset=offset, limit=params.limit + 1, **filters)
    items, has_more = rows[: params.limit], len(rows) > params.limit
    seen = offset + len(items)
    page = Page(
        items=[make(row) for row in items],
        total=None,
        offset=offset,
        limit=params.limit,
        has_more=has_more,
        next_cursor=None,
    )
    if params.total == "none":
        return page
    if not has_more and (rows or not offset):  # the page shows the end of the list
        page["total"] = seen
        return page
    if params.total == "exact":  # type: ignore[comparison-overlap]
        page["total"] = await _count(session, statements, filters)
    elif has_more and seen >= max_count:
        page["total_at_least"] = seen
    elif (counted := await _count(session, statements, filters, max_count + 1)) <= max_count:
        page["total"] = counted
    else:
        page["total_at_least"] = max_count
    return page


async def _count(
    session: ReadSession, statements: ListStatements, filters: Mapping[str, Any], most: int | None = None
) -> int:
    counted = await session.first(statements.count(frozenset(filters), most), **filters)
    return int(counted["total"]) if counted else 0
