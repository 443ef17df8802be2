"""The statements of a list: one declaration of its filters and sort columns, one SELECT for each way to page.

Each combination of sort order and filters is built once, so it is compiled once. Pages by cursor compare
`(sort column, id)` as a row value, which an index on the two answers: deep pages cost what the first page costs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, func, literal_column, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

Statement = Select[*tuple[Any, ...]]


def contains(parameter: str, *columns: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Return a condition: any of the columns contains the text, case-insensitive.

    Its parameter is the text's `like_pattern()`.
    """
    return or_(*(column.ilike(bindparam(parameter), escape="\\") for column in columns))


def like_pattern(text: str) -> str:
    """Return the LIKE pattern that finds `text` anywhere. `%` and `_` in it match themselves."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


class ListStatements:
    """Declares what a list selects, and what it can be filtered and sorted by.

    `rows` selects the primary key as `id`, and each sort column under its own name. `key` is the primary key; it breaks
    ties. `filters` are conditions with a `bindparam` of the filter's name. Each of `sorts` needs an index on the column
    and the key.

    `sort` arguments are a name of `sorts`, with a leading "-" for descending. `filters` arguments are names.
    """

    def __init__(
        self,
        name: str,
        rows: Statement,
        *,
        key: InstrumentedAttribute[int],
        sorts: Mapping[str, InstrumentedAttribute[Any]],
        filters: Mapping[str, ColumnElement[bool]],
    ) -> None:
        self.name = name
        self._rows = rows
        self._key = key
        self._sorts = sorts
        self._filters = filters
        self._statements: dict[tuple[str, str, frozenset[str], int | None], Statement] = {}

    def by_offset(self, sort: str, filters: frozenset[str]) -> Statement:
        """Return the SELECT of a page by offset. Parameters: the filters', `offset`, `limit`."""
        return self._once(
            "offset", sort, filters, lambda: self._page(sort, filters).offset(bindparam("offset", type_=BigInteger()))
        )

    # With a LIMIT parameter, PostgreSQL plans the statement at each execution; with a literal, once
    # (docs/decisions/0006-literal-limit.md).

    def first(self, sort: str, filters: frozenset[str], limit: int | None = None) -> Statement:
        """Return the SELECT of the first page by cursor. Parameters: the filters', and `limit` unless given here."""
        return self._once("first", sort, filters, lambda: self._page(sort, filters, limit), limit)

    def after(self, sort: str, filters: frozenset[str], limit: int | None = None) -> Statement:
        """Return the SELECT of a later page by cursor.

        Parameters: those of `first()`, and `after_value` and `after_key` of the row before the page.
        """

        def build() -> Statement:
            column = self._column(sort)
            if column is self._key:
                here: Any = self._key
                there: Any = bindparam("after_key", type_=self._key.type)
            else:
                here = tuple_(column, self._key)
                there = tuple_(
                    bindparam("after_value", type_=column.type), bindparam("after_key", type_=self._key.type)
                )
            return self._page(sort, filters, limit).where(here < there if sort.startswith("-") else here > there)

        return self._once("after", sort, filters, build, limit)

    def count(self, filters: frozenset[str]) -> Statement:
        """Return a SELECT of one row with one column, `total`. Parameters: the filters'."""
        return self._once(
            "count",
            "",
            filters,
            lambda: self._filtered(select(func.count().label("total")).select_from(self._key.class_), filters),
        )

    def sorts_by_key(self, sort: str) -> bool:
        """Return True if the sort column is the primary key."""
        return self._column(sort) is self._key

    def _page(self, sort: str, filters: frozenset[str], limit: int | None = None) -> Statement:
        column = self._column(sort)
        columns = (self._key,) if column is self._key else (column, self._key)
        order = [each.desc() if sort.startswith("-") else each.asc() for each in columns]
        rows: Any = bindparam("limit", type_=BigInteger()) if limit is None else literal_column(str(limit))
        return self._filtered(self._rows, filters).order_by(*order).limit(rows)

    def _column(self, sort: str) -> InstrumentedAttribute[Any]:
        return self._sorts[sort.removeprefix("-")]

    def _filtered(self, statement: Statement, filters: frozenset[str]) -> Statement:
        return statement.where(*(self._filters[name] for name in sorted(filters)))

    def _once(
        self, kind: str, sort: str, filters: frozenset[str], build: Callable[[], Statement], limit: int | None = None
    ) -> Statement:
        key = (kind, sort, filters, limit)
        if key not in self._statements:
            self._statements[key] = build()
        return self._statements[key]
