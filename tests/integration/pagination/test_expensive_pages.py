"""A search and a deep page are in the lane expensive, unless their route declares another lane."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import URL, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, PoolOptions, make_engine
from app.database.lanes import in_lane
from app.lanes import EXPENSIVE, LaneSpec
from app.pagination.cursor import Cursors
from app.pagination.page import MAX_CHEAP_OFFSET, ListParams, Page, read_page
from app.pagination.statements import ListStatements, contains
from tests.integration.database.helpers import SLEEP, allow_long_statements, create_tables, pool_of, wait_until

# Longer than any pause of the machine that runs the tests.
HOUR = 3600.0


class _Base(DeclarativeBase):
    pass


class Note(_Base):
    __tablename__ = "test_texts"

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
    allow_long_statements(database_url)
    options = PoolOptions(
        timeout=HOUR, expensive_timeout=HOUR, own_lanes=(LaneSpec("notes", share=1, queue=1, deadline=HOUR),)
    )
    engine = make_engine(url=database_url, application_name="headroom:test", pool=options)
    database = Database(engine)

    async def hold() -> None:
        with in_lane(EXPENSIVE):
            await database.read.first(SLEEP, seconds=HOUR)

    holding = asyncio.create_task(hold())
    await wait_until(lambda: in_expensive_lane(database)[0] == 1, holding)
    yield database
    assert not holding.done(), "the lane was not held until the end of the test"
    holding.cancel()
    await asyncio.wait([holding])
    await engine.dispose()


def in_expensive_lane(database: Database) -> tuple[int, int]:
    """Return how many statements run and wait in the lane."""
    [state] = [each for each in pool_of(database).lane_states if each.name == EXPENSIVE]
    return state.running, state.waiting


async def page(database: Database, notes: ListStatements, **params: Any) -> Page[int]:
    return await read_page(
        database.read, notes, ListParams(sort="id", **params), cursors=Cursors("key"), make=lambda row: int(row["id"])
    )


async def is_expensive(database: Database, notes: ListStatements, **params: Any) -> bool:
    """Read a page. Return True if it waits for the lane, False if it is answered."""
    reading = asyncio.create_task(page(database, notes, **params))
    await wait_until(lambda: reading.done() or in_expensive_lane(database)[1])
    if reading.done():
        await reading  # raises its error: a page that failed is not a page that was answered
        return False
    reading.cancel()
    await asyncio.wait([reading])
    return True


async def test_search_is_in_the_lane_expensive(database: Database) -> None:
    assert await is_expensive(database, new_list(), q="zzzz")
    assert await is_expensive(database, new_list(), q="zzzz", cursor="")
    assert await is_expensive(database, new_list()) is False


async def test_page_at_a_large_offset_is_in_the_lane_expensive(database: Database) -> None:
    assert await is_expensive(database, new_list(), offset=MAX_CHEAP_OFFSET + 1)
    assert await is_expensive(database, new_list(), offset=MAX_CHEAP_OFFSET) is False


async def test_search_stays_in_the_lane_that_its_route_declares(database: Database) -> None:
    with in_lane("notes"):
        assert await is_expensive(database, new_list(), q="zzzz") is False
