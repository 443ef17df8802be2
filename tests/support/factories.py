"""Rows for tests: any model, with values for the columns that need one."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase

from app.database import Database

Model = TypeVar("Model", bound=DeclarativeBase)
# The first type that matches. A subclass comes before its base.
_VALUES: list[tuple[type[Any], Callable[[int], object]]] = [
    (sa.Boolean, lambda number: False),
    (sa.Integer, lambda number: number),
    (sa.Numeric, lambda number: Decimal(number)),
    (sa.DateTime, lambda number: datetime.now(UTC)),
    (sa.Date, lambda number: date(2000, 1, 1) + timedelta(number)),
    (sa.Time, lambda number: time(number % 24)),
    (sa.Interval, lambda number: timedelta(number)),
    (sa.Uuid, lambda number: UUID(int=number)),
    (sa.JSON, lambda number: {"number": number}),
    (sa.LargeBinary, lambda number: b"%d" % number),
]


class Factory:
    """Inserts rows: `ann = await make(User, name="Ann")`.

    A column without a value that is neither nullable nor has a default gets one, different for each row. A foreign key
    gets a new row of its table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers = count(1)

    async def __call__(self, model: type[Model], **values: Any) -> Model:
        """Insert a row, with its transaction, and return it as it is stored. Raise TypeError for an unknown type."""
        number = next(self._numbers)
        for attribute in inspect(model).column_attrs:
            if attribute.key not in values and _needs_value(attribute.columns[0]):
                values[attribute.key] = await self._value(model, attribute.key, attribute.columns[0], number)
        entity = model(**values)
        async with self._database.write() as session:
            session.add(entity)
            await session.flush()
            await session.refresh(entity)
        return entity

    async def _value(self, model: type[DeclarativeBase], key: str, column: Any, number: int) -> object:
        for foreign_key in column.foreign_keys:
            [parent] = [each.class_ for each in model.registry.mappers if each.local_table is foreign_key.column.table]
            return getattr(await self(parent), foreign_key.column.key)
        if isinstance(column.type, sa.Enum):
            return next(iter(column.type.enum_class)) if column.type.enum_class else column.type.enums[0]
        if isinstance(column.type, sa.String):
            text = f"{key}{number}@example.com" if "email" in key else f"{key} {number}"
            return text[-column.type.length :] if column.type.length else text
        for kind, make in _VALUES:
            if isinstance(column.type, kind):
                return make(number)
        raise TypeError(f"{model.__name__}.{key} has the type {column.type!r}: give it a value, {key}=...")


def _needs_value(column: Any) -> bool:
    generated = column.identity or column.computed or column is column.table.autoincrement_column
    return not (column.nullable or column.default or column.server_default or generated)
