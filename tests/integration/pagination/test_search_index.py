"""A search is in the lane expensive while the server has no index for it."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL, Text, bindparam, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, PoolOptions, make_engine
from app.database.lanes import in_lane
from app.lanes import EXPENSIVE, LaneSpec
from app.pagination import search_index
from app.pagination.cursor import Cursors
from app.pagination.page import ListParams, Page, read_page
from app.pagination.statements import ListStatements, contains
from tests.integration.database.helpers import SLEEP, create_tables, pool_of, wait_until
from tests.support.postgres import connect

MINUTE = 60.0


class _Base(DeclarativeBase):
    pass


class Note(_Base):
    __tablename__ = "Notes"  # a name that must be quoted

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)


def new_list() -> ListStatements:
    return ListStatements(
        "notes",
        select(Note.id, Note.title),
        key=Note.id,
        sorts={"id": Note.id},
        filters={"q": contains("q", Note.title, Note.body)},
    )


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[Database]:
    """Return a database with a table, whose lane expensive is held by a statement."""
    create_tables(database_url, _Base.metadata)
    with connect(database_url) as admin:
        # The check knows an index by the name of its operator class. The embedded server has no pg_trgm.
        admin.execute(
            "CREATE OPERATOR CLASS gin_trgm_ops FOR TYPE text USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,"
            " OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 bttextcmp(text, text)"
        )
    options = PoolOptions(
        timeout=MINUTE, expensive_timeout=MINUTE, own_lanes=(LaneSpec("notes", share=1, queue=1, deadline=MINUTE),)
    )
    engine = make_engine(url=database_url, application_name="headroom:test", pool=options)
    database = Database(engine)

    async def hold() -> None:
        with in_lane(EXPENSIVE):
            await database.read.first(SLEEP, seconds=MINUTE)

    holding = asyncio.create_task(hold())
    await wait_until(lambda: in_expensive_lane(database)[0] == 1, holding)
    yield database
    holding.cancel()
    await asyncio.wait([holding])
    await engine.dispose()


def in_expensive_lane(database: Database) -> tuple[int, int]:
    """Return how many statements run and wait in the lane."""
    [state] = [each for each in pool_of(database).lane_states if each.name == EXPENSIVE]
    return state.running, state.waiting


async def page(database: Database, notes: ListStatements, **params: str) -> Page[int]:
    return await read_page(
        database.read, notes, ListParams(sort="id", **params), cursors=Cursors("key"), make=lambda row: int(row["id"])
    )


async def is_expensive(database: Database, notes: ListStatements, **params: str) -> bool:
    """Read a page. Return True if it waits for the lane, False if it is answered."""
    reading = asyncio.create_task(page(database, notes, **params))
    await wait_until(lambda: reading.done() or in_expensive_lane(database)[1])
    waits = not reading.done()
    reading.cancel()
    await asyncio.wait([reading])
    return waits


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("", True),
        ("CREATE INDEX {0} (title text_ops, body text_ops)", True),
        ("CREATE INDEX {0} (title gin_trgm_ops)", True),
        ("CREATE INDEX {0} (title gin_trgm_ops, body gin_trgm_ops) WHERE id > 0", True),
        ("CREATE INDEX {0} (title gin_trgm_ops, body gin_trgm_ops)", False),
        ("CREATE INDEX {0} (title gin_trgm_ops); CREATE INDEX {0} (body gin_trgm_ops)", False),
    ],
)
async def test_search_without_a_whole_index_is_expensive(
    database: Database, database_url: URL, index: str, expected: bool
) -> None:
    if index:
        with connect(database_url) as admin:
            admin.execute(index.format('ON "Notes"').encode())
    notes = new_list()

    assert await is_expensive(database, notes, q="zzzz") is expected
    assert await is_expensive(database, notes, q="zzzz", cursor="") is expected
    assert await is_expensive(database, notes) is False


async def test_new_index_is_found_after_a_while(
    database: Database, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = new_list()
    assert await is_expensive(database, notes, q="zzzz")
    with connect(database_url) as admin:
        admin.execute('CREATE INDEX ON "Notes" (title gin_trgm_ops, body gin_trgm_ops)')
    assert await is_expensive(database, notes, q="zzzz")

    later = time.monotonic() + search_index.CHECK_AGAIN_SECONDS

    class Time:
        monotonic = staticmethod(lambda: later)

    monkeypatch.setattr(search_index, "time", Time)
    assert not await is_expensive(database, notes, q="zzzz")


async def test_search_that_is_not_by_like_needs_no_index(database: Database) -> None:
    notes = ListStatements(
        "notes", select(Note.id), key=Note.id, sorts={"id": Note.id}, filters={"q": Note.title == bindparam("q")}
    )

    assert not await is_expensive(database, notes, q="zzzz")


async def test_search_stays_in_the_lane_that_its_route_declares(database: Database) -> None:
    with in_lane("notes"):
        assert await is_expensive(database, new_list(), q="zzzz") is False
