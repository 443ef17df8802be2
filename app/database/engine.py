"""One factory for every engine of the project. It takes plain values; programs read the settings."""

import asyncio
import math
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from asyncpg import InterfaceError, PostgresError
from asyncpg.exceptions import TargetServerAttributeNotMatched
from sqlalchemy import URL, Connection, Engine, StaticPool, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from app.database._sqlalchemy import entry_of
from app.database.answers import CancellableConnection, bound_answers
from app.database.deadline import AnswerLimit, call_within, seconds_left
from app.database.error_mapping import server_is_leaving
from app.database.liveness import shut_down, socket_of
from app.database.pool import BoundedPool
from app.database.pool_events import NullObserver, PoolObserver, observe_closings
from app.database.servers import Servers
from app.errors import DatabaseUnavailable, HeadroomError, first_line
from app.pool_options import PoolOptions

_DEFAULTS = PoolOptions()
# Added to the server's statement_timeout: the server cancels a statement first, unless it cannot answer.
STATEMENT_MARGIN_SECONDS = 2.0
# A peer that acknowledges nothing for this time is gone, whether or not data was sent.
TCP_USER_TIMEOUT_SECONDS = 10
KEEPALIVE_IDLE_SECONDS = 30
KEEPALIVE_INTERVAL_SECONDS = 5
KEEPALIVE_COUNT = 2

# Behind a name that stands for several servers: connects until the one that is wanted must have answered.
MAX_CONNECTS = 8

_STATEMENT_TIMEOUT = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"  # milliseconds


class OtherServer(DatabaseUnavailable):
    """The connection leads to another server than the one that is wanted. The next one may not."""


# Raises DatabaseUnavailable or OtherServer for a new connection that must not be used. Takes the driver's connection.
Admit = Callable[[Any], None]


def make_engine(
    *,
    url: URL,
    application_name: str,
    pool: PoolOptions = _DEFAULTS,
    connect_timeout: float = 5.0,
    observer: PoolObserver | None = None,
    admit: Admit | None = None,
) -> AsyncEngine:
    """Return an engine for postgresql+asyncpg, postgresql+psycopg or sqlite+aiosqlite. It opens no connection yet.

    `application_name` is shown in `pg_stat_activity`; `connect_timeout` is seconds. With either PostgreSQL driver, a
    failed connect raises DatabaseUnavailable, and an exhausted pool raises PoolExhausted. `admit` is called for each
    new connection, in a greenlet of SQLAlchemy's, and may refuse it.
    """
    if url.get_backend_name() == "sqlite":
        return _make_sqlite_engine(url)
    observer = observer or NullObserver()
    limit = AnswerLimit() if pool.statement_deadline is None else AnswerLimit(pool.statement_deadline)
    engine = create_async_engine(
        url,
        poolclass=BoundedPool,
        options=pool,
        observer=observer,
        answer_limit=limit,
        hide_parameters=True,  # error messages would contain them, with the data of clients
        _initialize=False,  # SQLAlchemy would do it under a lock, which a silent connection never releases: _Opener
    )
    servers = Servers(engine.dialect, url, _connect_args(url, application_name, connect_timeout))
    opener = _Opener(url, servers, observer, limit, admit, limit_is_from_server=pool.statement_deadline is None)
    event.listen(engine.sync_engine, "do_connect", opener)
    event.listen(engine.sync_engine, "handle_error", _distrust_leaving_server)
    bound_answers(engine)
    observe_closings(engine, observer)
    return engine


def _distrust_leaving_server(context: ExceptionContext) -> None:
    """Have the pool replace its connections if the error says that their server serves no more."""
    connection = context.connection
    if server_is_leaving(context.original_exception) and connection is not None and not connection.closed:
        pool = connection.engine.pool
        if isinstance(pool, BoundedPool) and not connection.invalidated:
            pool.distrust(entry_of(connection.connection))


async def warm_up(engine: AsyncEngine, seconds: float = 2.0) -> None:
    """Open the first connection, within `seconds`. Errors are ignored: the first request would raise them again.

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
    options = {
        "application_name": application_name,
        # libpq takes whole seconds, and treats 1 as 2.
        "connect_timeout": max(2, math.ceil(connect_timeout)),
        "keepalives_idle": KEEPALIVE_IDLE_SECONDS,
        "keepalives_interval": KEEPALIVE_INTERVAL_SECONDS,
        "keepalives_count": KEEPALIVE_COUNT,
        "tcp_user_timeout": TCP_USER_TIMEOUT_SECONDS * 1000,
    }
    own = {name: value for name, value in options.items() if name not in url.query or name == "application_name"}
    return own | {"async_creator_fn": CancellableConnection.connect}


class _Opener:
    """Opens the connections of an engine, each within the deadline of its checkout, and prepares them for SQLAlchemy.

    What SQLAlchemy does when a connection is open (type codecs, and a few queries on the first one) is done here, for
    each connection on its own: several may be the first one.
    """

    def __init__(
        self,
        url: URL,
        servers: Servers,
        observer: PoolObserver,
        limit: AnswerLimit,
        admit: Admit | None,
        *,
        limit_is_from_server: bool,
    ) -> None:
        self._url = url
        self._servers = servers
        self._observer = observer
        self._limit = limit
        self._admit = admit
        self._limit_is_from_server = limit_is_from_server
        self._is_initialised = False

    def __call__(
        self, dialect: Dialect, record: ConnectionPoolEntry, args: list[Any], kwargs: dict[str, Any]
    ) -> DBAPIConnection:
        """Open a connection. Raise DatabaseUnavailable for every failure of the network or the server."""
        started = time.monotonic()
        try:
            connection = self._open_within_deadline(dialect)
        except DatabaseUnavailable:
            self._observer.open_failed()
            raise
        self._observer.opened(time.monotonic() - started)
        return connection

    def _open_within_deadline(self, dialect: Dialect) -> DBAPIConnection:
        # asyncpg raises bare OSError and TimeoutError where psycopg raises its own OperationalError.
        try:
            # The drivers' own timeouts do not know the deadline of the checkout.
            return call_within(seconds_left(), lambda: self._servers.connect(partial(self._open_admitted, dialect)))
        except TimeoutError as error:
            if error.__cause__ is not None:
                _clear_frames(error.__cause__)
            raise DatabaseUnavailable("cannot connect: the server did not answer in time") from None
        except (
            OSError,
            dialect.loaded_dbapi.Error,
            PostgresError,
            InterfaceError,
            TargetServerAttributeNotMatched,
            SQLAlchemyError,
        ) as error:
            raise DatabaseUnavailable(f"cannot connect: {first_line(error)}") from error
        except asyncio.CancelledError as error:
            _clear_frames(error)
            raise

    def _open_admitted(self, dialect: Dialect, arguments: dict[str, Any]) -> DBAPIConnection:
        for _ in range(MAX_CONNECTS - 1):
            with suppress(OtherServer):
                return self._open(dialect, arguments)
        return self._open(dialect, arguments)

    def _open(self, dialect: Dialect, arguments: dict[str, Any]) -> DBAPIConnection:
        connection = dialect.connect(**arguments)
        try:
            if dialect.driver == "asyncpg":
                _set_tcp_timeouts(dialect.get_driver_connection(connection))
            if (on_connect := dialect.on_connect_url(self._url)) is not None:
                on_connect(connection)
            if not self._is_initialised:
                self._initialise(dialect, connection)
                self._is_initialised = True
            if self._admit is not None:
                self._admit(dialect.get_driver_connection(connection))
        except BaseException:
            shut_down(dialect.get_driver_connection(connection))
            with suppress(Exception):
                dialect.do_terminate(connection)
            raise
        return connection

    def _initialise(self, dialect: Dialect, dbapi_connection: DBAPIConnection) -> None:
        """Let SQLAlchemy's dialect learn about the server, and learn its statement_timeout."""
        pool = StaticPool(lambda: dbapi_connection, dialect=dialect)
        with Engine(pool, dialect, self._url).connect() as connection:
            dialect.initialize(connection)
            if self._limit_is_from_server:
                milliseconds = connection.exec_driver_sql(_STATEMENT_TIMEOUT).scalar_one()
                self._limit.seconds = milliseconds / 1000 + STATEMENT_MARGIN_SECONDS if milliseconds else math.inf


def _set_tcp_timeouts(connection: Any) -> None:
    """Set what libpq's connection parameters set, on a connection of asyncpg's."""
    sock = socket_of(connection)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", TCP_USER_TIMEOUT_SECONDS * 1000),
    ):
        if (option := getattr(socket, name, None)) is not None:  # macOS does not have all of them
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


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
        # SQLAlchemy emits the event in this mode too, in which each statement must be a transaction of its own.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN")

    return engine
