"""One factory for every engine of the project. It takes plain values; programs read the settings."""

import asyncio
import math
import time
import traceback
from contextlib import suppress
from functools import partial
from typing import Any

from asyncpg.exceptions import TargetServerAttributeNotMatched
from sqlalchemy import URL, Connection, StaticPool, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from app.database.deadline import call_within, seconds_left
from app.database.error_mapping import server_is_leaving
from app.database.pool import BoundedPool
from app.database.pool_events import NullObserver, PoolObserver, observe_closings
from app.database.pool_options import PoolOptions
from app.database.servers import Servers
from app.errors import DatabaseUnavailable, HeadroomError

_DEFAULTS = PoolOptions()


def make_engine(
    *,
    url: URL,
    application_name: str,
    pool: PoolOptions = _DEFAULTS,
    connect_timeout: float = 5.0,
    observer: PoolObserver | None = None,
) -> AsyncEngine:
    """Return an engine for postgresql+asyncpg, postgresql+psycopg or sqlite+aiosqlite. It opens no connection yet.

    `application_name` is shown in `pg_stat_activity`; `connect_timeout` is seconds. With either PostgreSQL driver, a
    failed connect raises DatabaseUnavailable, and an exhausted pool raises PoolExhausted.
    """
    if url.get_backend_name() == "sqlite":
        return _make_sqlite_engine(url)
    observer = observer or NullObserver()
    own_arguments = _connect_args(url, application_name, connect_timeout)
    engine = create_async_engine(
        url,
        poolclass=BoundedPool,
        options=pool,
        observer=observer,
        hide_parameters=True,  # error messages would contain them, password hashes included
    )
    servers = Servers(engine.dialect, url, own_arguments)
    event.listen(engine.sync_engine, "do_connect", partial(_connect, observer, servers))
    event.listen(engine.sync_engine, "handle_error", _distrust_leaving_server)
    observe_closings(engine, observer)
    return engine


def _distrust_leaving_server(context: ExceptionContext) -> None:
    """Have the pool replace its connections if the error says that their server serves no more."""
    connection = context.connection
    if server_is_leaving(context.original_exception) and connection is not None and not connection.closed:
        pool = connection.engine.pool
        if isinstance(pool, BoundedPool) and not connection.invalidated:
            pool.distrust(connection.connection._connection_record)


async def warm_up(engine: AsyncEngine, seconds: float = 2.0) -> None:
    """Open the first connection, within `seconds`. Errors are ignored: the first request would meet them again.

    SQLAlchemy initialises its dialect with a few queries on the first connection. At full load behind a pooler, each of
    them queues, and the first request would wait for all of them.
    """
    with suppress(HeadroomError, SQLAlchemyError, TimeoutError):
        async with asyncio.timeout(seconds):
            connection = await engine.raw_connection()
            await greenlet_spawn(connection.close)


def _connect_args(url: URL, application_name: str, connect_timeout: float) -> dict[str, Any]:
    if url.get_driver_name() == "asyncpg":
        return {"server_settings": {"application_name": application_name}, "timeout": connect_timeout}
    # libpq takes whole seconds, and treats 1 as 2.
    return {"application_name": application_name, "connect_timeout": max(2, math.ceil(connect_timeout))}


def _connect(
    observer: PoolObserver,
    servers: Servers,
    dialect: Dialect,
    record: ConnectionPoolEntry,
    args: list[Any],
    kwargs: dict[str, Any],
) -> DBAPIConnection:
    started = time.monotonic()
    try:
        connection = _connect_within_deadline(dialect, servers)
    except DatabaseUnavailable:
        observer.open_failed()
        raise
    observer.opened(time.monotonic() - started)
    return connection


def _connect_within_deadline(dialect: Dialect, servers: Servers) -> DBAPIConnection:
    """Open a connection within the checkout's deadline. Every failure is a DatabaseUnavailable.

    asyncpg raises bare OSError and TimeoutError where psycopg raises its own OperationalError.
    """
    try:
        # The drivers' own timeouts do not know the deadline of the checkout.
        return call_within(seconds_left(), lambda: servers.connect(lambda arguments: dialect.connect(**arguments)))
    except TimeoutError as error:
        if error.__cause__ is not None:
            _clear_frames(error.__cause__)
        raise DatabaseUnavailable("cannot connect: the server did not answer in time") from None
    except (OSError, dialect.loaded_dbapi.Error, TargetServerAttributeNotMatched) as error:
        raise DatabaseUnavailable(f"cannot connect: {error or type(error).__name__}") from error
    except asyncio.CancelledError as error:
        _clear_frames(error)
        raise


def _clear_frames(error: BaseException) -> None:
    """Close the socket of a cancelled connect.

    psycopg keeps it in a generator that lives as long as the error's traceback, that is, until a garbage collection.
    Until then the server counts a connection that no pool counts.
    """
    traceback.clear_frames(error.__traceback__)


def _make_sqlite_engine(url: URL) -> AsyncEngine:
    in_memory = url.database in (None, "", ":memory:")
    engine = create_async_engine(url, hide_parameters=True, **({"poolclass": StaticPool} if in_memory else {}))

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # sqlite3 would begin and commit by itself, which breaks SAVEPOINT. SQLAlchemy's documentation advises this.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
