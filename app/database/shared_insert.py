"""INSERT statements of one row each. A statement session can insert the rows of several callers with one statement."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import BindParameter, Column, String, bindparam, func
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.visitors import replacement_traverse

from app.database._sqlalchemy import elements, on_postgresql
from app.database.insert_checks import comparisons, refusal
from app.database.key_columns import array_of, comparison_of, name_in
from app.database.statement_checks import require_returning, required_parameters

# Characters of a text. A longer one is sent alone, so that short rows do not wait for long ones. It also limits the
# memory of a full queue.
LONGEST_SHARED_TEXT = 4096


class SharedInsert:
    """An INSERT of one row that may share a statement with others: `session.returned(INSERT, **parameters)`.

    The statement is `insert(...).from_select(columns, select(...)).returning(...)`:

    - The SELECT has at most one table, and finds at most one row of it: a condition compares each column of the primary
      key, or of a unique constraint, with a parameter. Take the parent that a foreign key refers to. A shared statement
      skips a parent that another transaction has locked, and the row waits for that one by itself. For its lock, the
      role needs the UPDATE privilege on the parent.
    - Each parameter has the name of the inserted column that gets its value: from the parameter itself, or from a
      column that a condition compares with it.
    - RETURNING contains these columns, of an integer, UUID, text, boolean or date type. By their values, each caller
      finds its row. So no trigger may change them, and no trigger or rule may store the row elsewhere and return none.
    - No subquery reads the table of the INSERT: it could not see the other rows of its statement.
    - No unique key contains an inserted column: a conflict would hold up, or fail, the rows of all callers.

    Declare it once, at module level. Raise TypeError, with the remedy, for another statement, and for one whose row
    would depend on the other rows of the same statement: see `KeyedSelect`.
    """

    def __init__(self, statement: ReturningInsert[*tuple[Any, ...]]) -> None:
        require_returning(statement)
        if reason := refusal(statement):
            raise TypeError(f"{reason} (statement: {_text_of(statement)})")
        source: Any = statement.select
        table: Any = statement.table
        compared = [name for name, _ in comparisons(source)]
        others = sorted(required_parameters(source).difference(compared), key=lambda name: _order_of(table.c[name]))
        # Rows are inserted in the order of these: those of one parent together.
        self.names = (*compared, *others)
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
        """Return False for values that the server or the driver may refuse, and for long texts. They are sent alone."""
        if len(self._fits) == 1:
            return self._fits[0](values)
        return all(fits(value) for fits, value in zip(self._fits, values, strict=True))


def _text_of(statement: Any) -> str:
    try:
        return " ".join(str(statement).split())
    except (SQLAlchemyError, KeyError):  # a column that does not exist
        return repr(statement)


def _order_of(column: Column[Any]) -> tuple[bool, str]:
    return not column.foreign_keys, column.key


def _check_of(column: Column[Any]) -> Callable[[Any], bool]:
    check = comparison_of(column.type)
    assert check is not None
    kind = on_postgresql(column.type)
    longest = min(kind.length or LONGEST_SHARED_TEXT, LONGEST_SHARED_TEXT) if isinstance(kind, String) else None

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
        return sent.c[element.key] if isinstance(element, BindParameter) and element.required else None

    # Shared statements lock parents in one order, or else a trigger that changes the parent could deadlock them.
    source: Any = replacement_traverse(statement.select, {}, take_from_row).order_by(*sent.c)
    tables = statement.select.get_final_froms()
    if tables:
        source = source.with_for_update(read=True, key_share=True, skip_locked=True, of=tables[0])

    def use_source(element: Any, **_: Any) -> Any:
        return source if element is statement.select else None

    return replacement_traverse(statement, {}, use_source)
