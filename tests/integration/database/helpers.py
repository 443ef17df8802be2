"""What the tests of the database package share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import URL, Float, MetaData, bindparam, create_mock_engine, func, select
from sqlalchemy.util import greenlet_spawn

from app.database import Database
from app.database.pool import BoundedPool
from app.database.pool_events import PoolState
from tests.support import contacts
from tests.support.postgres import Server, connect
from tests.support.waiting import eventually_async

PID = select(func.pg_backend_pid().label("pid"))
SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))


def pool_of(database: Database) -> BoundedPool:
    pool = database.engine.pool
    assert isinstance(pool, BoundedPool)
    return pool


def state(database: Database) -> PoolState:
    return pool_of(database).state


def change_options(database: Database, **changes: Any) -> None:
    """Change options of the pool, for example its timeout after connections were opened with a longer one."""
    pool = pool_of(database)
    pool._options = replace(pool._options, **changes)


def create_tables(url: URL, metadata: MetaData) -> None:
    """Create the tables and types as the superuser. The API's role may use them.

    The names of the tables begin with `test_`: a table of your domains may have any other name.
    """
    assert all(table.startswith("test_") for table in metadata.tables), sorted(metadata.tables)
    with connect(url) as admin:

        def execute(ddl: Any, *_: object) -> None:
            admin.execute(str(ddl.compile(dialect=engine.dialect)).encode())

        engine = create_mock_engine("postgresql+psycopg://", execute, paramstyle="numeric_dollar")
        metadata.create_all(engine, checkfirst=False)
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO headroom_app")
        admin.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO headroom_app")


@contextmanager
def template_with_contacts(server: Server, template: str) -> Iterator[str]:
    """Copy a database, and create the table of contacts in the copy. Yield the name of the copy."""
    with server.database(template=template) as url:
        create_tables(url, contacts.METADATA)
        assert url.database
        yield url.database


@asynccontextmanager
async def checked_out(database: Database) -> AsyncIterator[Any]:
    """Hold a connection of the pool while the block runs; return the driver's connection."""
    connection = await database.engine.raw_connection()
    try:
        yield connection.driver_connection
    finally:
        await greenlet_spawn(connection.close)


async def wait_until(condition: Callable[[], object], *jobs: asyncio.Future[Any]) -> None:
    """Wait until the condition is true. If one of the jobs fails before, raise its error."""

    async def check() -> object:
        return condition()

    await eventually_async(check, within=60, jobs=jobs)


def allow_long_statements(url: URL) -> None:
    """Let statements that hold a connection for a test run to its end: in production they end after 10 s."""
    with connect(url) as admin:
        admin.execute(f"ALTER ROLE {url.username} IN DATABASE {url.database} SET statement_timeout = 0".encode())
