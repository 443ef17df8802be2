"""Tables with every kind of constraint, and statements that violate each of them."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database.base import NAMING_CONVENTION

METADATA = MetaData(naming_convention=NAMING_CONVENTION)
Table("test_owner", METADATA, Column("id", Integer, primary_key=True))
item = Table(
    "test_item",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("code", Text, unique=True, nullable=False),
    Column("slug", Text, index=True, unique=True),
    Column("title", Text),
    Column("owner_id", ForeignKey("test_owner.id")),
    Column("parent_id", ForeignKey("test_item.id")),
    Column("a", Integer),
    Column("b", Integer),
    UniqueConstraint("b", "a", name="one_pair"),
    CheckConstraint("a < 100", name="small"),
)
Index("uq_test_item_title", func.lower(item.c.title), unique=True)
Table("test_tag", METADATA, Column("item_id", ForeignKey("test_item.id", name="fk_tag"), primary_key=True))

# A statement, and the name of the constraint that it violates. A column without NULL has none: it is TABLE.COLUMN.
VIOLATIONS = [
    ("INSERT INTO test_item (id, code) VALUES (1, 'c2')", "pk_test_item"),
    ("INSERT INTO test_item (id, code) VALUES (2, 'c1')", "uq_test_item_code"),
    ("INSERT INTO test_item (id, code, slug) VALUES (2, 'c2', 's1')", "ix_test_item_slug"),
    ("UPDATE test_item SET title = 'TITLE' WHERE id = 3", "uq_test_item_title"),
    ("INSERT INTO test_item (id, code, a, b) VALUES (2, 'c2', 1, 2)", "one_pair"),
    ("INSERT INTO test_item (id, code, a) VALUES (2, 'c2', 100)", "ck_test_item_small"),
    ("INSERT INTO test_item (id) VALUES (2)", "test_item.code"),
    ("INSERT INTO test_item (id, code, owner_id) VALUES (2, 'c2', 99)", "fk_test_item_owner_id_test_owner"),
    ("DELETE FROM test_owner", "fk_test_item_owner_id_test_owner"),
    ("UPDATE test_item SET id = 7 WHERE id = 1", "fk_tag"),
    ("INSERT INTO test_tag VALUES (99)", "fk_tag"),
]


async def create_tables(connection: AsyncConnection) -> None:
    """Create the tables and the rows that VIOLATIONS refers to, and commit them."""
    await connection.run_sync(METADATA.create_all)
    await connection.execute(text("INSERT INTO test_owner VALUES (1)"))
    await connection.execute(
        text(
            "INSERT INTO test_item (id, code, slug, title, owner_id, a, b)"
            " VALUES (1, 'c1', 's1', 'title', 1, 1, 2), (3, 'c3', 's3', 'other', NULL, NULL, NULL)"
        )
    )
    await connection.execute(text("INSERT INTO test_tag VALUES (1)"))
    await connection.commit()
