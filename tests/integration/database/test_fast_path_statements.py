"""The fast path and SQLAlchemy's own path return the same rows, under the same names, for each kind of statement."""

import warnings
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    ARRAY,
    URL,
    Boolean,
    Integer,
    Numeric,
    String,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    text,
    true,
    type_coerce,
    union,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column, with_loader_criteria
from sqlalchemy.sql.selectable import LABEL_STYLE_TABLENAME_PLUS_COL

from app.database import Database
from app.database.session import Row
from tests.integration.database.helpers import create_tables
from tests.support.postgres import connect


class _Base(DeclarativeBase):
    pass


class Thing(_Base):
    __tablename__ = "test_things"

    id: Mapped[int] = mapped_column(primary_key=True)
    attribute: Mapped[int] = mapped_column("stored_as")
    keyed: Mapped[int] = mapped_column("stored_too", key="a_key")
    odd: Mapped[str] = mapped_column("Odd %(name)s: $1", default="odd")
    token: Mapped[UUID] = mapped_column(default=uuid4)


_Other = aliased(Thing)
_LONG = "a" * 70
_ONE = select(Thing.id, Thing.odd)

# Each has at most one row, or an ORDER BY.
ON_THE_FAST_PATH: dict[str, Any] = {
    "attributes": select(Thing.id, Thing.attribute, Thing.keyed, Thing.odd),
    "parameters": _ONE.where(Thing.id == bindparam("b"), Thing.odd != bindparam("a"), Thing.id < bindparam("b") + 1),
    "labelled literal": select(literal_column("1 + 1").label("two")),
    "functions": select(func.count(), func.max(Thing.id), func.array_agg(Thing.attribute)).select_from(Thing),
    "same column twice": select(Thing.id, _Other.id).join(_Other, _Other.id == Thing.id),
    "percent signs": select((Thing.id % 2).label("a%b"), Thing.odd.like("o%"), Thing.odd.ilike("%\\%%", escape="\\")),
    "quotes": select(Thing.id.label('a"b'), Thing.id.label("c:d"), literal(":x $1 ? %s\\").label("e")),
    "union": union(select(Thing.id), select(Thing.attribute)).order_by("id"),
    "numbers": select(Thing.id / Thing.attribute, func.abs(Thing.id), func.round(cast("1.5", Numeric)), Thing.id * 1.5),
    "aggregates": select(func.avg(Thing.id), func.sum(Thing.attribute)),
    "number that the server sends as another type": select(
        type_coerce(Thing.id, Numeric).label("a"),
        type_coerce(Thing.id, Numeric(asdecimal=False)).label("b"),
        func.random(type_=Numeric(10, 3)) * 0,
    ),
    "table with qualified names": select(Thing.id, Thing.keyed).set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL),
    "list parameter": _ONE.where(Thing.id == any_(bindparam("list", type_=ARRAY(Integer)))),
    "json": select(cast({"a": 1.5}, JSONB)["a"].label("j"), cast({"a": 1.5}, JSONB)["a"].as_numeric(10, 2)),
    "constants": select(null(), true(), false(), literal("x"), case((Thing.id > 0, "yes"), else_="no")),
    "subqueries": select(select(func.count()).select_from(Thing).scalar_subquery(), exists(select(Thing.id))),
    "derived table": select(select(Thing.id, Thing.keyed).subquery()),
    "values": select(values(column("a", Integer), name="v").data([(1,)])),
    "composite": select(func.row(1, "a").label("both")),
    "untyped": select(text("SELECT 1 AS x").columns(column("x")).subquery()),
}
ON_THE_ORDINARY_PATH: dict[str, Any] = {
    "literal without a label": select(literal_column("1 + 1"), literal_column("2 + 2")),
    "text": select(text("1 + 1 AS two")),
    "text among columns": select(Thing.id, text("1 + 1 AS two")),
    "star": select(literal_column("*")).select_from(Thing),
    "long name": select(Thing.id.label(_LONG)),
    "long name in bytes": select(Thing.id.label("ä" * 40)),
    "IN with a list": _ONE.where(Thing.id.in_([1, 2])),
    "IN with a parameter": _ONE.where(Thing.id.in_(bindparam("list", expanding=True))),
    "execution options": _ONE.execution_options(schema_translate_map={None: "pg_catalog"}),
    "loader criteria": _ONE.options(with_loader_criteria(Thing, Thing.id > 5)),
    "loader criteria that fit": _ONE.options(with_loader_criteria(Thing, Thing.id < 5)),
    "numbers in an array": select(func.array_agg(cast(Thing.id, Numeric))),
}
STATEMENTS = ON_THE_FAST_PATH | ON_THE_ORDINARY_PATH


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def things(database_url: URL) -> None:
    create_tables(database_url, _Base.metadata)
    with connect(database_url) as admin:
        admin.execute("INSERT INTO test_things VALUES (1, 2, 3, 'odd %', gen_random_uuid())")


def items(row: Row) -> list[tuple[str, Any]]:
    names = row.keys()  # asyncpg's rows iterate over their values
    return [(name, row[name]) for name in names]


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
async def test_fast_path_returns_what_sqlalchemy_returns(database: Database, statement: Any) -> None:
    parameters = {"a": "a", "b": 1, "list": [1, 3]}
    parameters = {name: value for name, value in parameters.items() if name in statement.compile().params}
    results: list[list[Any]] = []
    for run in (database.read._run, database.read._execute):
        try:
            results.append([items(row) for row in await run(statement, parameters)])
        except DBAPIError as error:
            results.append([str(error.orig).partition("<class")[0]])

    fast, ordinary = results
    assert fast == ordinary
    assert repr(fast) == repr(ordinary), "equal values of different types"


@pytest.mark.parametrize("statement", ON_THE_FAST_PATH.values(), ids=ON_THE_FAST_PATH.keys())
def test_common_statement_takes_the_fast_path(database: Database, statement: Any) -> None:
    assert database.read._fast_path is not None
    assert database.read._fast_path.compiled(statement) is not None


@pytest.mark.parametrize("statement", ON_THE_ORDINARY_PATH.values(), ids=ON_THE_ORDINARY_PATH.keys())
def test_statement_that_would_differ_takes_the_ordinary_path(database: Database, statement: Any) -> None:
    assert database.read._fast_path is not None
    assert database.read._fast_path.compiled(statement) is None


_ROW = {"attribute": 1, "a_key": 2, "id": bindparam("new", type_=Integer())}
WRITES: dict[str, Any] = {
    "insert": insert(Thing).values(id=bindparam("new"), attribute=1, keyed=2).returning(Thing.id, Thing.odd),
    "insert of expressions": insert(Thing)
    .values(id=bindparam("new"), attribute=func.length("abc"), keyed=1, odd="x", token=func.gen_random_uuid())
    .returning(Thing.attribute, Thing.odd),
    "upsert": upsert(Thing)
    .values(id=1, attribute=bindparam("new"), keyed=2, odd="x", token=UUID(int=1))
    .on_conflict_do_update(index_elements=["id"], set_={"Odd %(name)s: $1": "y"})
    .returning(Thing.odd, Thing.token),
    "update": update(Thing).where(Thing.id == 1).values(odd="z").returning(Thing.odd, Thing.keyed),
    "delete": delete(Thing).where(Thing.id == 1).returning(Thing.id, Thing.odd),
    "delete of nothing": delete(Thing).where(Thing.id == -1).returning(Thing.id),
    "condition": update(Thing).where(Thing.id == 1).values(keyed=Thing.keyed + 1).returning(cast(Thing.id, Boolean)),
    "text of a number": update(Thing).values(odd="w").returning(cast(Thing.id, String), cast(Thing.id, Numeric(9, 1))),
}


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("statement", WRITES.values(), ids=WRITES.keys())
async def test_write_returns_and_stores_what_sqlalchemy_does(
    database: Database, database_url: URL, statement: Any
) -> None:
    """Both paths start from the same row. The values of `token` are random, so they are left out."""
    outcomes = []
    for run in (database.statement._run, database.statement._execute):
        with connect(database_url) as admin:
            admin.execute("TRUNCATE test_things")
            admin.execute("INSERT INTO test_things VALUES (1, 2, 3, 'odd', '00000000-0000-0000-0000-000000000000')")
            with warnings.catch_warnings(action="error"):
                returned = [items(row) for row in await run(statement, {"new": 9})]
            stored = admin.execute('SELECT id, stored_as, stored_too, "Odd %(name)s: $1" FROM test_things ORDER BY 1')
            outcomes.append((returned, stored.fetchall()))

    assert outcomes[0] == outcomes[1]
