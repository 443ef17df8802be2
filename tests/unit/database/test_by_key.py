"""Which statements and keys a read session can send together with others, and which it refuses."""

from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    CHAR,
    BigInteger,
    Date,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    String,
    UniqueConstraint,
    bindparam,
    func,
    literal_column,
    select,
    text,
    union,
)
from sqlalchemy.dialects.postgresql import CITEXT, asyncpg
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from app.database import KeyedSelect
from app.database.statement_checks import depends_on_more_than_rows


class _Base(DeclarativeBase):
    pass


class Place(_Base):
    __tablename__ = "places"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(10), unique=True)
    token: Mapped[UUID] = mapped_column(unique=True)
    opened: Mapped[date] = mapped_column(Date, unique=True)
    large: Mapped[int] = mapped_column(Integer().with_variant(BigInteger(), "postgresql"), unique=True)
    variant: Mapped[str] = mapped_column(String().with_variant(CITEXT(), "postgresql"), unique=True)
    small: Mapped[int] = mapped_column(SmallInteger, unique=True)
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2), unique=True)
    folded: Mapped[str] = mapped_column(CITEXT, unique=True)
    padded: Mapped[str] = mapped_column(CHAR(10), unique=True)
    collated: Mapped[str] = mapped_column(String(10, collation="C"), unique=True)
    country: Mapped[str]
    city: Mapped[str]
    owner: Mapped[int]
    closed: Mapped[bool]

    __table_args__ = (
        UniqueConstraint("country", "city"),
        Index("one_open_place", "owner", unique=True, postgresql_where=text("NOT closed")),
        Index("lower_country", func.lower(text("country")), unique=True),
    )


class Visit(_Base):
    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    place_id: Mapped[int] = mapped_column(ForeignKey("places.id"))


_PLACE = select(Place.id, Place.code)
_VISITS = select(func.count()).where(Visit.place_id == Place.id).scalar_subquery()
_Alias = aliased(Place)

ACCEPTED: dict[str, tuple[Any, ...]] = {
    "primary key": (_PLACE, Place.id),
    "unique text": (_PLACE, Place.code),
    "unique UUID": (select(Place.token), Place.token),
    "unique date": (select(Place.opened), Place.opened),
    "composite": (select(Place.city, Place.country, Place.id), Place.country, Place.city),
    "labelled key": (select(Place.id.label("number"), Place.code), Place.id),
    "alias": (select(_Alias.id), _Alias.id),
    "condition": (_PLACE.where(Place.country == "NZ"), Place.id),
    "join to one": (select(Visit.id, Place.code).join(Place), Visit.id),
    "count in a subquery": (select(Place.id, _VISITS.label("visits")), Place.id),
    "stable function": (select(Place.id, func.lower(Place.code).label("lower")), Place.id),
    "name of a column as literal SQL": (select(Place.id, literal_column("places.code").label("code")), Place.id),
}

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "limit": ((_PLACE.limit(1), Place.id), "LIMIT"),
    "offset": ((_PLACE.offset(1), Place.id), "OFFSET"),
    "fetch first": ((_PLACE.fetch(1), Place.id), "LIMIT"),
    "distinct": ((_PLACE.distinct(), Place.id), "DISTINCT"),
    "group by": ((_PLACE.group_by(Place.id), Place.id), "GROUP BY"),
    "having": ((_PLACE.having(Place.id > 1), Place.id), "HAVING"),
    "aggregate": ((select(func.max(Place.id).label("id"), Place.id.label("n")), Place.id), "aggregate"),
    "window function": ((select(Place.id, func.rank().over(order_by=Place.code)), Place.id), "window function"),
    "lock": ((_PLACE.with_for_update(), Place.id), "a lock ends with its transaction"),
    "volatile function": ((select(Place.id, func.random().label("r")), Place.id), "random()"),
    "volatile function in a condition": ((_PLACE.where(func.random() > 0.5), Place.id), "random()"),
    "setting": ((_PLACE.where(Place.country == func.current_setting("app.c")), Place.id), "current_setting()"),
    "sequence": ((select(Place.id, func.nextval("s").label("n")), Place.id), "nextval()"),
    "literal SQL": ((select(Place.id, literal_column("random()").label("r")), Place.id), "literal SQL 'random()'"),
    "text": ((_PLACE.where(text("random() > 0.5")), Place.id), "literal SQL"),
    "parameter": ((_PLACE.where(Place.country == bindparam("country")), Place.id), "the statement has country"),
    "no key": ((_PLACE,), "no column"),
    "column that is not unique": ((select(Place.country), Place.country), "not the primary key or a unique constraint"),
    "part of a key": ((select(Place.city), Place.city), "not the primary key or a unique constraint"),
    "more than a key": ((_PLACE, Place.id, Place.code), "not the primary key or a unique constraint"),
    "partial index": ((select(Place.owner), Place.owner), "not the primary key or a unique constraint"),
    "keys of two tables": ((select(Place.id, Visit.id.label("v")).join(Visit), Place.id, Visit.id), "not the primary"),
    "key that is not selected": ((select(Place.code), Place.id), "must select Place.id"),
    "key of another alias": ((_PLACE, _Alias.id), "must select"),
    "number with a scale": ((select(Place.price), Place.price), "cannot be compared in Python"),
    "text without case": ((select(Place.folded), Place.folded), "cannot be compared in Python"),
    "text without case on PostgreSQL": ((select(Place.variant), Place.variant), "cannot be compared in Python"),
    "negated key": ((select(-Place.id), Place.id), "must select Place.id"),
    "suffix": ((_PLACE.suffix_with("LIMIT 1"), Place.id), "literal SQL 'LIMIT 1'"),
    "prefix": ((_PLACE.prefix_with("DISTINCT ON (code)"), Place.id), "literal SQL 'DISTINCT ON (code)'"),
    "statement hint": ((_PLACE.with_statement_hint("FOR UPDATE"), Place.id), "literal SQL 'FOR UPDATE'"),
    "function of another schema": ((select(Place.id, func.audit.lower(Place.code)), Place.id), "the function lower()"),
    "padded text": ((select(Place.padded), Place.padded), "cannot be compared in Python"),
    "collation": ((select(Place.collated), Place.collated), "cannot be compared in Python"),
    "entity": ((select(Place), Place.id), "names the entity Place"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_statement_by_key_is_accepted(case: str) -> None:
    statement, *key = ACCEPTED[case]
    keyed = KeyedSelect(statement, *key)
    dialect = PGDialect()  # type: ignore[no-untyped-call]
    for each in (keyed.one, keyed.several):
        assert set(each.compile(dialect=dialect).params) >= set(keyed.names)


@pytest.mark.parametrize("case", REFUSED)
def test_statement_by_key_is_refused_with_the_reason(case: str) -> None:
    (statement, *key), reason = REFUSED[case]
    with pytest.raises(TypeError) as refused:
        KeyedSelect(statement, *key)
    assert reason in str(refused.value)


def test_texts_are_not_cut_to_the_length_of_the_column() -> None:
    statement = KeyedSelect(_PLACE, Place.code)
    assert "VARCHAR[]" in str(statement.several.compile(dialect=asyncpg.dialect()))  # type: ignore[no-untyped-call]


def test_named_function_is_accepted() -> None:
    KeyedSelect(select(Place.id, func.our_stable_one(Place.code).label("x")), Place.id, functions=["our_stable_one"])


@pytest.mark.parametrize(
    ("columns", "shared", "alone"),
    [
        ((Place.id,), [0, -1, 2**31 - 1, -(2**31)], [2**31, -(2**31) - 1, True, 1.0, "1", None]),
        ((Place.small,), [32_767], [32_768]),
        ((Place.large,), [2**31], [2**63]),
        ((Place.code,), ["", "a", "\N{GREEK SMALL LETTER ALPHA}"], ["\0", "\ud800", 1, None]),
        ((Place.token,), [UUID(int=1)], ["00000000-0000-0000-0000-000000000001"]),
        ((Place.opened,), [date(2026, 1, 1)], ["2026-01-01"]),
        ((Place.country, Place.city), [("NZ", "Nelson")], [("NZ",), "NZ", ("NZ", None), ["NZ", "Nelson"]]),
    ],
    ids=["integer", "small integer", "variant of PostgreSQL", "text", "UUID", "date", "composite"],
)
def test_key_that_may_be_refused_is_sent_alone(columns: tuple[Any, ...], shared: list[Any], alone: list[Any]) -> None:
    statement = KeyedSelect(select(*columns), *columns)
    assert [key for key in shared if not statement.can_share(key)] == []
    assert [key for key in alone if statement.can_share(key)] == []


def test_composite_key_with_another_number_of_values_is_refused() -> None:
    statement = KeyedSelect(select(Place.country, Place.city), Place.country, Place.city)
    with pytest.raises(TypeError, match="a tuple of 2 values"):
        statement.parameters("NZ")


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (select(func.count()).select_from(Place), None),
        (_PLACE.order_by(Place.id).limit(literal_column("21")), None),
        (union(select(Place.id), select(func.random())), "the function random()"),
        (select(_VISITS.label("n")), None),
        (select(Place.id).where(Place.id.in_(select(func.nextval("s")))), "the function nextval()"),
        (select(func.now()), None),
        (select(func.pg_catalog.now()), None),
        (select(Place.id).suffix_with("FOR UPDATE"), "the literal SQL 'FOR UPDATE'"),
        (select(Place.id).select_from(Place.__table__.tablesample(5)), "a table sample"),
    ],
    ids=["count", "literal limit", "union", "subquery", "nested", "now", "now by schema", "suffix", "sample"],
)
def test_equal_reads_share_only_what_depends_on_rows(statement: Any, found: str | None) -> None:
    assert depends_on_more_than_rows(statement) == found
