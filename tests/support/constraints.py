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
Table("owner", METADATA, Column("id", Integer, primary_key=True))
item = Table(
    "item",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("code", Text, unique=True, nullable=False),
    Column("slug", Text, index=True, unique=True),
    Column("title", Text),
    Column("owner_id", ForeignKey("owner.id")),
    Column("parent_id", ForeignKey("item.id")),
    Column("a", Integer),
    Column("b", Integer),
    UniqueConstraint("b", "a", name="one_pair"),
    CheckConstraint("a < 100", name="small"),
)
Index("uq_item_title", func.lower(item.c.title), unique=True)
Table("tag", METADATA, Column("item_id", ForeignKey("item.id", name="fk_tag"), primary_key=True))

# A statement, and the name of the constraint that it violates. A column without NULL has none: it is TABLE.COLUMN.
VIOLATIONS = [
    ("INSERT INTO item (id, code) VALUES (1, 'c2')", "pk_item"),
    ("INSERT INTO item (id, code) VALUES (2, 'c1')", "uq_item_code"),
    ("INSERT INTO item (id, code, slug) VALUES (2, 'c2', 's1')", "ix_item_slug"),
    ("UPDATE item SET title = 'TITLE' WHERE id = 3", "uq_item_title"),
    ("INSERT INTO item (id, code, a, b) VALUES (2, 'c2', 1, 2)", "one_pair"),
    ("INSERT INTO item (id, code, a) VALUES (2, 'c2', 100)", "ck_item_small"),
    ("INSERT INTO item (id) VALUES (2)", "item.code"),
    ("INSERT INTO item (id, code, owner_id) VALUES (2, 'c2', 99)", "fk_item_owner_id_owner"),
    ("DELETE FROM owner", "fk_item_owner_id_owner"),
    ("UPDATE item SET id = 7 WHERE id = 1", "fk_tag"),
    ("INSERT INTO tag VALUES (99)", "fk_tag"),
]


async def create_tables(connection: AsyncConnection) -> None:
    """Create the tables and the rows that VIOLATIONS refers to, and commit them."""
    await connection.run_sync(METADATA.create_all)
    await connection.execute(text("INSERT INTO owner VALUES (1)"))
    await connection.execute(
        text(
            "INSERT INTO item (id, code, slug, title, owner_id, a, b)"
            " VALUES (1, 'c1', 's1', 'title', 1, 1, 2), (3, 'c3', 's3', 'other', NULL, NULL, NULL)"
        )
    )
    await connection.execute(text("INSERT INTO tag VALUES (1)"))
    await connection.commit()
