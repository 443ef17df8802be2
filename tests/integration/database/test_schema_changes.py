"""Schema changes while statements are prepared and running: each statement succeeds, or fails as a 503."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Enum, ForeignKey, String, bindparam, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from app.database import Database, PoolOptions, make_engine
from app.database.admin_connection import reconnect_pgbouncer
from app.errors import OutcomeUnknown, SchemaChanged, TransientDatabaseError
from tests.integration.conftest import POOL_TIMEOUT
from tests.integration.database.helpers import create_tables
from tests.support.postgres import PgBouncer, as_role, connect

# psycopg prepares a statement at its sixth execution.
ENOUGH = 8


class _Base(DeclarativeBase):
    pass


class Item(_Base):
    __tablename__ = "test_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    size: Mapped[int]
    mood: Mapped[str] = mapped_column(Enum("sad", "glad", name="test_mood"))
    parts: Mapped[list["Part"]] = relationship(lazy="raise")


class Part(_Base):
    __tablename__ = "test_part"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey(Item.id))
    name: Mapped[str] = mapped_column(String(50))


VALUES = {"name": "n", "size": 1, "mood": "sad"}
COLUMNS = (Item.id, Item.name, Item.size, Item.mood)
BY_ID = select(*COLUMNS).where(Item.id == bindparam("item_id", type_=Item.id.type))
ENTITY = select(Item).where(Item.id == bindparam("item_id", type_=Item.id.type)).options(selectinload(Item.parts))
INSERT = insert(Item).values({name: bindparam(name) for name in VALUES}).returning(*COLUMNS)
# A list of values takes the ordinary path.
LISTED = select(*COLUMNS).where(Item.id.in_(bindparam("ids", expanding=True)))
OF_VIEW = text("SELECT id, name FROM test_view")


async def write(database: Database) -> None:
    async with database.write() as session:
        assert await session.get(Item, 1) is not None
        session.add(Item(**VALUES))
        await session.flush()


async def insert_first(database: Database) -> None:
    async with database.write() as session:
        session.add(Item(**VALUES))


async def read_view(database: Database) -> None:
    async with database.write() as session:
        assert (await session.execute(OF_VIEW)).first() is not None


USES: dict[str, Callable[[Database], Awaitable[Any]]] = {
    "read": lambda database: database.read.first(BY_ID, item_id=1),
    "read by the ordinary path": lambda database: database.read.all(LISTED, ids=[1, 2]),
    "entities": lambda database: database.read.entity(ENTITY, item_id=1),
    "statement": lambda database: database.statement.returned(INSERT, **VALUES),
    "write": write,
    "insert of an entity": insert_first,
    "view": read_view,
}

CHANGES = {
    "column added": "ALTER TABLE test_item ADD COLUMN extra text NOT NULL DEFAULT 'x'",
    "column dropped": "ALTER TABLE test_item DROP COLUMN unused",
    "column widened": "ALTER TABLE test_item ALTER name TYPE varchar(100)",
    "type changed": "ALTER TABLE test_item ALTER name TYPE text; ALTER TABLE test_part ALTER name TYPE text",
    "integer widened": "ALTER TABLE test_item ALTER size TYPE bigint",
    "index": "CREATE INDEX ON test_item (name)",
    "view": "BEGIN; DROP VIEW test_view; CREATE VIEW test_view AS SELECT id, 'n'::text AS name FROM test_item;"
    " GRANT SELECT ON test_view TO headroom_app; COMMIT",
    "enum value": "ALTER TYPE test_mood ADD VALUE 'mad'",
}


@pytest.fixture
def tables(database_url: URL) -> Iterator[Callable[[str], None]]:
    """Create the tables. Return a function that changes the schema."""
    create_tables(database_url, _Base.metadata)
    with connect(database_url) as admin:
        admin.execute(
            "ALTER TABLE test_item ADD COLUMN unused text;"
            "CREATE VIEW test_view AS SELECT id, 'n'::varchar(10) AS name FROM test_item;"
            "GRANT SELECT ON test_view TO headroom_app;"
            "INSERT INTO test_item (name, size, mood) VALUES ('n', 1, 'sad'), ('m', 2, 'glad');"
            "INSERT INTO test_part (item_id, name) VALUES (1, 'p')"
        )

        def change(ddl: str) -> None:
            admin.execute(ddl.encode())

        yield change


async def warm(database: Database, use: Callable[[Database], Awaitable[Any]]) -> None:
    for _ in range(ENOUGH):
        await use(database)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_prepared_statements_succeed_after_a_schema_change(
    database: Database, tables: Callable[[str], None], change: str
) -> None:
    for use in USES.values():
        await warm(database, use)

    tables(change)

    for use in USES.values():
        await warm(database, use)


@pytest.mark.parametrize("change", [CHANGES["type changed"], CHANGES["integer widened"]], ids=["type", "integer"])
async def test_schema_change_under_load_gives_only_temporary_errors(
    database_url: URL, tables: Callable[[str], None], change: str
) -> None:
    engine = make_engine(
        url=database_url,
        application_name="headroom:test",
        pool=PoolOptions(size=4, max_overflow=0, timeout=POOL_TIMEOUT),
    )
    database = Database(engine)
    stopped = asyncio.Event()
    failed: list[BaseException] = []

    async def run(use: Callable[[Database], Awaitable[Any]]) -> None:
        while not stopped.is_set():
            try:
                await use(database)
            except TransientDatabaseError as error:
                failed.append(error)

    for use in USES.values():
        await warm(database, use)
    clients = [asyncio.create_task(run(use)) for use in USES.values()]
    await asyncio.to_thread(tables, change)
    stopped.set()
    await asyncio.gather(*clients)
    for use in USES.values():
        await warm(database, use)
    await engine.dispose()

    # The answer of a write that asyncpg cannot decode: only behind PgBouncer, in a server connection that is newer than
    # the change.
    assert {type(error) for error in failed} <= {OutcomeUnknown, SchemaChanged}
    assert len(failed) <= len(USES)


async def test_stale_statement_after_another_one_is_schema_changed(
    database: Database, tables: Callable[[str], None]
) -> None:
    """The transaction has done something, so it cannot be repeated. The next one is not affected."""
    await warm(database, write)

    async def change_in_between() -> None:
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            tables(CHANGES["type changed"])
            await session.get(Item, 1)

    with pytest.raises(SchemaChanged):
        await change_in_between()

    await warm(database, write)


async def test_stale_first_statement_begins_its_transaction_again(
    database: Database, tables: Callable[[str], None]
) -> None:
    """The statement is in a transaction again: an error afterwards rolls it back."""
    await warm(database, insert_first)
    tables(CHANGES["type changed"])

    with pytest.raises(LookupError):
        async with database.write() as session:
            session.add(Item(**(VALUES | {"name": "lost"})))
            await session.flush()
            raise LookupError

    assert "lost" not in [row["name"] for row in await database.read.all(select(Item.name))]


@pytest.mark.parametrize("database_setup", ["asyncpg-pgbouncer", "psycopg-pgbouncer"])
async def test_schema_change_unseen_by_new_server_connections_is_noticed(
    database: Database, pgbouncer: PgBouncer, tables: Callable[[str], None], database_url: URL
) -> None:
    """After RECONNECT the server has no stale statement to refuse. asyncpg keeps its description of the rows.

    A read runs again. A write is committed by then, and its answer is lost.
    """
    await warm(database, USES["read"])
    await warm(database, USES["statement"])
    tables(CHANGES["integer widened"])
    console = as_role(pgbouncer.url(database_url), "headroom_console").set(database="pgbouncer")
    await reconnect_pgbouncer(console, application_name="headroom:test")

    if database.engine.dialect.driver == "asyncpg":
        written = len(await database.read.all(select(Item.id)))
        with pytest.raises(OutcomeUnknown):
            await database.statement.returned(INSERT, **VALUES)
        assert len(await database.read.all(select(Item.id))) == written + 1

    await warm(database, USES["read"])
    await warm(database, USES["statement"])


@pytest.mark.parametrize("database_setup", ["asyncpg-pgbouncer"])
@pytest.mark.parametrize("use", ["read by the ordinary path", "entities", "write"])
async def test_unreadable_row_of_the_ordinary_path_is_read_again(
    database: Database, pgbouncer: PgBouncer, tables: Callable[[str], None], database_url: URL, use: str
) -> None:
    await warm(database, USES[use])
    tables(CHANGES["integer widened"])
    console = as_role(pgbouncer.url(database_url), "headroom_console").set(database="pgbouncer")
    await reconnect_pgbouncer(console, application_name="headroom:test")

    await warm(database, USES[use])
