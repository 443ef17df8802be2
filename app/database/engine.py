"""One factory for every engine of the project. Takes plain values; reading settings is the programs' business."""

import asyncio
import math
import time
import traceback
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, StaticPool, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from app.database.meter import NoMeter, PoolMeter
from app.database.pool import HeadroomPool, report_endings, seconds_left, within
from app.errors import DatabaseUnavailable, HeadroomError


def make_engine(
    *,
    url: URL,
    application_name: str,
    pool_size: int = 5,
    max_overflow: int = 10,
    pool_timeout: float = 3.0,
    pool_max_waiters: int = 100,
    pool_recycle: int = 3600,
    pool_ping_after: float | None = 0.5,
    pool_shrink_after: float = 10.0,
    one_per_task: bool = False,
    connect_timeout: float = 5.0,
    meter: PoolMeter | None = None,
) -> AsyncEngine:
    """An engine for postgresql+asyncpg, postgresql+psycopg or sqlite+aiosqlite. It opens no connection yet.

    What the arguments of the pool mean, HeadroomPool says; times are seconds. `application_name` is what a person reads
    in `pg_stat_activity`. A connection that cannot be opened raises DatabaseUnavailable, whichever the driver; a pool
    with no connection to give raises PoolExhausted. The `meter` hears of all that.
    """
    if url.get_backend_name() == "sqlite":
        return _make_sqlite_engine(url)
    meter = meter or NoMeter()
    engine = create_async_engine(
        url,
        poolclass=HeadroomPool,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=pool_timeout,
        max_waiters=pool_max_waiters,
        pool_recycle=pool_recycle,
        ping_after=pool_ping_after,
        shrink_after=pool_shrink_after,
        one_per_task=one_per_task,
        meter=meter,
        hide_parameters=True,  # they are in the text of every error, and passwords' hashes are among them
        connect_args=_connect_args(url, application_name, connect_timeout),
    )
    event.listen(engine.sync_engine, "do_connect", partial(_connect, meter))
    report_endings(engine, meter)
    return engine


async def warm_up(engine: AsyncEngine, seconds: float = 2.0) -> None:
    """Open the first connection, before anybody needs one; in no more than `seconds`, and an error is no matter.

    With its first connection SQLAlchemy asks the server a few things, one after the other. At full load behind a pooler
    each of them waits in the pooler's queue, and the request that happened to come first waits for them all.
    """
    with suppress(HeadroomError, SQLAlchemyError, TimeoutError):
        async with asyncio.timeout(seconds):
            connection = await engine.raw_connection()
            await greenlet_spawn(connection.close)


def _connect_args(url: URL, application_name: str, connect_timeout: float) -> dict[str, Any]:
    if url.get_driver_name() == "asyncpg":
        return {"server_settings": {"application_name": application_name}, "timeout": connect_timeout}
    # libpq takes whole seconds, and reads 1 as 2.
    return {"application_name": application_name, "connect_timeout": max(2, math.ceil(connect_timeout))}


def _connect(
    meter: PoolMeter, dialect: Dialect, record: ConnectionPoolEntry, args: list[Any], kwargs: dict[str, Any]
) -> DBAPIConnection:
    started = time.monotonic()
    try:
        connection = _bounded_connect(dialect, args, kwargs)
    except DatabaseUnavailable:
        meter.not_opened()
        raise
    meter.opened(time.monotonic() - started)
    return connection


def _bounded_connect(dialect: Dialect, args: list[Any], kwargs: dict[str, Any]) -> DBAPIConnection:
    """Open a connection; every way to fail becomes DatabaseUnavailable.

    asyncpg lets OSError and TimeoutError through as they are, where psycopg raises its own OperationalError.
    """
    try:
        # asyncpg and libpq have a timeout of their own, which knows nothing of the checkout's deadline.
        return within(seconds_left(), lambda: dialect.connect(*args, **kwargs))
    except TimeoutError as error:
        if error.__cause__ is not None:
            _let_go(error.__cause__)
        raise DatabaseUnavailable("cannot connect: no answer in time") from None
    except (OSError, dialect.loaded_dbapi.Error) as error:
        raise DatabaseUnavailable(f"cannot connect: {error or type(error).__name__}") from error
    except asyncio.CancelledError as error:
        _let_go(error)
        raise


def _let_go(error: BaseException) -> None:
    """Close what a connect that was cancelled had opened.

    psycopg has it in a generator, which lives as long as the error's traceback does: until the garbage collector finds
    it. Meanwhile the server counts a connection that no pool knows of.
    """
    traceback.clear_frames(error.__traceback__)


def _make_sqlite_engine(url: URL) -> AsyncEngine:
    in_memory = url.database in (None, "", ":memory:")
    engine = create_async_engine(url, hide_parameters=True, **({"poolclass": StaticPool} if in_memory else {}))

    @event.listens_for(engine.sync_engine, "connect")
    def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        # sqlite3 would begin and commit by itself, which breaks SAVEPOINT: we do it, as SQLAlchemy's docs advise.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
