"""Rules for the tables of every domain."""

from sqlalchemy import Column, DateTime, ForeignKey, Index, Integer, MetaData, Table, UniqueConstraint

from app import models
from app.database import Base


def tables() -> list[Table]:
    assert models
    return Base.metadata.sorted_tables


def test_constraint_and_index_of_each_table_has_a_name() -> None:
    for table in tables():
        for item in (*table.constraints, *table.indexes):
            assert getattr(item, "name", None), f"give {item!r} of {table.name} a name"


def test_time_column_of_each_table_has_a_time_zone() -> None:
    for table in tables():
        for column in table.columns:
            if isinstance(column.type, DateTime):
                assert column.type.timezone, f"declare {table.name}.{column.name} as DateTime(timezone=True)"


def test_foreign_key_of_each_table_is_indexed() -> None:
    """Without an index, deleting a referenced row scans the whole table."""
    missing = [f"Index(None, {key}) to {table.name}" for table in tables() for key in unindexed_foreign_keys(table)]

    assert not missing, f"add {', '.join(missing)}, or index=True to the column"


def unindexed_foreign_keys(table: Table) -> list[str]:
    """Return the columns of each foreign key that no index, primary key or unique constraint starts with."""
    indexes = [index for index in table.indexes if index.dialect_options["postgresql"]["where"] is None]
    unique = [constraint for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
    columns = [table.primary_key.columns, *(each.columns for each in indexes), *(each.columns for each in unique)]
    indexed = [[column.name for column in each] for each in columns]
    keys = [[column.name for column in key.columns] for key in table.foreign_key_constraints]
    return [
        ", ".join(map(repr, key)) for key in keys if not any(set(key) == set(names[: len(key)]) for names in indexed)
    ]


def test_association_table_needs_an_index_for_its_second_key_only() -> None:
    """Its primary key starts with the first foreign key."""
    metadata = MetaData()
    Table("left", metadata, Column("id", Integer, primary_key=True))
    Table("right", metadata, Column("id", Integer, primary_key=True))
    association = Table(
        "association",
        metadata,
        Column("left_id", ForeignKey("left.id"), primary_key=True),
        Column("right_id", ForeignKey("right.id"), primary_key=True),
    )

    assert unindexed_foreign_keys(association) == ["'right_id'"]
    Index("partial", association.c.right_id, postgresql_where=association.c.left_id > 7)
    assert unindexed_foreign_keys(association) == ["'right_id'"]
    Index("whole", association.c.right_id, association.c.left_id)
    assert unindexed_foreign_keys(association) == []
