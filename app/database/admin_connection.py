"""One administrative connection to PostgreSQL or to PgBouncer's console, for startup checks, the exporter and the CLI.

Uses psycopg whatever the URL's driver: PgBouncer's console speaks the simple query protocol only.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

import psycopg
from psycopg.rows import DictRow, dict_row
from sqlalchemy import URL

from app.database.conninfo import hosts, parameters
from app.database.liveness import SocketProbe, shut_down
from app.errors import ConfigurationError, DatabaseUnavailable, first_line
from app.polling import poll

AdminRow = Mapping[str, Any]

CONNECT_SECONDS = 3
QUERY_SECONDS = 2.0


class AdminConnection:
    """Opened by the first query, kept, and opened again after the server closed it. One query runs at a time.

    Every query is a statement of its own, in autocommit mode, with a deadline of QUERY_SECONDS.
    """

    def __init__(self, url: URL, *, application_name: str) -> None:
        self._url = url
        self._application_name = application_name
        self._connection: psycopg.AsyncConnection[DictRow] | None = None
        self._lock = asyncio.Lock()
        self._expired = False
        self._must_be_writable = parameters(url).get("target_session_attrs") in ("read-write", "primary")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def query(self, statement: str) -> list[dict[str, Any]]:
        """Run one statement and return its rows, by column name; no rows for a command.

        Raise DatabaseUnavailable if the server cannot be reached, refuses, or does not answer in time.
        """
        try:
            async with self._lock:
                rows = await self._query(statement)
                if self._is_demoted():
                    await self.close()  # the next query finds the server that has the role now
                return rows
        except (psycopg.Error, OSError) as error:
            raise DatabaseUnavailable(first_line(error)) from error

    @property
    def reported_pid(self) -> int | None:
        """Return the process id that the other end reported at sign-in; None if the connection is not open."""
        return self._connection.info.backend_pid if self._connection is not None else None

    async def close(self) -> None:
        """Close the connection, if it is open. A later query opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _is_demoted(self) -> bool:
        """Return True if the URL requires a writable server, and this one reports that it is none any more."""
        if self._connection is None or not self._must_be_writable:
            return False
        reported = map(self._connection.info.parameter_status, ("in_hot_standby", "default_transaction_read_only"))
        return "on" in reported

    async def _query(self, statement: str) -> list[dict[str, Any]]:
        # The server closes idle connections when it restarts. A statement that was sent is never sent again.
        if self._connection is not None and SocketProbe(self._connection).closed_by_server():
            await self.close()
        connection = self._connection
        if connection is None:
            connection = self._connection = await self._open()
        try:
            return await self._rows(connection, statement)
        finally:
            if connection.closed:
                self._connection = None

    async def _rows(self, connection: psycopg.AsyncConnection[DictRow], statement: str) -> list[dict[str, Any]]:
        self._expired = False

        def expire() -> None:
            # Not by cancellation: psycopg would send a cancel request and wait for it.
            self._expired = True
            shut_down(connection)

        expiry = asyncio.get_running_loop().call_later(QUERY_SECONDS, expire)
        try:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description is not None else []
        except psycopg.OperationalError as error:
            if self._expired:
                raise DatabaseUnavailable(f"no answer within {QUERY_SECONDS:g} s") from error
            raise
        finally:
            expiry.cancel()

    async def _open(self) -> psycopg.AsyncConnection[DictRow]:
        # The URL may have these two as well.
        own = {"application_name": self._application_name, "connect_timeout": CONNECT_SECONDS}
        try:
            return await psycopg.AsyncConnection.connect(
                **(parameters(self._url) | own),
                autocommit=True,
                prepare_threshold=None,  # the console speaks the simple query protocol only
                row_factory=dict_row,
            )
        except (psycopg.Error, OSError) as error:
            raise DatabaseUnavailable(f"cannot connect: {first_line(error)}") from error


async def reaches_pooler(url: URL, *, application_name: str) -> bool:
    """Return True if the URL leads to a connection pooler, such as PgBouncer. Raise DatabaseUnavailable.

    A pooler answers the sign-in itself, so the process id that it reports is not the one of the server's process.
    """
    async with AdminConnection(url, application_name=application_name) as connection:
        [row] = await connection.query("SELECT pg_backend_pid() AS pid")
        return bool(row["pid"] != connection.reported_pid)


async def refuse_pooler(url: URL, *, variable: str, application_name: str) -> None:
    """Raise ConfigurationError if the URL, which `variable` sets, leads to a connection pooler.

    The locks and the limits of a migration need a session. Raise DatabaseUnavailable.
    """
    if await reaches_pooler(url, application_name=application_name):
        raise ConfigurationError(
            f"{variable}: {url.host}:{url.port or 5432} is a connection pooler, and migrations need a session of "
            "PostgreSQL; set MIGRATION_DATABASE_URL to the address of PostgreSQL itself"
        )


async def require_owner(url: URL, *, variable: str, application_name: str) -> None:
    """Raise ConfigurationError if the role of the URL, which `variable` sets, may not create tables.

    Raise DatabaseUnavailable.
    """
    query = (
        "SELECT current_user AS role, current_schema() AS schema,"
        " has_schema_privilege(current_schema(), 'CREATE') AS may_create"
    )
    async with AdminConnection(url, application_name=application_name) as connection:
        [row] = await connection.query(query)
    if row["may_create"] is False:
        raise ConfigurationError(
            f"{variable}: the role {row['role']} may not create tables in the schema {row['schema']}; set"
            " MIGRATION_DATABASE_URL to the role that owns the tables: headroom_owner of ops/postgres/roles.sql"
        )


async def wait_until_available(url: URL, *, deadline: float, application_name: str) -> None:
    """Wait until the server answers a query. At `deadline`, raise DatabaseUnavailable with the last reason.

    The deadline is on the clock of time.monotonic().
    """

    async def attempt() -> DatabaseUnavailable | None:
        async with AdminConnection(url, application_name=application_name) as connection:
            try:
                await connection.query("SELECT 1 AS one")
            except DatabaseUnavailable as error:
                return error
        return None

    error = await poll(attempt, until=lambda error: error is None, deadline=deadline)
    if error is not None:
        raise error


async def reconnect_pgbouncer(console: URL, *, application_name: str) -> None:
    """Have each PgBouncer of the URL replace its server connections, each when its transaction ends.

    Raise DatabaseUnavailable if one cannot be reached, or refuses because the user is none of its `admin_users`.
    """
    for url in hosts(console):
        async with AdminConnection(url, application_name=application_name) as connection:
            await connection.query("RECONNECT")
