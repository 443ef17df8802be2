"""What every domain promises the platform."""

from sqlalchemy import DateTime, Table

from app import models
from app.database import Base


def tables() -> list[Table]:
    assert models
    return Base.metadata.sorted_tables


def test_every_constraint_and_index_has_a_name() -> None:
    for table in tables():
        for item in (*table.constraints, *table.indexes):
            assert getattr(item, "name", None), f"{item!r} of {table.name}"


def test_every_time_knows_its_time_zone() -> None:
    for table in tables():
        for column in table.columns:
            if isinstance(column.type, DateTime):
                assert column.type.timezone, f"{table.name}.{column.name}"


def test_every_foreign_key_has_an_index_that_starts_with_it() -> None:
    """Without one, deleting the row it refers to reads the whole table."""
    for table in tables():
        leading = {next(iter(index.columns)).name for index in table.indexes if index.columns}
        for key in table.foreign_keys:
            assert key.parent.name in leading, f"{table.name}.{key.parent.name}"
