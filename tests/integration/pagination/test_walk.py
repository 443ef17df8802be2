"""Pages by cursor on PostgreSQL, for each type, each key and both directions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Text, bindparam, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database
from app.pagination.statements import ListStatements, Part
from tests.integration.database.helpers import create_tables
from tests.support.paged_lists import EXAMPLES, MODELS, PagedBase, check_walk, rows_of, sort_columns
from tests.support.postgres import connect


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def paged_database(database: Database, database_url: URL) -> Database:
    create_tables(database_url, PagedBase.metadata)
    return database


@settings(EXAMPLES, max_examples=4)
@given(data=st.data())
async def test_walk_by_cursor_of_each_type_sees_each_row_once(paged_database: Database, data: st.DataObject) -> None:
    model = MODELS["integer"]
    for column in sort_columns(model):
        rows = data.draw(rows_of(model, column), column)
        for sort in (column, f"-{column}"):
            await check_walk(paged_database, model, sort, rows, data.draw(st.integers(1, 4)))


@pytest.mark.parametrize("key", MODELS)
@settings(EXAMPLES, max_examples=40)
@given(data=st.data())
async def test_walk_by_cursor_with_each_key_sees_each_row_once(
    paged_database: Database, key: str, data: st.DataObject
) -> None:
    model = MODELS[key]
    column = data.draw(st.sampled_from(sort_columns(model)))
    rows = data.draw(rows_of(model, column))
    for sort in (column, f"-{column}"):
        await check_walk(paged_database, model, sort, rows, data.draw(st.integers(1, 4)))


class _Base(DeclarativeBase):
    pass


class Entry(_Base):
    __tablename__ = "test_entries"

    id: Mapped[int] = mapped_column(primary_key=True)
    rank: Mapped[int | None]
    name: Mapped[str | None] = mapped_column(Text)


ENTRIES = ListStatements(
    "entries",
    select(Entry.id, Entry.rank, Entry.name),
    key=Entry.id,
    sorts={"rank": Entry.rank},
    filters={"name": Entry.name == bindparam("name")},
)


@pytest.mark.parametrize("database_setup", ["asyncpg"])
@pytest.mark.parametrize("sort", ["rank", "-rank"])
async def test_one_index_serves_a_nullable_column_in_both_directions(
    database: Database, database_url: URL, sort: str
) -> None:
    """No page sorts, and none reads more of the index than it returns, wherever it starts."""
    create_tables(database_url, _Base.metadata)
    none: frozenset[str] = frozenset()
    with connect(database_url) as admin:
        admin.execute("INSERT INTO test_entries SELECT n, nullif(n % 10, 0) * n FROM generate_series(1, 20000) n")
        admin.execute("CREATE INDEX ON test_entries (rank, id)")
        admin.execute("VACUUM ANALYZE test_entries")
        positions: dict[Part, tuple[int | None, int]] = {"values": (90_000, 1), "nulls": (None, 10_000)}
        for part, position in positions.items():
            for statement in (ENTRIES.first_page(sort, none, 21, part), ENTRIES.page_after(sort, none, 21, part)):
                used = statement.compile().params.keys()
                values = zip(("after_0", "after_1"), position, strict=True)
                literal = statement.params({name: value for name, value in values if name in used})
                sql = literal.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True})
                plan = admin.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}".encode()).fetchone()
                assert plan is not None
                limit = plan[0][0]["Plan"]
                scan = limit["Plans"][0]
                assert (limit["Node Type"], scan["Node Type"]) == ("Limit", "Index Scan")
                assert scan["Actual Rows"] == 21
                assert scan.get("Rows Removed by Filter", 0) == 0
                assert scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] < 60
