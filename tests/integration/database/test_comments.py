"""Statements with comments of their route and lane: what the server sees, and how many texts it prepares."""

from typing import Any

import pytest
from sqlalchemy import Integer, bindparam, column, func, select, table
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database
from app.database.comments import comment_statements
from app.database.lanes import in_lane
from app.lanes import EXPENSIVE

OWN_TEXT = select(func.current_query().label("text"))
NUMBER = select((bindparam("number", type_=Integer()) + 1).label("next"), func.random().label("random"))
PREPARED: Any = select(column("statement")).select_from(table("pg_prepared_statements"))
MOST = 3
# psycopg prepares a statement when it runs for the sixth time.
RUNS = 7


class Route:
    """The route of the statements that follow."""

    path = ""

    def __call__(self) -> str:
        return self.path


@pytest.fixture
def route() -> Route:
    return Route()


@pytest.fixture
def commented(engine: AsyncEngine, route: Route) -> Database:
    database = Database(engine)
    comment_statements(database, route, MOST)
    return database


async def own_text(database: Database) -> str:
    row = await database.read.first(OWN_TEXT)
    assert row is not None
    return str(row["text"])


async def test_statement_ends_with_its_lane_and_route(commented: Database, route: Route) -> None:
    assert (await own_text(commented)).endswith(" /*lane='normal'*/")
    route.path = "/things/{thing_id}"
    assert (await own_text(commented)).endswith(" /*lane='normal',route='%2Fthings%2F%7Bthing_id%7D'*/")
    with in_lane(EXPENSIVE):
        assert (await own_text(commented)).endswith(" /*lane='expensive',route='%2Fthings%2F%7Bthing_id%7D'*/")


async def test_statement_of_a_transaction_ends_with_its_route(commented: Database, route: Route) -> None:
    route.path = "/list"
    assert (await own_text(commented)).endswith(" /*lane='normal',route='%2Flist'*/"), "the same text, on another path"
    async with commented.write() as session:
        assert str(await session.scalar(OWN_TEXT)).endswith(" /*lane='normal',route='%2Flist'*/")
        assert await session.scalar(select(bindparam("share", value="100 %"))) == "100 %"


async def test_prepared_statements_with_a_comment_are_bounded(commented: Database, route: Route) -> None:
    """Further routes share the statement without a comment."""
    for number in range(4 * MOST):
        route.path = f"/{number}"
        for _ in range(RUNS):
            row = await commented.read.first(NUMBER, number=number)
            assert row is not None
            assert row["next"] == number + 1

    prepared = [str(row["statement"]) for row in await commented.read.all(PREPARED)]

    own = sorted(text.partition(" /*")[2] for text in prepared if "random" in text)
    assert own == ["", *(f"lane='normal',route='%2F{number}'*/" for number in range(MOST))]
