"""Which INSERT statements can insert the rows of several callers at once. Each refusal names the remedy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnClause,
    ColumnElement,
    Insert,
    Label,
    Select,
    Table,
    TableClause,
    TextClause,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList
from sqlalchemy.sql.operators import and_, eq
from sqlalchemy.sql.selectable import AliasedReturnsRows
from sqlalchemy.sql.visitors import iterate

from app.database._sqlalchemy import (
    added_texts,
    elements,
    independent_ctes,
    restricts_rows,
    selected_names,
    takes_lock,
    upserts,
)
from app.database.key_columns import COMPARABLE_TYPES, compare_alike, comparison_of, name_in, unique_keys
from app.database.statement_checks import depends_on_more_than_rows, has_aggregate

_ALONE = "pass the statement itself to returned(), which sends it alone"


def refusal(statement: Any) -> str | None:
    """Return why the statement cannot be sent for several rows at once, and the remedy; None if it can."""
    source = statement.select if isinstance(statement, Insert) else None
    if not isinstance(source, Select):
        return f"only insert(...).from_select(columns, select(...)) can share a statement: {_ALONE}"
    return (
        _refusal_of_clauses(statement, source)
        or _refusal_of_columns(statement)
        or _refusal_of_subqueries(statement, source)
        or _refusal_of_source(source)
        or _refusal_of_parameters(statement, source)
        or _refusal_of_table(statement)
    )


def _refusal_of_clauses(statement: Any, source: Select[*tuple[Any, ...]]) -> str | None:
    """Return which part of the statement applies to all rows together, or to none; None if each applies to one row."""
    if upserts(statement):
        return f"ON CONFLICT applies to the rows of all callers together: {_ALONE}"
    if added := added_texts(statement):
        return f"the literal SQL {added[0]!r} may apply to the rows of all callers together: {_ALONE}"
    if independent_ctes(statement) or independent_ctes(source):
        return f"a CTE runs once for the rows of all callers: {_ALONE}"
    if restricts_rows(source):
        return (
            "LIMIT, OFFSET, DISTINCT, GROUP BY and HAVING apply to the rows of all callers together: the SELECT needs "
            f"none of them to find one row by a unique key, or {_ALONE}"
        )
    if has_aggregate(source):
        return f"an aggregate or window function covers the rows of all callers together: {_ALONE}"
    if takes_lock(source):
        return "the shared statement locks the row of the SELECT by itself: remove with_for_update()"
    for part in (source, *elements(statement)):
        if found := depends_on_more_than_rows(part):
            return f"the result of {found} may differ for each row: {_ALONE}"
    return None


def _refusal_of_columns(statement: Any) -> str | None:
    """Return which name is not that of a column; None if each is."""
    for name in selected_names(statement):
        if name not in statement.table.c:
            return f"{statement.table} has no column {name}: its columns are {_listed(statement.table.c.keys())}"
    return None


def _refusal_of_subqueries(statement: Any, source: Select[*tuple[Any, ...]]) -> str | None:
    """Return why a subquery would have another result in a shared statement; None if it would not."""
    for root in (source, *elements(statement)):
        for part in iterate(root):
            if part is source or not isinstance(part, Select):
                continue
            if _reads(part, statement.table):
                return f"a subquery on {statement.table} cannot see the rows of the other callers: {_ALONE}"
            if _parameters(part):
                return "a subquery has a parameter: compare with a column of the table of the SELECT instead"
    for column in statement.table.columns:
        default = column.default
        if default is not None and default.is_clause_element and _has_subquery(default.arg):
            return f"the default of {column} has a subquery, which cannot see the rows of the other callers: {_ALONE}"
    return None


def _has_subquery(element: Any) -> bool:
    return any(isinstance(part, Select) for part in iterate(element))


def _reads(query: Select[*tuple[Any, ...]], table: Any) -> bool:
    """Return True if the query may read the table: by itself, by an alias, or as literal SQL.

    No query in an INSERT ... SELECT correlates with the table of the INSERT, not even with `correlate()`.
    """
    for part in iterate(query):
        source = part.table if isinstance(part, ColumnClause) else part
        if isinstance(source, AliasedReturnsRows):
            source = source.element
        # Not the same object: the ORM annotates tables, and table("name") is another one.
        if isinstance(source, TextClause) or (isinstance(source, TableClause) and source.fullname == table.fullname):
            return True
    return False


def _refusal_of_source(source: Select[*tuple[Any, ...]]) -> str | None:
    """Return why the SELECT may find several rows for one caller; None if it cannot."""
    tables = source.get_final_froms()
    if len(tables) > 1 or not all(isinstance(table, Table) for table in tables):
        return (
            "the SELECT must have one table or none, and no join, alias or subquery in FROM: leave other tables to "
            "their foreign keys"
        )
    compared = {column.name for _, column in comparisons(source)}
    if tables and not any(unique <= compared for unique in unique_keys(tables[0])):  # type: ignore[arg-type]
        return f"a condition must compare the primary key or a unique constraint of {tables[0]} with parameters"
    return None


def _refusal_of_parameters(statement: Any, source: Select[*tuple[Any, ...]]) -> str | None:
    """Return why a caller could not find its row by the values that it has sent; None if it can."""
    table = statement.table
    if any(_parameters(part) for part in elements(statement)):
        return "RETURNING has a parameter: only the SELECT may have parameters"
    parameters = _parameters(source)
    if not parameters:
        return f"the statement has no parameter, so its callers could not find their rows: {_ALONE}"
    compared = dict(comparisons(source))
    inserted = dict(zip(selected_names(statement), source.selected_columns, strict=True))
    for parameter in sorted(parameters, key=lambda each: str(each.key)):
        name = str(parameter.key)
        if not parameter.required:
            return f"the parameter {name} has a default: remove it, so that each caller gives a value"
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
        column = table.c[name]
        if name_in(column, elements(statement)) is None:
            return f"the statement must return {column}, once: the caller finds its row by it"
        if comparison_of(column.type) is None:
            return (
                f"{column} of type {column.type!r} cannot be compared in Python: a parameter is "
                f"{COMPARABLE_TYPES}, or {_ALONE}"
            )
        kinds = {f"the parameter {name}": parameter.type}
        if name in compared:
            kinds[str(compared[name])] = compared[name].type
        for what, kind in kinds.items():
            if not compare_alike(kind, column.type):
                return (
                    f"{what} has the type {kind!r}, whose values do not compare as those of {column}: "
                    f"use {column.type!r}, or {_ALONE}"
                )
    return None


def _parameters(part: Any) -> list[BindParameter[Any]]:
    """Return the parameters that a caller gives a value, without those that SQLAlchemy makes for literals."""
    return [each for each in iterate(part) if isinstance(each, BindParameter) and (each.required or not each.unique)]


def comparisons(source: Select[*tuple[Any, ...]]) -> Iterator[tuple[str, Column[Any]]]:
    """Yield each parameter that a condition of the SELECT compares with a column, and that column."""
    condition = source.whereclause
    is_all = isinstance(condition, BooleanClauseList) and condition.operator is and_
    parts: Sequence[Any] = condition.clauses if is_all else [condition]  # type: ignore[union-attr]
    for part in parts:
        if isinstance(part, BinaryExpression) and part.operator is eq:
            for column, parameter in ((part.left, part.right), (part.right, part.left)):
                if isinstance(column, Column) and isinstance(parameter, BindParameter) and not parameter.unique:
                    yield str(parameter.key), column


def _is_value_of(selected: ColumnElement[Any], name: str, compared: Mapping[str, Column[Any]]) -> bool:
    # A parameter in the columns of a SELECT has a label. Other elements around it would change the value.
    element = selected.element if isinstance(selected, Label) else selected
    if isinstance(element, BindParameter):
        return bool(element.key == name)
    return name in compared and compared[name].compare(element)


def _refusal_of_table(statement: Any) -> str | None:
    """Return which constraint lets a row wait for another one, and its companions with it; None if there is none."""
    table: Table = statement.table
    names = {table.c[name].name for name in selected_names(statement)}
    # Their values follow from the others, or may be those of another row.
    names |= {
        column.name
        for column in table.columns
        if column.computed is not None or (column.default is not None and column.default.is_clause_element)
    }
    unique = [each for each in table.constraints if isinstance(each, (UniqueConstraint, ExcludeConstraint))]
    covered = [({column.name for column in each.columns}, each.name) for each in (table.primary_key, *unique)]
    covered += [({column.name for column in each.columns}, each.name) for each in table.indexes if each.unique]
    for columns, name in covered:
        # An index on an expression may have any column.
        if not columns or columns & names:
            return (
                f"the unique key {name or _listed(columns)} has inserted columns: a row that conflicts with one of "
                f"another transaction would hold up, or fail, the rows of all callers: {_ALONE}"
            )
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
