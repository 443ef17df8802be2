"""Which converter the fast path applies to a result column, by the column's type.

SQLAlchemy's own cursor passes the type that the server sent to `result_processor()`. The fast path decides once for a
statement, before the server has answered. So it knows the types whose converter does not depend on the server's type.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Time,
    Uuid,
)
from sqlalchemy.dialects.postgresql import HSTORE
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from app.database._sqlalchemy import on_postgresql, result_processor

Convert = Callable[[Any], Any]

_IMMUTABLE = (Boolean, Date, DateTime, Enum, Float, Integer, Interval, LargeBinary, Numeric, String, Time, Uuid)

# OIDs of the server's types.
_FLOAT8, _NUMERIC = 701, 1700


class TypeNotSupported(Exception):
    """The converter depends on what only SQLAlchemy's own cursor knows. The statement must take the ordinary path."""


def result_converter(kind: TypeEngine[Any], dialect: Dialect) -> Convert | None:
    """Return the function that converts the driver's value; None if it needs none. Raise TypeNotSupported."""
    innermost = _innermost(kind, dialect)
    if isinstance(innermost, (Numeric, Float)):
        return _numeric_converter(kind, dialect)
    if isinstance(innermost, ARRAY):
        if isinstance(_innermost(innermost.item_type, dialect), (Numeric, Float, ARRAY)):
            raise TypeNotSupported
    # The dialect learns from its first connection how the driver returns hstore.
    elif isinstance(innermost, HSTORE):
        raise TypeNotSupported
    converter: Convert | None = result_processor(kind, dialect, None)
    return converter


def is_immutable(kind: TypeEngine[Any]) -> bool:
    """Return True if the values of the type cannot be changed, so that several callers can have the same one."""
    kind = on_postgresql(kind)
    return isinstance(kind, _IMMUTABLE) and not isinstance(kind, TypeDecorator)


def _innermost(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return SQLAlchemy's own type inside decorators. Raise TypeNotSupported if a type converts results by itself."""
    implementation = kind.dialect_impl(dialect)
    own = type(implementation).__module__.startswith("sqlalchemy.")
    if isinstance(implementation, TypeDecorator):
        if not own and type(implementation).result_processor is not TypeDecorator.result_processor:
            raise TypeNotSupported
        return _innermost(implementation.impl_instance, dialect)
    if not own:
        raise TypeNotSupported
    return implementation


def _numeric_converter(kind: TypeEngine[Any], dialect: Dialect) -> Convert:
    """Return a converter that chooses by the value's Python type, which tells the server's type."""
    from_float: Convert | None = result_processor(kind, dialect, _FLOAT8)
    from_decimal: Convert | None = result_processor(kind, dialect, _NUMERIC)
    by_type = {float: from_float, Decimal: from_decimal, int: from_decimal, type(None): from_decimal}

    def convert(value: Any) -> Any:
        try:
            converter = by_type[type(value)]
        except KeyError:
            raise TypeError(f"a column of type {kind!r} received a {type(value).__name__}: {value!r}") from None
        return value if converter is None else converter(value)

    return convert
