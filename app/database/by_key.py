"""Statements that find one row by a unique key. A read session can send several keys of one in one statement."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from operator import itemgetter
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Date,
    Integer,
    Select,
    SmallInteger,
    String,
    Table,
    Text,
    Unicode,
    UnicodeText,
    UniqueConstraint,
    Uuid,
    any_,
    bindparam,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import TypeEngine

from app.database._sqlalchemy import on_postgresql, restricts_rows
from app.database.statement_checks import depends_on_more_than_rows, has_aggregate, require_select, required_parameters

KeyColumn = InstrumentedAttribute[Any] | Column[Any]

# Half of the number of values of an integer type.
_INTEGERS = {Integer: 1 << 31, BigInteger: 1 << 63, SmallInteger: 1 << 15}
_TEXTS = {String, Text, Unicode, UnicodeText}
_UUIDS = {Uuid, postgresql.UUID}
_SUPPORTED = "an integer, a UUID, a text without a collation of its own, or a date"


class KeyedSelect:
    """A SELECT of columns of which a unique key finds one row: `session.one(statement, key)`.

    - `statement` selects columns, among them those of the key. It may join, as long as no key comes twice.
    - `key` are the columns of the primary key or of a unique constraint, of an integer, UUID, text or date type.

    Declare it once, at module level. Raise TypeError for a statement whose row for a key would depend on the other keys
    of the same statement, or on anything but the rows of the tables:

    - LIMIT, OFFSET, DISTINCT, GROUP BY, HAVING, aggregates and window functions, except in a subquery
    - parameters other than the key
    - locks, literal SQL and functions that are not known to be immutable or stable; `functions` names further ones
    """

    def __init__(self, statement: Select[*tuple[Any, ...]], *key: KeyColumn, functions: Iterable[str] = ()) -> None:
        require_select(statement)
        if reason := _refusal(statement, key, frozenset(functions)):
            raise TypeError(f"{reason} (statement: {' '.join(str(statement).split())[:200]})")
        self.names = tuple(f"key_{number}" for number in range(len(key)))
        # Of one key: the parameters are `names`.
        self.one = statement.where(
            *(column == bindparam(name, type_=column.type) for name, column in zip(self.names, key, strict=True))
        )
        # Of several keys: the parameters are `names`, each of them an array.
        arrays = [bindparam(name, type_=_array_of(column.type)) for name, column in zip(self.names, key, strict=True)]
        self.several = statement.where(
            key[0] == any_(arrays[0])
            if len(key) == 1
            else tuple_(*key).in_(select(*(func.unnest(array).label(array.key) for array in arrays)))
        )
        columns = [_name_of(column, statement) for column in key]
        self.key_of: Callable[[Any], Any] = itemgetter(*columns)
        """Return the key of a row: a value, or a tuple for a composite key."""
        self._fits = [_fits(column.type) for column in key]

    def parameters(self, key: Any) -> dict[str, Any]:
        """Return the parameters of `one`. Raise TypeError unless the key has as many values as columns."""
        values = (key,) if len(self.names) == 1 else key
        if not isinstance(values, tuple) or len(values) != len(self.names):
            raise TypeError(f"a key of this statement is a tuple of {len(self.names)} values, not {key!r}")
        return dict(zip(self.names, values, strict=True))

    def arrays(self, keys: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of `several`."""
        if len(self.names) == 1:
            return {self.names[0]: keys}
        return dict(zip(self.names, map(list, zip(*keys, strict=True)), strict=True))

    def can_share(self, key: Any) -> bool:
        """Return False for a key that the server or the driver may refuse. Such a key fails alone."""
        if len(self._fits) == 1:
            return self._fits[0](key)
        return (
            isinstance(key, tuple)
            and len(key) == len(self._fits)
            and all(fits(value) for fits, value in zip(self._fits, key, strict=True))
        )


def _refusal(statement: Select[*tuple[Any, ...]], key: Sequence[KeyColumn], functions: frozenset[str]) -> str | None:
    """Return why the statement cannot be sent for several keys at once; None if it can."""
    if restricts_rows(statement):
        return "LIMIT, OFFSET, DISTINCT, GROUP BY and HAVING apply to all keys together: use ReadSession.first()"
    if has_aggregate(statement):
        return "an aggregate or window function covers all keys together: move it into a subquery of its own"
    if found := depends_on_more_than_rows(statement, functions):
        return f"the result of {found} may differ for each read: use ReadSession.first(), or name it in `functions`"
    if names := required_parameters(statement):
        return f"the key is the only parameter, and the statement has {', '.join(sorted(names))}"
    if not key or not _is_unique([column.expression for column in key]):
        return f"{', '.join(map(str, key)) or 'no column'} is not the primary key or a unique constraint of a table"
    for column in key:
        if _name_of(column, statement) is None:
            return f"the statement must select {column}, once"
        if _fits_or_none(column.type) is None:
            return f"{column} of type {column.type!r} cannot be compared in Python: a key is {_SUPPORTED}"
    return None


def _is_unique(columns: list[Any]) -> bool:
    # An alias has the columns of its table, each with its own identity.
    bases = [next(iter(column.base_columns)) for column in columns]
    table = bases[0].table
    if not isinstance(table, Table) or any(column.table is not columns[0].table for column in columns):
        return False
    names = {column.name for column in bases}
    unique: list[Any] = [table.primary_key]
    unique += [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    unique += [
        index
        for index in table.indexes
        if index.unique
        and index.dialect_options["postgresql"]["where"] is None
        and len(index.columns) == len(index.expressions)
    ]
    return any(names == {column.name for column in each.columns} for each in unique)


def _name_of(column: KeyColumn, statement: Select[*tuple[Any, ...]]) -> str | None:
    """Return the name of the column in a row; None if the statement does not select it exactly once."""
    selected = statement.selected_columns
    # An expression such as -id has no name, and its element is not what the row contains.
    named = [each for each in selected if hasattr(each, "name")]
    found = [each.name for each in named if getattr(each, "element", each).compare(column.expression)]
    return found[0] if len(found) == 1 and [each.name for each in named].count(found[0]) == 1 else None


def _array_of(kind: TypeEngine[Any]) -> ARRAY[Any]:
    # A cast to VARCHAR(10)[] would cut longer texts.
    kind = on_postgresql(kind)
    return ARRAY(String() if isinstance(kind, String) else kind)


def _fits_or_none(kind: TypeEngine[Any]) -> Callable[[Any], bool] | None:
    """Return a check of values of the type: True if the server accepts them, and finds the same ones that Python does.

    None for a type whose values the server may compare in another way than Python: numbers with a scale, a text with a
    collation that ignores case, blanks at the end of CHAR.
    """
    kind = on_postgresql(kind)
    exact = type(kind)
    if exact in _INTEGERS:
        bound = _INTEGERS[exact]
        return lambda value: type(value) is int and -bound <= value < bound
    if exact in _TEXTS and kind.collation is None:  # type: ignore[attr-defined]
        return _is_storable_text
    if exact in _UUIDS and kind.as_uuid:  # type: ignore[attr-defined]
        return lambda value: isinstance(value, UUID)
    if exact is Date:
        return lambda value: type(value) is date
    return None


def _fits(kind: TypeEngine[Any]) -> Callable[[Any], bool]:
    check = _fits_or_none(kind)
    assert check is not None
    return check


def _is_storable_text(value: Any) -> bool:
    if type(value) is not str or "\0" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:  # a surrogate
        return False
    return True
