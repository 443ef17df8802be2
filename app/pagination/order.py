"""The sort orders of a list, and how a cursor stores the position of a row in one.

A cursor has the values of the sort column and of the primary key. How each is stored depends on the column's type, and
is decided when the list is declared.
"""

from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    String,
    Time,
    UnaryExpression,
    Uuid,
    bindparam,
    cast,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.types import TypeEngine

from app.database.session import Row
from app.pagination.cursor import InvalidCursor

SUPPORTED = "integers, text, booleans, dates, times, Decimal, float, UUID and Enum"


class Codec(NamedTuple):
    """How a cursor stores the values of a type: functions to JSON and back; None if JSON has the type.

    `name` is signed with a cursor, so that no cursor is read with another codec.
    """

    name: str
    encode: Callable[[Any], object] | None = None
    decode: Callable[[Any], Any] | None = None


# Types for which equal and less mean the same in JSON's value, in Python and in the database. Float comes before
# Numeric. Not in the list: types that lose precision on the way (intervals, NUMERIC as float).
_CODECS: dict[type[TypeEngine[Any]], Codec] = {
    Boolean: Codec("bool"),
    Integer: Codec("int"),
    Float: Codec("float"),
    Numeric: Codec("decimal", str, Decimal),
    # The driver's time zone can have an offset with seconds, which only isoformat() writes.
    DateTime: Codec("datetime", datetime.isoformat, datetime.fromisoformat),
    Date: Codec("date", date.isoformat, date.fromisoformat),
    Time: Codec("time", time.isoformat, time.fromisoformat),
    String: Codec("text"),
}


def codec_of(kind: TypeEngine[Any]) -> Codec | None:
    """Return the codec of a column type; None if a cursor cannot store its values exactly."""
    if not type(kind).__module__.startswith("sqlalchemy."):
        return None
    if isinstance(kind, Enum):
        enum_class: Any = kind.enum_class
        if enum_class is None:
            return Codec("text")
        return Codec("enum", lambda member: member.name, enum_class.__members__.__getitem__)
    if isinstance(kind, Uuid):
        return Codec("uuid", str, UUID) if kind.as_uuid else Codec("text")
    if isinstance(kind, (Float, Numeric)) and kind.asdecimal == isinstance(kind, Float):
        return None
    return next((codec for base, codec in _CODECS.items() if isinstance(kind, base)), None)


class SortColumn(NamedTuple):
    """A column of a sort order, with its name in a row."""

    attribute: InstrumentedAttribute[Any]
    name: str
    codec: Codec
    nullable: bool


class Order:
    """A sort order: the sort column, then the columns of the primary key, all ascending or all descending.

    `context` identifies the list and the order in a cursor's signature. If the sort column is nullable, rows without a
    value come last in both directions.
    """

    def __init__(self, context: str, columns: tuple[SortColumn, ...], *, descending: bool) -> None:
        self.context = context
        self.columns = columns
        self.nullable = columns[0].nullable
        self._descending = descending
        self._encoders = [(column.name, column.codec.encode) for column in columns]
        self._decoders = [(f"after_{number}", column.codec.decode) for number, column in enumerate(columns)]

    def position(self, row: Row) -> list[object]:
        """Return the row's position, for `Cursors.write()`. Raise RuntimeError for a NULL that was not expected."""
        position: list[object] = []
        for name, encode in self._encoders:
            value = row[name]
            if value is None and not self.nullable:
                raise RuntimeError(f"{self.context}: {name} is NULL in a row, but not nullable in the model")
            position.append(value if encode is None or value is None else encode(value))
        return position

    def parameters(self, position: Sequence[Any]) -> dict[str, Any]:
        """Return the parameters of `after()` for what `Cursors.read()` returned. Raise InvalidCursor."""
        parameters: dict[str, Any] = {}
        for value, (name, decode) in zip(position, self._decoders, strict=True):
            try:
                parameters[name] = value if decode is None or value is None else decode(value)
            except (ValueError, KeyError):  # the member of an Enum has been removed since
                raise InvalidCursor from None
        return parameters

    def by(self, *, nulls_last: bool) -> list[UnaryExpression[Any]]:
        """Return the ORDER BY clause. `nulls_last` is for a statement that returns rows with and without a value."""
        attributes = [column.attribute for column in self.columns]
        by = [attribute.desc() if self._descending else attribute.asc() for attribute in attributes]
        if nulls_last:
            by[0] = by[0].nulls_last()
        return by

    def after(self, columns: slice = slice(None)) -> ColumnElement[bool]:
        """Return the condition of a row after a position, by these of the columns. See `parameters()`."""
        here: Any = [column.attribute for column in self.columns][columns]
        there: Any = [_parameter(f"after_{number}", each) for number, each in enumerate(self.columns)][columns]
        # A row value, which an index on the columns answers.
        here, there = (here[0], there[0]) if len(here) == 1 else (tuple_(*here), tuple_(*there))
        condition: ColumnElement[bool] = here < there if self._descending else here > there
        return condition


def _parameter(name: str, column: SortColumn) -> ColumnElement[Any]:
    kind = column.attribute.type
    parameter = bindparam(name, type_=kind)
    # psycopg sends DOUBLE PRECISION, and 0.1 as that is not equal to 0.1 as REAL.
    return cast(parameter, kind) if isinstance(kind, Float) else parameter
