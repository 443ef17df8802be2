"""INSERT statements of one row each. A statement session can insert the rows of several callers with one statement."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnClause,
    ColumnElement,
    Insert,
    Select,
    String,
    Table,
    bindparam,
    func,
)
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList
from sqlalchemy.sql.operators import and_, eq
from sqlalchemy.sql.selectable import AliasedReturnsRows
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from app.database._sqlalchemy import (
    added_texts,
    correlated,
    elements,
    on_postgresql,
    restricts_rows,
    selected_names,
    takes_lock,
    upserts,
)
from app.database.key_columns import COMPARABLE_TYPES, array_of, comparison_of, name_in, unique_keys
from app.database.statement_checks import (
    depends_on_more_than_rows,
    has_aggregate,
    require_returning,
    required_parameters,
)

_ALONE = "pass the statement itself to returned(), which sends it alone"


class SharedInsert:
    """An INSERT of one row that may share a statement with others: `session.returned(INSERT, **parameters)`.

    The statement is `insert(...).from_select(columns, select(...)).returning(...)`:

    - The SELECT has at most one table, and finds at most one row of it: a condition compares each column of the primary
      key, or of a unique constraint, with a parameter.
    - Each parameter has the name of the inserted column that gets its value: from the parameter itself, or from a
      column that a condition compares with it.
    - RETURNING contains these columns, of an integer, UUID, text, boolean or date type. By their values, each caller
      finds its row. So no trigger may change them.
    - No subquery reads the table of the INSERT: it could not see the other rows of its statement.

    Let the table of the SELECT be the one that a foreign key refers to. A shared statement skips a row of it that
    another transaction has locked, and the write waits for that one by itself.

    Declare it once, at module level. Raise TypeError for another statement, or one whose row would depend on the other
    rows of the same statement: see `KeyedSelect`.
    """

    def __init__(self, statement: ReturningInsert[*tuple[Any, ...]]) -> None:
        require_returning(statement)
        if reason := _refusal(statement):
            raise TypeError(f"{reason} (statement: {' '.join(str(statement).split())})")
        source: Any = statement.select
        self.names = tuple(sorted(required_parameters(source)))
        table: Any = statement.table
        columns: list[Column[Any]] = [table.c[name] for name in self.names]
        # Of one row: the parameters are `names`.
        self.one = statement
        # Of several rows: the parameters are `names`, each of them an array.
        self.several = _for_several(statement, columns)
        self.values: Callable[[Mapping[str, Any]], Any] = itemgetter(*self.names)
        """Return the values of the parameters: a value, or a tuple of several."""
        returned = [name_in(column, elements(statement)) for column in columns]
        self.values_in: Callable[[Any], Any] = itemgetter(*returned)
        """Return the values that the parameters of a returned row had."""
        self._fits = [_check_of(column) for column in columns]

    def arrays(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of `several` for the values of several rows."""
        if len(self.names) == 1:
            return {self.names[0]: rows}
        return dict(zip(self.names, map(list, zip(*rows, strict=True)), strict=True))

    def can_share(self, values: Any) -> bool:
        """Return False for values that the server or the driver may refuse. Such a row fails alone."""
        if len(self._fits) == 1:
            return self._fits[0](values)
        return all(fits(value) for fits, value in zip(self._fits, values, strict=True))


def _refusal(statement: ReturningInsert[*tuple[Any, ...]]) -> str | None:
    """Return why the statement cannot be sent for several rows at once, and the remedy; None if it can."""
    source = statement.select if isinstance(statement, Insert) else None
    if not isinstance(source, Select):
        return f"only insert(...).from_select(columns, select(...)) can share a statement: {_ALONE}"
    if upserts(statement):
        return f"ON CONFLICT applies to the rows of all callers together: {_ALONE}"
    if added := added_texts(statement):
        return f"the literal SQL {added[0]!r} may apply to the rows of all callers together: {_ALONE}"
    if restricts_rows(source):
        return (
            "LIMIT, OFFSET, DISTINCT, GROUP BY and HAVING apply to the rows of all callers together: the SELECT needs "
            f"none of them to find one row by a unique key, or {_ALONE}"
        )
    if has_aggregate(source):
        return f"an aggregate or window function covers the rows of all callers together: {_ALONE}"
    if takes_lock(source):
        return "the shared statement locks the row of the SELECT by itself: remove with_for_update()"
    returned = elements(statement)
    for part in (source, *returned):
        if found := depends_on_more_than_rows(part):
            return f"the result of {found} may differ for each row: {_ALONE}"
    if names := set().union(*map(required_parameters, returned)):
        return f"RETURNING has the parameters {_listed(names)}: only the SELECT may have parameters"
    return (
        _refusal_of_subqueries(statement, source)
        or _refusal_of_source(statement, source)
        or _refusal_of_parameters(statement, source)
    )


def _refusal_of_subqueries(statement: Any, source: Select[*tuple[Any, ...]]) -> str | None:
    """Return why a subquery would have another result in a shared statement; None if it would not."""
    for root in (source, *elements(statement)):
        for part in iterate(root):
            if part is source or not isinstance(part, Select):
                continue
            if _reads(part, statement.table):
                return f"a subquery on {statement.table} cannot see the rows of the other callers: {_ALONE}"
            if required_parameters(part):
                return "a subquery has a parameter: compare with a column of the table of the SELECT instead"
    return None


def _reads(query: Select[*tuple[Any, ...]], table: Any) -> bool:
    """Return True if the query reads the table, or an alias of it. A column that it correlates with is not read."""
    is_correlated = any(_is(each, table) for each in correlated(query))
    for part in iterate(query):
        source = part.table if isinstance(part, ColumnClause) else part
        if isinstance(source, AliasedReturnsRows) and _is(source.element, table):
            return True
        if not is_correlated and _is(source, table):
            return True
    return False


def _is(element: Any, table: Any) -> bool:
    # The ORM annotates tables: each annotation is an object of its own.
    return isinstance(element, Table) and element.fullname == table.fullname


def _refusal_of_source(statement: Any, source: Select[*tuple[Any, ...]]) -> str | None:
    """Return why the SELECT may find several rows; None if it cannot."""
    tables = source.get_final_froms()
    if len(tables) > 1 or not all(isinstance(table, Table) for table in tables):
        return (
            "the SELECT must have one table or none, and no join, alias or subquery in FROM: leave other tables to "
            "their foreign keys"
        )
    compared = {column.name for _, column in _comparisons(source)}
    if tables and not any(unique <= compared for unique in unique_keys(tables[0])):  # type: ignore[arg-type]
        return f"a condition must compare the primary key or a unique constraint of {tables[0]} with parameters"
    return None


def _refusal_of_parameters(statement: Any, source: Select[*tuple[Any, ...]]) -> str | None:
    """Return why a caller could not find its row by the values that it has sent; None if it can."""
    table = statement.table
    compared = dict(_comparisons(source))
    inserted = dict(zip(selected_names(statement), source.selected_columns, strict=True))
    names = required_parameters(source)
    if not names:
        return f"the statement has no parameter, so its callers could not find their rows: {_ALONE}"
    for name in sorted(names):
        if name not in inserted:
            return (
                f"the parameter {name} must have the name of the inserted column whose value it is, one of "
                f"{_listed(inserted)}: conditions can have no other parameters"
            )
        if not _is_value_of(inserted[name], name, compared):
            return (
                f"the inserted column {name} must get the parameter {name} unchanged, or a column of the SELECT that a "
                f"condition compares with it; it gets {inserted[name]}"
            )
        if name_in(table.c[name], elements(statement)) is None:
            return f"the statement must return {table.c[name]}, once: the caller finds its row by it"
        if comparison_of(table.c[name].type) is None:
            return (
                f"{table.c[name]} of type {table.c[name].type!r} cannot be compared in Python: a parameter is "
                f"{COMPARABLE_TYPES}, or {_ALONE}"
            )
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _comparisons(source: Select[*tuple[Any, ...]]) -> Iterator[tuple[str, Column[Any]]]:
    """Yield each parameter that a condition of the SELECT compares with a column, and that column."""
    condition = source.whereclause
    is_all = isinstance(condition, BooleanClauseList) and condition.operator is and_
    parts: Sequence[Any] = condition.clauses if is_all else [condition]  # type: ignore[union-attr]
    for part in parts:
        if isinstance(part, BinaryExpression) and part.operator is eq:
            for column, parameter in ((part.left, part.right), (part.right, part.left)):
                if isinstance(column, Column) and isinstance(parameter, BindParameter) and parameter.required:
                    yield str(parameter.key), column


def _is_value_of(selected: ColumnElement[Any], name: str, compared: Mapping[str, Column[Any]]) -> bool:
    # A parameter in the columns of a SELECT has a label.
    element = getattr(selected, "element", selected)
    if _is_parameter(element):
        return bool(element.key == name)
    return name in compared and compared[name].compare(element)


def _is_parameter(element: Any) -> bool:
    return isinstance(element, BindParameter) and element.required


def _check_of(column: Column[Any]) -> Callable[[Any], bool]:
    check = comparison_of(column.type)
    assert check is not None
    kind = on_postgresql(column.type)
    longest = kind.length if isinstance(kind, String) else None

    def fits(value: Any) -> bool:
        if value is None:
            return bool(column.nullable)
        return check(value) and (longest is None or len(value) <= longest)

    return fits


def _for_several(statement: Any, columns: Sequence[Column[Any]]) -> Any:
    """Return the statement with a row of arrays in the place of its parameters."""
    arrays = [bindparam(column.key, type_=array_of(column.type)) for column in columns]
    sent = func.unnest(*arrays).table_valued(*(column.key for column in columns)).render_derived()

    def take_from_row(element: Any, **_: Any) -> Any:
        return sent.c[element.key] if _is_parameter(element) else None

    source: Any = replacement_traverse(statement.select, {}, take_from_row)
    tables = statement.select.get_final_froms()
    if tables:
        source = source.with_for_update(read=True, key_share=True, skip_locked=True, of=tables[0])

    def use_source(element: Any, **_: Any) -> Any:
        return source if element is statement.select else None

    return replacement_traverse(statement, {}, use_source)
