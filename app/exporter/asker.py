"""The exporter's own connections: one to the server, and one to PgBouncer's console. The budget counts them."""

import asyncio
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from sqlalchemy import URL

from app.database.libpq import parameters
from app.database.liveness import hang_up

# More than a scrape waits: an answer that comes late is there for the next one.
ANSWER_SECONDS = 2.0
CONNECT_SECONDS = 2  # the least that libpq takes


class Asker:
    """A connection that is kept: opened at the first question, and again when it broke. One question at a time."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._connection: psycopg.AsyncConnection[DictRow] | None = None
        self._turn = asyncio.Lock()
        self._hung = False

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """The rows. Raises psycopg.Error, also for a server that does not answer in time."""
        async with self._turn:
            if self._connection is not None:
                try:
                    return await self._rows(self._connection, query)
                except psycopg.OperationalError:
                    if self._hung or not self._connection.closed:
                        raise
                    # The server has closed it, as it does when it restarts. It may be there again.
                finally:
                    if self._connection.closed:
                        self._connection = None
            self._connection = await self._open()
            return await self._rows(self._connection, query)

    async def _rows(self, connection: psycopg.AsyncConnection[DictRow], query: str) -> list[dict[str, Any]]:
        self._hung = False

        def give_up() -> None:
            # Not by cancelling, which asks the server to cancel, and waits for that.
            self._hung = True
            hang_up(connection)

        expiry = asyncio.get_running_loop().call_later(ANSWER_SECONDS, give_up)
        try:
            cursor = await connection.execute(query.encode())
            return await cursor.fetchall()
        finally:
            expiry.cancel()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> psycopg.AsyncConnection[DictRow]:
        return await psycopg.AsyncConnection.connect(
            **parameters(self._url),
            application_name="headroom:exporter",
            connect_timeout=CONNECT_SECONDS,
            autocommit=True,
            prepare_threshold=None,  # the console knows the simple protocol only
            row_factory=dict_row,
        )
