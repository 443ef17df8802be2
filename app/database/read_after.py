"""Read-your-writes: how far a server must have replayed the primary's log (WAL) to serve the reads of a request.

A position is a number: the timeline of the log times 2^64, and the LSN in bytes. A promoted standby begins the next
timeline, which has everything of the one before that was not lost. So positions can be compared, also after a failover.
The web layer carries positions from one request of a client to the next. Without a standby, nothing here is used.
"""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from app.database.answers import expected_answer, rolled_back
from app.database.liveness import shut_down

logger = logging.getLogger(__name__)

# Of a write whose position could not be queried, or whose outcome is unknown: no server has replayed this.
UNKNOWN_POSITION = (1 << 96) - 1


def columns_of(lsn: str) -> tuple[str, str]:
    """Return two SQL expressions for the timeline and the LSN of the primary: the arguments of `position()`."""
    # Only the name of a file of the log has the timeline that the primary writes now.
    return f"('x' || left(pg_walfile_name({lsn}), 8))::bit(32)::bigint", f"({lsn} - '0/0')::bigint"


def position(timeline: int, lsn: int) -> int:
    """Return the position of an LSN on a timeline."""
    return (timeline << 64) | lsn


# The insert position, not the flush position: with synchronous_commit=off, a commit is answered before it is flushed.
_COMMITTED = f"SELECT {', '.join(columns_of('pg_current_wal_insert_lsn()'))}"


class ReadAfter:
    """What the reads of a request must see.

    `position` is the position that their server must have replayed. `written` is that of the last write of the request;
    0 if it has written nothing.
    """

    __slots__ = ("position", "written")

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.written = 0


# None outside a request, before the first write.
read_after: ContextVar[ReadAfter | None] = ContextVar("read after", default=None)


def note_written(written: int) -> None:
    """Note a write at this position, for the later reads of this request or task."""
    current = read_after.get()
    if current is None:
        read_after.set(current := ReadAfter())
    current.written = max(current.written, written)
    current.position = max(current.position, written)


async def note_commit(connection: Any) -> None:
    """Note the position of a transaction that the driver's connection has just committed. Takes one round trip."""
    committed = UNKNOWN_POSITION
    try:
        committed = position(*await fetch_row(connection, _COMMITTED))
    except Exception as error:  # noqa: BLE001 - the transaction is committed all the same
        logger.warning("cannot query the position of a commit, so the client's next reads use the primary: %s", error)
    finally:
        note_written(committed)


def note_commits(engine: AsyncEngine) -> None:
    """Note the position of every transaction that the engine's connections commit."""
    dialect: Any = engine.dialect
    dialect.do_commit = _noting_position(dialect.do_commit)


def _noting_position(commit: Callable[[Any], None]) -> Callable[[Any], None]:
    def noting(connection: Any) -> None:
        try:
            commit(connection)
        except BaseException as error:
            if not rolled_back(error):
                note_written(UNKNOWN_POSITION)
            raise
        with expected_answer(connection):
            await_only(note_commit(connection.driver_connection))

    return noting


async def fetch_row(connection: Any, sql: str) -> Any:
    """Run a query without parameters on a driver's connection, outside a transaction, and return its first row."""
    if not isinstance(connection, psycopg.AsyncConnection):
        return await connection.fetchrow(sql)
    if connection.autocommit:
        return await (await connection.execute(sql.encode())).fetchone()
    await connection.set_autocommit(True)  # takes no round trip
    try:
        return await (await connection.execute(sql.encode())).fetchone()
    finally:
        try:
            await connection.set_autocommit(False)
        except psycopg.Error:
            # The query has not ended, or the connection is lost. In autocommit mode, nothing could be rolled back.
            shut_down(connection)
