"""Rules for the tables of every domain."""

from sqlalchemy import DateTime, Table

from app import models
from app.database import Base


def tables() -> list[Table]:
    assert models
    return Base.metadata.sorted_tables


def test_constraint_and_index_of_each_table_has_a_name() -> None:
    for table in tables():
        for item in (*table.constraints, *table.indexes):
            assert getattr(item, "name", None), f"{item!r} of {table.name}"


def test_time_column_of_each_table_has_a_time_zone() -> None:
    for table in tables():
        for column in table.columns:
            if isinstance(column.type, DateTime):
                assert column.type.timezone, f"{table.name}.{column.name}"


def test_foreign_key_of_each_table_is_indexed() -> None:
    """Without an index, deleting a referenced row scans the whole table."""
    for table in tables():
        leading = {next(iter(index.columns)).name for index in table.indexes if index.columns}
        for key in table.foreign_keys:
            assert key.parent.name in leading, f"{table.name}.{key.parent.name}"
