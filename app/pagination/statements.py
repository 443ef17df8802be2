"""The statements of a list: one declaration of its filters and sort columns, one SELECT for each way to page.

Each combination of sort order and filters is built once, so it is compiled once. Pages by cursor compare
`(sort column, key)` as a row value, which an index on them answers: deep pages cost what the first page costs.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, FromClause, Join, Select, bindparam, func, literal_column, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from app.database.statement_checks import require_select
from app.pagination.order import SUPPORTED, Order, SortColumn, codec_of

Statement = Select[*tuple[Any, ...]]
Key = InstrumentedAttribute[Any] | tuple[InstrumentedAttribute[Any], ...]
_THREE_IN_A_ROW = re.compile(r"[^\W_]{3}")
# Which rows of a list: those with a value in the sort column, or those without.
Part = Literal["values", "nulls"]


def contains(parameter: str, *columns: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Return a condition: any of the columns contains the text, case-insensitive.

    Its parameter is the text's `like_pattern()`.
    """
    return or_(*(column.ilike(bindparam(parameter), escape="\\") for column in columns))


def has_trigram(text: str) -> bool:
    """Return True if an index of pg_trgm can find `text`: it has three letters or digits in a row."""
    return _THREE_IN_A_ROW.search(text) is not None


def like_pattern(text: str) -> str:
    """Return the LIKE pattern that finds `text` anywhere. `%` and `_` in it match themselves."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


class ListStatements:
    """Declares what a list selects, and what it can be filtered and sorted by.

    - `rows` selects columns, among them the key and the sort columns. It may join, and filter by itself, as long as no
      key comes twice.
    - `key` is the primary key, a column or a tuple of columns. It breaks ties.
    - `sorts` are the sort columns by the name that a client sends. Each needs an index on the column and the key. Rows
      without a value come last in both directions; the same index serves them, except for descending pages by offset.
    - `filters` are conditions with a `bindparam` of the filter's name. `q` is the search, which is in the lane
      expensive.
    - `counted` is what a total counts, by default `rows`. Give a SELECT without the joins, if these neither add nor
      remove rows: counting is faster then.

    Raise ValueError for a declaration that would lose rows or count wrongly, or whose cursors would be inexact. Raise
    TypeError if `rows` selects entities. A text of more than 2,900 bytes makes a cursor that `ListParams` refuses.

    `sort` arguments of the methods are a name of `sorts`, with a leading "-" for descending. `filters` arguments are
    names.
    """

    def __init__(
        self,
        name: str,
        rows: Statement,
        *,
        key: Key,
        sorts: Mapping[str, InstrumentedAttribute[Any]],
        filters: Mapping[str, ColumnElement[bool]],
        counted: Statement | None = None,
    ) -> None:
        require_select(rows)
        self.name = name
        self._rows = rows
        self._counted = rows if counted is None else counted
        self._filters = filters
        self._orders: dict[str, Order] = {}
        self._statements: dict[tuple[Any, ...], Statement] = {}
        keys = tuple(self._sort_column(each) for each in (key if isinstance(key, tuple) else (key,)))
        for each in keys:
            if each.nullable:
                raise self._error(f"the key {each.attribute} can be NULL")
        for sort, attribute in sorts.items():
            column = self._sort_column(attribute)
            columns = (column, *(each for each in keys if not _same(each.attribute, attribute)))
            for order in (sort, f"-{sort}"):
                self._orders[order] = Order(
                    context=f"{name} {order} {','.join(each.codec.name for each in columns)}",
                    columns=columns,
                    descending=order != sort,
                )
        self._check_filters()

    @property
    def sorts(self) -> list[str]:
        """Return every sort order, ascending and descending."""
        return list(self._orders)

    def order(self, sort: str) -> Order:
        """Return a sort order. Raise ValueError if the list does not have it."""
        try:
            return self._orders[sort]
        except KeyError:
            raise self._error(f"it is not declared with the sort order {sort!r}") from None

    def by_offset(self, sort: str, filters: frozenset[str]) -> Statement:
        """Return the SELECT of a page by offset. Parameters: the filters', `offset`, `limit`."""
        key = ("offset", sort, filters)
        if key not in self._statements:
            order = self.order(sort)
            page = self._filtered(self._rows, filters).order_by(*order.by(nulls_last=order.nullable))
            self._statements[key] = page.limit(_limit(None)).offset(bindparam("offset", type_=BigInteger()))
        return self._statements[key]

    # With a LIMIT parameter, PostgreSQL plans the statement at each execution; with a literal, once
    # (docs/decisions/0006-literal-limit.md).

    def first_page(
        self, sort: str, filters: frozenset[str], limit: int | None = None, part: Part = "values"
    ) -> Statement:
        """Return the SELECT of the first page by cursor, in a part of the list.

        A list has the part "nulls" only if its order is nullable. Parameters: the filters', and `limit` unless given.
        """
        key = ("first", sort, filters, limit, part)
        if key not in self._statements:
            self._statements[key] = self._page(sort, filters, limit, part)
        return self._statements[key]

    def page_after(
        self, sort: str, filters: frozenset[str], limit: int | None = None, part: Part = "values"
    ) -> Statement:
        """Return the SELECT of a later page by cursor.

        Parameters: those of `first_page()` and of `Order.parameters()`.
        """
        key = ("after", sort, filters, limit, part)
        if key not in self._statements:
            # Without a value, only the key tells the position.
            after = self.order(sort).after(slice(None) if part == "values" else slice(1, None))
            self._statements[key] = self._page(sort, filters, limit, part).where(after)
        return self._statements[key]

    def count(self, filters: frozenset[str], most: int | None = None) -> Statement:
        """Return a SELECT of one row with one column, `total`: at most `most`. Parameters: the filters'."""
        key = ("count", filters, most)
        if key not in self._statements:
            counted = self._filtered(self._counted, filters)
            if most is not None:
                counted = counted.limit(_limit(most))
            self._statements[key] = select(func.count().label("total")).select_from(counted.subquery())
        return self._statements[key]

    def _page(self, sort: str, filters: frozenset[str], limit: int | None, part: Part) -> Statement:
        order = self.order(sort)
        page = self._filtered(self._rows, filters).order_by(*order.by(nulls_last=False)).limit(_limit(limit))
        if order.nullable:
            # One part at a time: an index finds the start of a page in either, but not of `value > x OR value IS NULL`.
            first = order.columns[0].attribute
            page = page.where(first.is_not(None) if part == "values" else first.is_(None))
        return page

    def _filtered(self, statement: Statement, filters: frozenset[str]) -> Statement:
        return statement.where(*(self._filters[name] for name in sorted(filters)))

    def _sort_column(self, attribute: InstrumentedAttribute[Any]) -> SortColumn:
        codec = codec_of(attribute.type)
        if codec is None:
            raise self._error(f"a cursor cannot store {attribute} of type {attribute.type!r}; it can store {SUPPORTED}")
        return SortColumn(attribute, self._name_in_rows(attribute), codec, self._is_nullable(attribute))

    def _name_in_rows(self, column: InstrumentedAttribute[Any]) -> str:
        """Return the name that the column has in a row."""
        names = [each.name for each in self._rows.selected_columns]
        found = [each.name for each in self._rows.selected_columns if _same(getattr(each, "element", each), column)]
        if not found:
            raise self._error(f"its rows must select {column}, which they are sorted by")
        if len(set(found)) > 1 or names.count(found[0]) > 1:
            raise self._error(f"its rows must select {column} once, under a name of its own: use label()")
        return str(found[0])

    def _is_nullable(self, column: InstrumentedAttribute[Any]) -> bool:
        """Return True if the column may be NULL in a row: by itself, or after an outer join."""
        expression: Any = column.expression
        if getattr(expression, "nullable", True):
            return True
        return any(
            nullable and _same(table, expression.table)
            for clause in self._rows.get_final_froms()
            for table, nullable in _tables(clause)
        )

    def _check_filters(self) -> None:
        tables = len(self._counted.get_final_froms())
        for name, condition in self._filters.items():
            if name in ("limit", "offset") or name.startswith("after_"):
                raise self._error(f"a filter cannot be named {name!r}: that is a parameter of its statements")
            if len(self._counted.where(condition).get_final_froms()) > tables:
                raise self._error(f"its total would be wrong: `counted` lacks a table of the filter {name!r}")

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"list {self.name!r}: {reason}")


def _limit(limit: int | None) -> Any:
    return bindparam("limit", type_=BigInteger()) if limit is None else literal_column(str(limit))


def _same(left: Any, right: Any) -> bool:
    """Return True if two expressions are the same column or table. An attribute is the same as its column."""
    return bool(getattr(left, "expression", left).compare(getattr(right, "expression", right)))


def _tables(clause: FromClause, *, nullable: bool = False) -> Iterator[tuple[FromClause, bool]]:
    """Return the tables of a FROM clause, and whether an outer join may fill their columns with NULL."""
    if isinstance(clause, Join):
        yield from _tables(clause.left, nullable=nullable or clause.full)
        yield from _tables(clause.right, nullable=nullable or clause.full or clause.isouter)
    else:
        yield clause, nullable
