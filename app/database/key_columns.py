"""Columns by whose values rows are found in Python: their uniqueness, their names in a result, and their types."""

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    Unicode,
    UnicodeText,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import TypeEngine

from app.database._sqlalchemy import on_postgresql

KeyColumn = InstrumentedAttribute[Any] | Column[Any]

# Half of the number of values of an integer type.
_INTEGERS = {Integer: 1 << 31, BigInteger: 1 << 63, SmallInteger: 1 << 15}
_TEXTS = {String, Text, Unicode, UnicodeText}
_UUIDS = {Uuid, postgresql.UUID}
_FAMILIES: tuple[Iterable[type], ...] = (_INTEGERS, _TEXTS, _UUIDS, {Boolean}, {Date})
COMPARABLE_TYPES = "an integer, a UUID, a text without a collation of its own, a boolean, or a date"


def is_unique(columns: Sequence[Any]) -> bool:
    """Return True if the columns are the primary key or a unique constraint of their table, or of one alias of it."""
    # An alias has the columns of its table, each with its own identity.
    bases = [next(iter(column.base_columns)) for column in columns]
    table = bases[0].table
    if not isinstance(table, Table) or any(column.table is not columns[0].table for column in columns):
        return False
    return {column.name for column in bases} in unique_keys(table)


def unique_keys(table: Table) -> list[set[str]]:
    """Return the names of the columns of the primary key and of each unique constraint that applies to all rows."""
    unique: list[Any] = [table.primary_key]
    unique += [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    unique += [
        index
        for index in table.indexes
        if index.unique
        and index.dialect_options["postgresql"]["where"] is None
        and len(index.columns) == len(index.expressions)
    ]
    return [{column.name for column in each.columns} for each in unique]


def name_in(column: Any, selected: Iterable[Any]) -> str | None:
    """Return the name of the column in a row of `selected`; None if these do not contain it exactly once."""
    # An expression such as -id has no name, and its element is not what the row contains.
    named = [each for each in selected if hasattr(each, "name")]
    found = [each.name for each in named if getattr(each, "element", each).compare(column)]
    return found[0] if len(found) == 1 and [each.name for each in named].count(found[0]) == 1 else None


def array_of(kind: TypeEngine[Any]) -> ARRAY[Any]:
    """Return the type of an array of values of a column."""
    # A cast to VARCHAR(10)[] would cut longer texts.
    kind = on_postgresql(kind)
    return ARRAY(String() if isinstance(kind, String) else kind)


def compare_alike(one: TypeEngine[Any], other: TypeEngine[Any]) -> bool:
    """Return True if both types have a `comparison_of()`, and take values of the same Python type."""
    return any(_is_of(one, family) and _is_of(other, family) for family in _FAMILIES)


def _is_of(kind: TypeEngine[Any], family: Iterable[type]) -> bool:
    return comparison_of(kind) is not None and type(on_postgresql(kind)) in family


def comparison_of(kind: TypeEngine[Any]) -> Callable[[Any], bool] | None:
    """Return a check of values of the type: True if the server accepts them, and compares them as Python does.

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
    if exact is Boolean:
        return lambda value: type(value) is bool
    if exact is Date:
        return lambda value: type(value) is date
    return None


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
