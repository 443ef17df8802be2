"""Pages by cursor on SQLite, for each type that it has."""

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.database import Database, make_engine
from tests.support.paged_lists import (
    EXAMPLES,
    MODELS,
    NOT_ON_SQLITE,
    TYPES,
    PagedBase,
    check_walk,
    rows_of,
    sort_columns,
)
from tests.unit.conftest import SQLITE


@pytest.fixture(scope="module")
async def paged_database() -> AsyncIterator[Database]:
    engine = make_engine(url=SQLITE, application_name="test")
    async with engine.begin() as connection:
        await connection.run_sync(PagedBase.metadata.create_all)
    yield Database(engine)
    await engine.dispose()


def _is_storable(row: dict[str, Any]) -> bool:
    """Return False for NaN, which SQLite stores as NULL."""
    return not any(isinstance(value, float) and math.isnan(value) for value in row.values())


@pytest.mark.parametrize("key", MODELS)
@settings(EXAMPLES, max_examples=40)
@given(data=st.data())
async def test_walk_by_cursor_sees_each_row_once(paged_database: Database, key: str, data: st.DataObject) -> None:
    model = MODELS[key]
    columns = [name for name in sort_columns(model) if name.removesuffix("_or_null") not in NOT_ON_SQLITE]
    column = data.draw(st.sampled_from(columns))
    rows = data.draw(rows_of(model, column).map(lambda rows: list(filter(_is_storable, rows))))
    for sort in (column, f"-{column}"):
        await check_walk(paged_database, model, sort, rows, data.draw(st.integers(1, 4)))


def test_each_type_is_walked() -> None:
    assert set(TYPES) >= NOT_ON_SQLITE
