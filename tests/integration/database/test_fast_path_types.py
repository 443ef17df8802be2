"""A read session returns the values that SQLAlchemy's own cursor returns, for each type of PostgreSQL and driver."""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.errors import FeatureNotSupported, UndefinedFile
from sqlalchemy import URL, Column, MetaData, Table, bindparam, cast, insert, select
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from app.database import Database
from tests.integration.database.helpers import create_tables
from tests.support.postgres import connect


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Colour(Enum):
    RED = "r"
    BLUE = 'b, "quoted" \\ {}'


class Cents(TypeDecorator[int]):
    """A decorator around NUMERIC, whose converter depends on what the server sends."""

    impl = sa.Numeric(12, 2)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / 100

    def process_result_value(self, value: Decimal | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else int(value * 100)


class Reversed(TypeDecorator[str]):
    """A decorator whose NULL is a value of its own."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value[::-1]

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str:
        return "" if value is None else value[::-1]


class Prices(TypeDecorator[list[Decimal]]):
    """A decorator around an array of another decorator."""

    impl = sa.ARRAY(Cents)
    cache_ok = True


class Meddling(TypeDecorator[str]):
    """A decorator that replaces the converter itself, which SQLAlchemy advises against."""

    impl = sa.String
    cache_ok = True

    def result_processor(self, dialect: sa.Dialect, coltype: Any) -> Callable[[Any], Any]:
        return lambda value: (value, coltype)


class Custom(UserDefinedType[str]):
    """A type of a user, with a converter that looks at the server's type."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "text"

    def result_processor(self, dialect: sa.Dialect, coltype: Any) -> Callable[[Any], Any]:
        return lambda value: (value, coltype)


class Kind(NamedTuple):
    """A column type, a strategy for its values, and whether a SELECT of it takes the fast path.

    `cast_from` is the type of the parameter, if the drivers cannot send the column's own type.
    """

    type: TypeEngine[Any]
    values: st.SearchStrategy[Any]
    fast: bool = True
    cast_from: TypeEngine[Any] | None = None

    def parameter(self, name: str) -> sa.ColumnElement[Any]:
        """Return a parameter for the column."""
        sent = bindparam(name, type_=self.cast_from or self.type)
        return cast(sent, self.type) if self.cast_from else sent


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
letters = st.text("aäB' \"\\{},%:$", max_size=4)
numbers = st.decimals(-(10**9), 10**9, places=2) | st.sampled_from([Decimal("NaN"), Decimal("Infinity")])
floats = st.floats(width=32)
dates = st.dates()
moments = st.datetimes()
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))])
zoned = st.datetimes(timezones=zones).filter(lambda moment: 1900 < moment.year < 2200)
spans = st.timedeltas(timedelta(-10_000), timedelta(10_000))
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(letters, inner, max_size=2),
    max_leaves=4,
)
bounds = st.sampled_from(["[)", "()", "[]", "(]"])
uuids = st.uuids()
addresses = st.sampled_from([IPv4Address("10.0.0.1"), IPv6Address("::1"), IPv6Interface("fe80::1/64")])
ids = st.integers(0, 2**31 - 1)


def lists(inner: st.SearchStrategy[Any], size: int = 3) -> st.SearchStrategy[Any]:
    return st.lists(inner | st.none(), max_size=size)


def ranges(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def make(pair: list[Any], kind: Any) -> pg.Range[Any]:
        lower, upper = sorted(pair, key=lambda value: (value is not None, value)) if None not in pair else pair
        return pg.Range(lower, upper, bounds=kind)

    return st.just(pg.Range(empty=True)) | st.builds(make, st.lists(inner | st.none(), min_size=2, max_size=2), bounds)


def multiranges(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(ranges(inner), max_size=3).map(MultiRange)


small = st.integers(-1000, 1000)
native_enum = pg.ENUM(Colour, name="native_colour")
KINDS: dict[str, Kind] = {
    "SMALLINT": Kind(sa.SMALLINT(), st.integers(-(2**15), 2**15 - 1)),
    "INTEGER": Kind(sa.INTEGER(), st.integers(-(2**31), 2**31 - 1)),
    "BIGINT": Kind(sa.BIGINT(), st.integers(-(2**63), 2**63 - 1)),
    "BOOLEAN": Kind(sa.BOOLEAN(), st.booleans()),
    "VARCHAR": Kind(sa.VARCHAR(8), texts),
    "CHAR": Kind(sa.CHAR(8), letters),
    "TEXT": Kind(sa.TEXT(), texts),
    "Unicode": Kind(sa.Unicode(), texts),
    "CITEXT": Kind(pg.CITEXT(), letters),
    "NUMERIC": Kind(sa.NUMERIC(), numbers),
    "NUMERIC with scale": Kind(sa.NUMERIC(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "NUMERIC as float": Kind(sa.NUMERIC(asdecimal=False), numbers),
    "DECIMAL": Kind(sa.DECIMAL(12, 2), st.decimals(0, 10**9, places=2)),
    "FLOAT": Kind(sa.FLOAT(), st.floats()),
    "REAL": Kind(sa.REAL(), floats),
    "DOUBLE_PRECISION": Kind(sa.DOUBLE_PRECISION(), st.floats()),
    "FLOAT as Decimal": Kind(sa.Float(asdecimal=True), st.floats(-1e9, 1e9)),
    "FLOAT as Decimal with scale": Kind(sa.Float(asdecimal=True, decimal_return_scale=3), st.floats(-1e9, 1e9)),
    "DATE": Kind(sa.DATE(), dates),
    "TIME": Kind(sa.TIME(), st.times()),
    "TIME with a zone": Kind(pg.TIME(timezone=True), st.times(timezones=zones)),
    "TIMESTAMP": Kind(sa.TIMESTAMP(), moments),
    "TIMESTAMP with a zone": Kind(pg.TIMESTAMP(timezone=True), zoned),
    "INTERVAL": Kind(pg.INTERVAL(), spans),
    "Interval": Kind(sa.Interval(), spans),
    "Interval that is not native": Kind(sa.Interval(native=False), spans),
    "UUID": Kind(sa.UUID(), uuids),
    "UUID as text": Kind(sa.UUID(as_uuid=False), uuids.map(str)),
    "BYTEA": Kind(pg.BYTEA(), st.binary(max_size=8)),
    "LargeBinary": Kind(sa.LargeBinary(), st.binary(max_size=8)),
    "PickleType": Kind(sa.PickleType(), st.lists(small, max_size=2)),
    "JSON": Kind(sa.JSON(), json),
    "JSON without null": Kind(pg.JSON(none_as_null=True), json),
    "JSONB": Kind(pg.JSONB(), json),
    "JSONPATH": Kind(pg.JSONPATH(), st.sampled_from(["$.a", "$[*]"]), cast_from=sa.TEXT()),
    "INET": Kind(pg.INET(), addresses),
    "CIDR": Kind(pg.CIDR(), st.sampled_from([IPv4Network("10.0.0.0/8"), IPv4Network("0.0.0.0/0")])),
    "MACADDR": Kind(pg.MACADDR(), st.just("08:00:2b:01:02:03"), cast_from=sa.TEXT()),
    "MACADDR8": Kind(pg.MACADDR8(), st.just("08:00:2b:01:02:03:04:05"), cast_from=sa.TEXT()),
    "BIT": Kind(pg.BIT(3), st.sampled_from(["101", "000"])),
    "BIT VARYING": Kind(pg.BIT(8, varying=True), st.text("01", min_size=1, max_size=8)),
    "MONEY": Kind(pg.MONEY(), st.sampled_from(["1.50", "-3"]), cast_from=sa.TEXT()),
    "OID": Kind(pg.OID(), ids),
    "REGCLASS": Kind(pg.REGCLASS(), st.just("pg_class"), cast_from=sa.TEXT()),
    "REGCONFIG": Kind(pg.REGCONFIG(), st.just("english"), cast_from=sa.TEXT()),
    "TSVECTOR": Kind(pg.TSVECTOR(), st.sampled_from(["a:1 b:2", ""]), cast_from=sa.TEXT()),
    "TSQUERY": Kind(pg.TSQUERY(), st.just("'a' & 'b'"), cast_from=sa.TEXT()),
    "HSTORE": Kind(pg.HSTORE(), st.dictionaries(letters, letters | st.none(), max_size=2), fast=False),
    "ENUM": Kind(native_enum, st.sampled_from(Colour)),
    "ENUM of strings": Kind(pg.ENUM("x", "y, z", name="native_text"), st.sampled_from(["x", "y, z"])),
    "Enum that is not native": Kind(sa.Enum(Colour, native_enum=False), st.sampled_from(Colour)),
    "Enum by value": Kind(
        sa.Enum(Colour, native_enum=False, values_callable=lambda kind: [each.value for each in kind]),
        st.sampled_from(Colour),
    ),
    "DOMAIN": Kind(pg.DOMAIN("positive", sa.Integer(), check="VALUE > 0"), st.integers(1, 9)),
    "DOMAIN of numbers": Kind(pg.DOMAIN("price", sa.Numeric(12, 2)), st.decimals(0, 10**9, places=2)),
    "INT4RANGE": Kind(pg.INT4RANGE(), ranges(small)),
    "INT8RANGE": Kind(pg.INT8RANGE(), ranges(small)),
    "NUMRANGE": Kind(pg.NUMRANGE(), ranges(st.decimals(0, 99, places=1))),
    "DATERANGE": Kind(pg.DATERANGE(), ranges(st.dates(date(2000, 1, 1), date(2100, 1, 1)))),
    "TSRANGE": Kind(pg.TSRANGE(), ranges(moments)),
    "TSTZRANGE": Kind(pg.TSTZRANGE(), ranges(zoned)),
    "INT4MULTIRANGE": Kind(pg.INT4MULTIRANGE(), multiranges(small)),
    "INT8MULTIRANGE": Kind(pg.INT8MULTIRANGE(), multiranges(small)),
    "NUMMULTIRANGE": Kind(pg.NUMMULTIRANGE(), multiranges(st.decimals(0, 99, places=1))),
    "DATEMULTIRANGE": Kind(pg.DATEMULTIRANGE(), multiranges(st.dates(date(2000, 1, 1), date(2100, 1, 1)))),
    "TSMULTIRANGE": Kind(pg.TSMULTIRANGE(), multiranges(moments)),
    "TSTZMULTIRANGE": Kind(pg.TSTZMULTIRANGE(), multiranges(zoned)),
    "ARRAY of integers": Kind(sa.ARRAY(sa.Integer()), lists(small)),
    "ARRAY of two dimensions": Kind(
        sa.ARRAY(sa.Integer(), dimensions=2),
        st.integers(0, 2).flatmap(lambda n: st.lists(st.lists(small, min_size=n, max_size=n), max_size=n)),
    ),
    "ARRAY as tuple": Kind(sa.ARRAY(sa.Text(), as_tuple=True), lists(texts)),
    "ARRAY of text": Kind(pg.ARRAY(sa.Text()), lists(texts)),
    "ARRAY of numbers": Kind(sa.ARRAY(sa.Numeric(asdecimal=False)), lists(numbers), fast=False),
    "ARRAY of decimals": Kind(sa.ARRAY(sa.Numeric()), lists(numbers), fast=False),
    "ARRAY of floats": Kind(sa.ARRAY(sa.Float()), lists(floats), fast=False),
    "ARRAY of decorated numbers": Kind(sa.ARRAY(Cents()), lists(small), fast=False),
    "ARRAY of dates": Kind(sa.ARRAY(sa.Date()), lists(dates)),
    "ARRAY of moments": Kind(sa.ARRAY(pg.TIMESTAMP(timezone=True)), lists(zoned)),
    "ARRAY of UUIDs": Kind(sa.ARRAY(sa.Uuid()), lists(uuids)),
    "ARRAY of bytes": Kind(sa.ARRAY(sa.LargeBinary()), lists(st.binary(max_size=4))),
    "ARRAY of booleans": Kind(sa.ARRAY(sa.Boolean()), lists(st.booleans())),
    "ARRAY of ENUM": Kind(sa.ARRAY(native_enum), lists(st.sampled_from(Colour))),
    "ARRAY of Enum that is not native": Kind(
        sa.ARRAY(sa.Enum(Colour, native_enum=False, length=20)), lists(st.sampled_from(Colour))
    ),
    "ARRAY of JSONB": Kind(sa.ARRAY(pg.JSONB()), lists(st.dictionaries(letters, small, max_size=1))),
    "ARRAY of ranges": Kind(sa.ARRAY(pg.INT4RANGE()), lists(ranges(small))),
    "ARRAY of decorated text": Kind(sa.ARRAY(Reversed()), lists(texts)),
    "TypeDecorator": Kind(Reversed(), texts),
    "TypeDecorator of a number": Kind(Cents(), small),
    "TypeDecorator of an array": Kind(Prices(), lists(small), fast=False),
    "TypeDecorator with its own converter": Kind(Meddling(), texts, fast=False),
    "UserDefinedType": Kind(Custom(), texts, fast=False),
}
EXTENSIONS = {"CITEXT": "citext", "HSTORE": "hstore"}
# Base classes, types that other databases have, and other names of the types above.
NOT_COLUMNS = set(
    "AbstractMultiRange AbstractRange AbstractSingleRange NamedType NullType TupleType TypeEngine MatchType Variant"
    " BINARY VARBINARY BLOB CLOB NCHAR NVARCHAR DATETIME DOUBLE INT UnicodeText".split()
)


def test_each_type_of_sqlalchemy_is_compared() -> None:
    """A new type must be added here, with the path that it takes."""
    names = {
        name
        for module in (sa.types, pg)
        for name in dir(module)
        if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), TypeEngine)
    }
    compared = {each.__name__ for kind in KINDS.values() for each in type(kind.type).__mro__}

    assert {name for name in names if not name.startswith("_")} - compared - NOT_COLUMNS == set()


def same(left: Any, right: Any) -> bool:
    """Return True if two values, and what they contain, are equal and of the same types. NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, pg.Range):
        return left == right and same((left.lower, left.upper), (right.lower, right.upper))
    if isinstance(left, (datetime, time)) and left.utcoffset() != right.utcoffset():
        return False
    return bool(left == right) or (isinstance(left, (float, Decimal)) and math.isnan(left) and math.isnan(right))


@pytest.fixture
def kinds(database_url: URL) -> dict[str, Kind]:
    """Create the extensions that the server has; return the types that it can store."""
    found = dict(KINDS)
    with connect(database_url) as admin:
        for name, extension in EXTENSIONS.items():
            try:
                admin.execute(f"CREATE EXTENSION {extension}".encode())
            except (FeatureNotSupported, UndefinedFile):  # the embedded server has no extensions
                del found[name]
    return found


@pytest.fixture
def table(database_url: URL, kinds: dict[str, Kind]) -> Table:
    """Create a table with a column of each type."""
    columns = [Column(name, kind.type) for name, kind in kinds.items()]
    table = Table("test_every_type", MetaData(), Column("id", sa.Integer, primary_key=True), *columns)
    create_tables(database_url, table.metadata)
    return table


# Without shrinking, which takes a minute: the message names the column and the values.
@settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data())
async def test_fast_path_agrees_with_sqlalchemy_on_each_type(
    database: Database, table: Table, kinds: dict[str, Kind], data: st.DataObject
) -> None:
    """Each example is inserted on both paths, and both rows are read on both paths."""
    add = insert(table).values({name: kinds[name].parameter(name) for name in kinds}).returning(table.c.id)
    values = data.draw(st.fixed_dictionaries({name: st.none() | kind.values for name, kind in kinds.items()}))

    [first] = await database.statement._run(add, values)
    await database.statement._execute(add, values)

    assert database.read._fast_path is not None
    for fast in (True, False):
        names = [name for name in kinds if kinds[name].fast == fast]
        read = select(*table.c[*names]).where(table.c.id >= bindparam("first")).order_by(table.c.id)
        assert (database.read._fast_path.compiled(read) is not None) == fast
        results = [await run(read, {"first": first["id"]}) for run in (database.read._run, database.read._execute)]
        for name in names:
            expected, *others = [row[name] for rows in reversed(results) for row in rows]
            for found in others:
                assert same(found, expected), f"{name}: {found!r} instead of {expected!r}"


def test_type_on_the_ordinary_path_does_not_take_the_fast_path(database: Database, kinds: dict[str, Kind]) -> None:
    assert database.read._fast_path is not None
    for kind in kinds.values():
        statement = select(kind.parameter("value").label("value"))
        assert (database.read._fast_path.compiled(statement) is not None) == kind.fast


async def test_number_of_an_unexpected_kind_is_an_error(database: Database) -> None:
    """SQLAlchemy refuses a column of type NUMERIC for which the server sends text."""
    with pytest.raises(TypeError, match="received a str"):
        await database.read.first(select(sa.type_coerce(sa.func.lower("X"), sa.Numeric).label("value")))


async def test_callable_parameter_is_computed_at_each_execution(database: Database) -> None:
    numbers = iter(range(5))
    statement = select(bindparam("number", callable_=lambda: next(numbers), type_=sa.Integer()).label("number"))

    rows = [await database.read.first(statement) for _ in range(2)]

    assert [row and row["number"] for row in rows] == [0, 1]
