"""Values that the factory gives to columns, on tables of every type."""

import enum
from collections.abc import AsyncIterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, make_engine
from tests.support.factories import Factory
from tests.unit.conftest import SQLITE


class Colour(enum.Enum):
    RED = "red"


class Own(DeclarativeBase):
    pass


class Everything(Own):
    __tablename__ = "everything"

    id: Mapped[int] = mapped_column(primary_key=True)
    colour: Mapped[Colour]
    kind: Mapped[str] = mapped_column(sa.Enum("small", "large", native_enum=False))
    code: Mapped[str] = mapped_column(sa.String(3))
    email: Mapped[str]
    flag: Mapped[bool]
    price: Mapped[Decimal]
    at: Mapped[datetime]
    day: Mapped[date]
    hour: Mapped[time]
    lasts: Mapped[timedelta]
    key: Mapped[UUID]
    data: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    raw: Mapped[bytes]
    empty: Mapped[str | None]
    default: Mapped[str] = mapped_column(default="from the model")
    server: Mapped[str] = mapped_column(server_default="from the server")


class Unknown(Own):
    __tablename__ = "unknown"

    id: Mapped[int] = mapped_column(primary_key=True)
    shape: Mapped[Any] = mapped_column(sa.PickleType)


@pytest.fixture
async def own() -> AsyncIterator[Factory]:
    engine: AsyncEngine = make_engine(url=SQLITE, application_name="headroom:test")
    async with engine.begin() as connection:
        await connection.run_sync(Own.metadata.create_all)
    yield Factory(Database(engine))
    await engine.dispose()


async def test_column_of_every_type_gets_a_value(own: Factory) -> None:
    first, second = await own(Everything), await own(Everything, code="own")

    assert (first.colour, first.kind, first.email, first.empty) == (Colour.RED, "small", "email1@example.com", None)
    assert (first.default, first.server) == ("from the model", "from the server")
    assert (first.code, second.code) == ("e 1", "own")
    assert first.key != second.key


async def test_column_of_an_unknown_type_is_refused_by_name(own: Factory) -> None:
    with pytest.raises(TypeError, match=r"Unknown\.shape has the type .*: give it a value, shape="):
        await own(Unknown)
