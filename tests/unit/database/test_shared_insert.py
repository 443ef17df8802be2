"""Which INSERT statements can share a statement with others, and which are refused."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Numeric,
    String,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    bindparam,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from app.database import SharedInsert
from app.database.shared_insert import LONGEST_SHARED_TEXT


class _Base(DeclarativeBase):
    pass


class Place(_Base):
    __tablename__ = "places"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    code: Mapped[str] = mapped_column(String(10), unique=True)
    country: Mapped[str]
    city: Mapped[str]
    closed: Mapped[bool]

    __table_args__ = (UniqueConstraint("country", "city"),)


class Visit(_Base):
    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    place_id: Mapped[int] = mapped_column(ForeignKey("places.id"))
    country: Mapped[str]
    city: Mapped[str]
    title: Mapped[str] = mapped_column(String(10))
    note: Mapped[str | None]
    collated: Mapped[str] = mapped_column(String(collation="C"))
    is_paid: Mapped[bool]
    token: Mapped[UUID] = mapped_column(Uuid)
    paid: Mapped[bool] = mapped_column(Boolean)
    price: Mapped[Any] = mapped_column(Numeric(8, 2))
    at: Mapped[Any] = mapped_column(DateTime(timezone=True))


class Guide(_Base):
    __tablename__ = "guides"

    id: Mapped[int] = mapped_column(primary_key=True)
    place_id: Mapped[int] = mapped_column(ForeignKey("places.id"))
    title: Mapped[str]

    __table_args__ = (Index("lower_title", func.lower(text("title")), unique=True),)


class Numbered(_Base):
    __tablename__ = "numbered"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    number: Mapped[int] = mapped_column(default=select(func.count(Guide.id)).scalar_subquery())


class Page(_Base):
    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    slug: Mapped[str] = mapped_column(Computed("lower(title)"), unique=True)


class Booking(_Base):
    __tablename__ = "bookings"

    id: Mapped[int] = mapped_column(primary_key=True)
    room: Mapped[int]

    __table_args__ = (postgresql.ExcludeConstraint(("room", "="), name="one_booking"),)


class Folded(_Base):
    __tablename__ = "folded"

    code: Mapped[str] = mapped_column(String(collation="ci"), primary_key=True)


class _Lower(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value and value.lower()


DIALECT: Any = asyncpg.dialect()  # type: ignore[no-untyped-call]


def parameter(column: Any) -> Any:
    return bindparam(column.key, type_=column.type)


PLACE_ID: Any = bindparam("place_id", type_=BigInteger())
TITLE = parameter(Visit.title)
IN_PLACE = select(Place.id, TITLE).where(Place.id == PLACE_ID)
RETURNED = (Visit.id, Visit.place_id, Visit.title)


def visits(source: Any, *returned: Any, columns: tuple[str, ...] = ("place_id", "title")) -> Any:
    return insert(Visit).from_select(list(columns), source).returning(*(returned or RETURNED))


ACCEPTED: dict[str, Any] = {
    "row of a parent": visits(IN_PLACE),
    "condition": visits(IN_PLACE.where(Place.closed.is_(False))),
    "parameter on the left": visits(select(Place.id, TITLE).where(PLACE_ID == Place.id)),  # noqa: SIM300
    "literal": visits(select(Place.id, literal("first", String())).where(Place.id == PLACE_ID)),
    "without a parent": visits(select(TITLE), Visit.title, columns=("title",)),
    "two parameters without a parent": visits(
        select(TITLE, parameter(Visit.note)), Visit.title, Visit.note, columns=("title", "note")
    ),
    "composite key": visits(
        select(Place.country, Place.city).where(
            Place.country == parameter(Visit.country), Place.city == parameter(Visit.city)
        ),
        Visit.country,
        Visit.city,
        columns=("country", "city"),
    ),
    "subquery in RETURNING": visits(
        IN_PLACE,
        *RETURNED,
        select(Place.code).where(Place.id == literal_column("visits.place_id")).scalar_subquery().label("code"),
    ),
    "subquery in a condition": visits(IN_PLACE.where(~exists().where(Guide.place_id == Place.id))),
    "labelled column": visits(IN_PLACE, Visit.id, Visit.place_id.label("place"), Visit.title.label("name")),
}

_OTHER = aliased(Place)
REFUSED: dict[str, tuple[Any, str]] = {
    "values": (insert(Visit).values(title=bindparam("new")).returning(Visit.title), "only insert(...).from_select("),
    "union": (visits(IN_PLACE.union_all(IN_PLACE)), "only insert(...).from_select("),
    "conflict": (
        postgresql.insert(Visit)
        .from_select(["place_id", "title"], IN_PLACE)
        .on_conflict_do_nothing()
        .returning(*RETURNED),
        "ON CONFLICT",
    ),
    "prefix": (visits(IN_PLACE).prefix_with("OVERRIDING"), "literal SQL"),
    "limit": (visits(IN_PLACE.limit(1)), "LIMIT"),
    "distinct": (visits(IN_PLACE.distinct()), "DISTINCT"),
    "aggregate": (visits(select(func.max(Place.id), TITLE).where(Place.id == PLACE_ID)), "aggregate"),
    "volatile function": (visits(IN_PLACE.where(func.random() > 0.5)), "random()"),
    "volatile function in RETURNING": (visits(IN_PLACE, *RETURNED, func.random().label("r")), "random()"),
    "literal SQL": (visits(IN_PLACE.where(text("random() > 0.5"))), "literal SQL"),
    "lock": (visits(IN_PLACE.with_for_update()), "remove with_for_update()"),
    "parameter in RETURNING": (visits(IN_PLACE, *RETURNED, bindparam("p", type_=String()).label("p")), "RETURNING has"),
    "join": (visits(select(Place.id, TITLE).join(Visit).where(Place.id == PLACE_ID)), "one table or none"),
    "two tables": (visits(select(Place.id, TITLE).where(Place.id == PLACE_ID, _OTHER.id == 1)), "one table or none"),
    "alias": (visits(select(_OTHER.id, TITLE).where(_OTHER.id == PLACE_ID)), "one table or none"),
    "no key": (visits(select(Place.id, TITLE).where(Place.country == "NZ")), "compare the primary key"),
    "part of a key": (
        visits(
            select(Place.country, TITLE).where(Place.country == parameter(Visit.country)),
            Visit.country,
            Visit.title,
            columns=("country", "title"),
        ),
        "compare the primary key",
    ),
    "key in an OR": (
        visits(select(Place.id, TITLE).where(or_(Place.id == PLACE_ID, Place.closed))),
        "compare the primary key",
    ),
    "no parameter": (visits(select(literal("first", String())), Visit.title, columns=("title",)), "no parameter"),
    "changed parameter": (
        visits(select(Place.id, func.lower(TITLE)).where(Place.id == PLACE_ID)),
        "column title must get the parameter title unchanged",
    ),
    "parameter of another name": (
        visits(select(Place.id, bindparam("name", type_=String())).where(Place.id == PLACE_ID)),
        "the parameter name must have the name of the inserted column",
    ),
    "parameter only in a condition": (
        visits(IN_PLACE.where(Place.country == bindparam("in_country", type_=String()))),
        "the parameter in_country must have the name",
    ),
    "column that the key is not compared with": (
        visits(select(Place.id + 1, TITLE).where(Place.id == PLACE_ID)),
        "must get the parameter place_id unchanged",
    ),
    "parameter in a subquery": (
        visits(IN_PLACE.where(~exists().where(Guide.title == TITLE))),
        "a subquery has a parameter",
    ),
    "limit of rows": (
        visits(
            IN_PLACE.where(
                select(func.count()).where(Visit.place_id == Place.id).correlate(Place).scalar_subquery() < 10
            )
        ),
        "a subquery on visits",
    ),
    "subquery that correlates with the INSERT": (
        visits(
            IN_PLACE,
            *RETURNED,
            select(Place.code).where(Place.id == Visit.place_id).correlate(Visit).scalar_subquery().label("code"),
        ),
        "a subquery on visits",
    ),
    "limit of rows of a table by name": (
        visits(IN_PLACE.where(select(func.count()).select_from(table("visits")).scalar_subquery() < 10)),
        "a subquery on visits",
    ),
    "limit of rows of literal SQL": (
        visits(IN_PLACE.where(select(func.count()).select_from(text("visits")).scalar_subquery() < 10)),
        "a subquery on visits",
    ),
    "column that does not exist": (
        insert(Visit).from_select(["place_id", "nothing"], IN_PLACE).returning(*RETURNED),
        "visits has no column nothing",
    ),
    "parameter with a generated name": (
        visits(select(Place.id, bindparam("title", unique=True, type_=String())).where(Place.id == PLACE_ID)),
        "must have the name of the inserted column",
    ),
    "unique column that is computed": (
        insert(Page).from_select(["title"], select(parameter(Page.title))).returning(Page.id, Page.title),
        "has inserted columns",
    ),
    "exclusion constraint": (
        insert(Booking).from_select(["room"], select(parameter(Booking.room))).returning(Booking.id, Booking.room),
        "the unique key one_booking has inserted columns",
    ),
    "limit of rows by count()": (
        visits(IN_PLACE.where(select(func.count()).select_from(Visit).scalar_subquery() < 10)),
        "a subquery on visits",
    ),
    "number of rows in RETURNING": (
        visits(IN_PLACE, *RETURNED, select(func.count(aliased(Visit).id)).scalar_subquery().label("number")),
        "a subquery on visits",
    ),
    "parameter with a default": (
        visits(select(Place.id, bindparam("title", "none", String())).where(Place.id == PLACE_ID)),
        "the parameter title has a default",
    ),
    "negated parameter": (
        visits(select(~parameter(Visit.is_paid)), Visit.is_paid, columns=("is_paid",)),
        "must get the parameter is_paid unchanged",
    ),
    "negated key": (
        visits(select(-Place.id, TITLE).where(Place.id == PLACE_ID)),
        "must get the parameter place_id unchanged",
    ),
    "parameter without a type": (
        visits(select(Place.id, bindparam("title")).where(Place.id == PLACE_ID)),
        "the parameter title has the type NullType()",
    ),
    "parameter of a type that converts values": (
        visits(select(Place.id, bindparam("title", type_=_Lower())).where(Place.id == PLACE_ID)),
        "whose values do not compare as those of visits.title",
    ),
    "key that is compared in another way": (
        visits(select(Folded.code).where(Folded.code == TITLE), Visit.title, columns=("title",)),
        "folded.code has the type String(collation='ci')",
    ),
    "CTE": (visits(IN_PLACE).add_cte(insert(Guide).values(place_id=1, title="a").cte("added")), "a CTE runs once"),
    "CTE of the SELECT": (visits(IN_PLACE.add_cte(insert(Guide).values(place_id=1).cte("added"))), "a CTE runs once"),
    "default with a subquery": (
        insert(Numbered)
        .from_select(["title"], select(parameter(Numbered.title)))
        .returning(Numbered.id, Numbered.title),
        "the default of numbered.number has a subquery",
    ),
    "inserted primary key": (
        visits(select(bindparam("id", type_=Visit.id.type)), Visit.id, columns=("id",)),
        "the unique key id has inserted columns",
    ),
    "unique constraint": (
        insert(Place).from_select(["country"], select(parameter(Place.country))).returning(Place.id, Place.country),
        "the unique key city, country has inserted columns",
    ),
    "unique index on an expression": (
        insert(Guide).from_select(["title"], select(parameter(Guide.title))).returning(Guide.id, Guide.title),
        "the unique key lower_title has inserted columns",
    ),
    "column that is not returned": (visits(IN_PLACE, Visit.id, Visit.title), "must return visits.place_id"),
    "number with a scale": (
        visits(select(parameter(Visit.price)), Visit.price, columns=("price",)),
        "cannot be compared in Python",
    ),
    "time": (visits(select(parameter(Visit.at)), Visit.at, columns=("at",)), "cannot be compared in Python"),
    "entity": (insert(Visit).from_select(["place_id", "title"], IN_PLACE).returning(Visit), "the entity Visit"),
    "no RETURNING": (insert(Visit).from_select(["place_id", "title"], IN_PLACE), "returns no row"),
}


@pytest.mark.parametrize("statement", ACCEPTED.values(), ids=ACCEPTED)
def test_statement_is_accepted(statement: Any) -> None:
    shared = SharedInsert(statement)
    compiled: Any = shared.several.compile(dialect=DIALECT)
    assert set(compiled.positiontup) >= set(shared.names)
    assert "unnest(" in str(compiled)


@pytest.mark.parametrize(("statement", "reason"), REFUSED.values(), ids=REFUSED)
def test_statement_is_refused(statement: Any, reason: str) -> None:
    with pytest.raises(TypeError) as refused:
        SharedInsert(statement)
    assert reason in str(refused.value)


def test_shared_statement_skips_locked_rows_of_the_parent() -> None:
    sql = " ".join(str(SharedInsert(visits(IN_PLACE)).several.compile(dialect=DIALECT)).split())
    assert sql == (
        "INSERT INTO visits (place_id, title) SELECT places.id, anon_1.title FROM places,"
        " unnest($1::BIGINT[], $2::VARCHAR[]) AS anon_1(place_id, title) WHERE places.id = anon_1.place_id"
        " ORDER BY anon_1.place_id, anon_1.title"
        " FOR KEY SHARE OF places SKIP LOCKED RETURNING visits.id, visits.place_id, visits.title"
    )


def test_values_of_rows_and_of_parameters_are_equal() -> None:
    shared = SharedInsert(visits(IN_PLACE, Visit.id, Visit.place_id.label("place"), Visit.title.label("name")))
    assert shared.values({"title": "a", "place_id": 1}) == shared.values_in({"id": 9, "place": 1, "name": "a"})
    assert shared.arrays([(1, "a"), (2, "b")]) == {"place_id": [1, 2], "title": ["a", "b"]}
    one = SharedInsert(visits(select(TITLE), Visit.title, columns=("title",)))
    assert one.values({"title": "a"}) == one.values_in({"title": "a"}) == "a"
    assert one.arrays(["a", "b"]) == {"title": ["a", "b"]}


@pytest.mark.parametrize(
    ("values", "can_share"),
    [
        ((1, "a" * 10), True),
        ((1, "a" * 11), False),  # too long for its column
        ((1, "\0"), False),
        ((1, None), False),
        ((1 << 63, "a"), False),
        (("1", "a"), False),
    ],
)
def test_row_that_the_server_may_refuse_goes_alone(values: Any, can_share: bool) -> None:
    assert SharedInsert(visits(IN_PLACE)).can_share(values) is can_share


def test_long_text_goes_alone() -> None:
    """It would hold up the short ones of its statement."""
    shared = SharedInsert(visits(select(parameter(Visit.note)), Visit.note, columns=("note",)))
    assert shared.can_share("a" * LONGEST_SHARED_TEXT)
    assert not shared.can_share("a" * (LONGEST_SHARED_TEXT + 1))


def test_null_is_shared_if_the_column_allows_it() -> None:
    shared = SharedInsert(
        visits(select(parameter(Visit.note), TITLE), Visit.note, Visit.title, columns=("note", "title"))
    )
    assert shared.can_share((None, "a"))
    assert not shared.can_share(("a", None))
