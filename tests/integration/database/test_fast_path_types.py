"""A read session returns the same Python values with every driver, for each type."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ARRAY,
    Date,
    DateTime,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Uuid,
    bindparam,
    cast,
    select,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from app.database import Database


class Colour(Enum):
    RED = "r"


VALUES: dict[str, tuple[TypeEngine[Any], Any]] = {
    "numeric": (Numeric(10, 2), Decimal("1.50")),
    "numeric as float": (Numeric(asdecimal=False), 1.5),
    "float": (Float(), 1.5),
    "jsonb": (JSONB(), {"a": [1, None]}),
    "uuid": (Uuid(), UUID(int=7)),
    "interval": (Interval(), timedelta(hours=1)),
    "enum": (EnumType(Colour, native_enum=False), Colour.RED),
    "array": (ARRAY(Integer()), [1, 2]),
    "bytes": (LargeBinary(), b"\0a"),
    "date": (Date(), date(2026, 1, 1)),
    "time": (DateTime(timezone=True), datetime(2026, 1, 1, tzinfo=UTC)),
    "null": (String(), None),
}


@pytest.mark.parametrize(("kind", "value"), VALUES.values(), ids=VALUES.keys())
async def test_value_of_each_type_is_returned_unchanged(database: Database, kind: TypeEngine[Any], value: Any) -> None:
    statement = select(cast(bindparam("value", type_=kind), kind).label("value"))

    row = await database.read.first(statement, value=value)

    assert row is not None
    assert row["value"] == value
    assert isinstance(row["value"], type(value)), "asyncpg's own UUID is a subclass"


async def test_callable_parameter_is_computed_at_each_execution(database: Database) -> None:
    numbers = iter(range(5))
    statement = select(bindparam("number", callable_=lambda: next(numbers), type_=Integer()).label("number"))

    rows = [await database.read.first(statement) for _ in range(2)]

    assert [row and row["number"] for row in rows] == [0, 1]
