"""Lists with a sort column of each type, for tests of pages on PostgreSQL and on SQLite."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from sqlalchemy import (
    CHAR,
    REAL,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
    Uuid,
    insert,
    select,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeEngine

from app.database import Database
from app.database.base import Timestamp
from app.database.session import Row
from app.pagination.cursor import Cursors
from app.pagination.page import MAX_LIMIT, ListParams, read_page
from app.pagination.statements import ListStatements


class Size(Enum):
    """In an order that is neither alphabetical by name nor by value."""

    SMALL = "3"
    MEDIUM = "2"
    LARGE = "1"


_DAYS = [date(2026, 1, 2), date(2026, 1, 10), date(1969, 12, 31), date.min, date.max]
_MOMENTS = [datetime.combine(day, time(3, 4, 5, 6)) for day in _DAYS] + [datetime(2026, 1, 2)]  # noqa: DTZ001
_EAST = timezone(timedelta(hours=5, minutes=30))
_TIMES = [time(0), time(12), time(12, 0, 0, 1), time.max]
_NUMBERS = [Decimal("1.50"), Decimal("-2.25"), Decimal(0), Decimal("99999999.99")]
_TEXTS = ["", "a", "B", "b", "ä", "a b", "\U0001f600", "'\"\\%_\x01"]
# The type of each sort column, and values of it: few, so that most rows have equals.
TYPES: dict[str, tuple[TypeEngine[Any], Sequence[Any]]] = {
    "small": (SmallInteger(), [-1, 0, 1]),
    "integer": (Integer(), [-(2**31), 0, 2**31 - 1]),
    "big": (BigInteger(), [-(2**63), 2**53 + 1, 2**53, 2**63 - 1]),
    "flag": (Boolean(), [True, False]),
    "text": (Text(), _TEXTS),
    "string": (String(200), [*_TEXTS, "x" * 200]),
    "padded": (CHAR(4), ["a", "b", "ab"]),
    "day": (Date(), _DAYS),
    "moment": (DateTime(), _MOMENTS),
    "zoned": (Timestamp, [datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=_EAST)]),
    "clock": (Time(), _TIMES),
    "zoned_clock": (Time(timezone=True), [each.replace(tzinfo=zone) for each in _TIMES[:3] for zone in (UTC, _EAST)]),
    "amount": (Numeric(10, 2), _NUMBERS),
    "number": (Numeric(), [*_NUMBERS, Decimal("NaN"), Decimal("Infinity"), Decimal("1.500000000000000000001")]),
    "real": (REAL(), [0.1, 0.0, -0.0, -1e30, float("inf"), float("nan")]),
    "double": (Float(), [0.1, 0.30000000000000004, 0.0, -0.0, 5e-324, -1e300, float("-inf"), float("nan")]),
    "token": (Uuid(), [UUID(int=0), UUID(int=2**127), UUID("a" * 32)]),
    "token_text": (Uuid(as_uuid=False), [str(UUID(int=1)), str(UUID("b" * 32))]),
    "size": (EnumType(Size, name="test_size"), list(Size)),
    "size_text": (EnumType(Size, native_enum=False), list(Size)),
    "size_value": (EnumType(Size, native_enum=False, values_callable=lambda kind: [e.value for e in kind]), list(Size)),
    "word": (EnumType("z", "a", name="test_word"), ["z", "a"]),
}
# SQLite stores numbers as floats, NaN as NULL, and times without a zone.
NOT_ON_SQLITE = {"amount", "number", "zoned_clock"}


class PagedBase(DeclarativeBase):
    """The metadata of the tables."""


def _model(name: str, **keys: Any) -> Any:
    """Return a model with this key, and two columns of each type: NOT NULL and nullable."""
    columns: dict[str, Any] = {key: mapped_column(kind, primary_key=True) for key, kind in keys.items()}
    for column, (kind, _) in TYPES.items():
        columns[column] = mapped_column(kind, nullable=False)
        columns[f"{column}_or_null"] = mapped_column(kind, nullable=True)
    return type(name, (PagedBase,), {"__tablename__": f"test_{name.lower()}", **columns})


MODELS: dict[str, Any] = {
    "integer": _model("ByInteger", id=Integer()),
    "UUID": _model("ByUuid", key=Uuid()),
    "pair": _model("ByPair", owner=Uuid(), number=Integer()),
    "triple": _model("ByTriple", day_key=Date(), size_key=EnumType(Size, name="test_size"), text_key=String(20)),
}
_KEY_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(1, 50),
    "key": st.uuids(),
    "owner": st.sampled_from([UUID(int=1), UUID(int=2)]),
    "number": st.integers(1, 9),
    "day_key": st.sampled_from(_DAYS),
    "size_key": st.sampled_from(Size),
    "text_key": st.sampled_from(_TEXTS),
}


def key_names(model: Any) -> list[str]:
    return [column.key for column in model.__table__.primary_key]


@cache
def list_of(model: Any) -> ListStatements:
    """Declare a list that is sorted by each of its columns."""
    columns = {column.key: getattr(model, column.key) for column in model.__table__.columns}
    key = tuple(columns[name] for name in key_names(model))
    name = model.__tablename__
    return ListStatements(name, select(*columns.values()), key=key, sorts=columns, filters={})


# Without shrinking, which can take minutes with a database.
EXAMPLES = settings(deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def rows_of(model: Any, column: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Return a strategy for the rows of a table, with values in one sort column."""
    keys = st.fixed_dictionaries({name: _KEY_VALUES[name] for name in key_names(model)})
    rows = st.lists(keys, unique_by=lambda key: tuple(key[name] for name in key_names(model)), max_size=9)
    if column in key_names(model):
        return rows
    name = column.removesuffix("_or_null")
    values: st.SearchStrategy[Any] = st.sampled_from(TYPES[name][1])
    if name != column:
        values |= st.none()
    # Few different values in a list, so that most rows have equals.
    few = st.lists(values, min_size=1, max_size=3).flatmap(st.sampled_from)
    return rows.flatmap(
        lambda keys: st.lists(few, min_size=len(keys), max_size=len(keys)).map(
            lambda drawn: [key | {column: value} for key, value in zip(keys, drawn, strict=True)]
        )
    )


_CURSORS = Cursors("for tests only")


async def check_walk(database: Database, model: Any, sort: str, rows: list[dict[str, Any]], limit: int) -> None:
    """Replace the table's rows. Check that a walk by cursor returns each of them once, in the database's order."""
    table = model.__table__
    fillers = {name: values[0] for name, (_, values) in TYPES.items() if name in table.columns}
    async with database.engine.begin() as connection:
        await connection.execute(table.delete())
        if rows:
            await connection.execute(insert(table), [fillers | row for row in rows])
    statements, names, column = list_of(model), key_names(model), sort.removeprefix("-")

    def make(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names), row[column] is None

    walked: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await read_page(
            database.read, statements, ListParams(sort=sort, cursor=cursor, limit=limit), cursors=_CURSORS, make=make
        )
        assert 0 < len(page["items"]) <= limit or not rows, "an endless walk"
        walked += page["items"]
        cursor = page["next_cursor"]

    complete = await read_page(
        database.read, statements, ListParams(sort=sort, limit=MAX_LIMIT), cursors=_CURSORS, make=make
    )
    assert walked == complete["items"], "the order by cursor is the order by offset"
    assert complete["total"] == len(rows)
    assert {key for key, _ in walked} == {tuple(row[name] for name in names) for row in rows}
    nulls = [is_null for _, is_null in walked]
    assert nulls == sorted(nulls), "rows without a value come last"


def sort_columns(model: Any) -> list[str]:
    return [column.key for column in model.__table__.columns]
