"""Runs a migration next to a live system: one job at a time, short waits for locks, retries, and clear failures.

See docs/decisions/0011-migration-lock.md and docs/decisions/0024-migrations-under-load.md.
"""

import asyncio
import logging
import random
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from zlib import crc32

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.errors import MigrationFailed, MigrationLockTimeout, first_line
from app.polling import poll

logger = logging.getLogger("headroom.migrations")

LOCK = crc32(b"headroom migrations")
LOCK_POLL_SECONDS = 0.2
# How often the job queries which processes block it, and proves that it still has the connection of the lock.
WATCH_SECONDS = 0.2
# After this time without an answer, the connection of the lock counts as lost.
WATCH_ANSWER_SECONDS = 5.0
WATCH_EXTRA_SECONDS = 0.5
# After a loss, the migration's own connection gets this time to roll back.
ABORT_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
STATEMENT_CHARACTERS = 200
# The server ends the backend of a job that was killed, or whose network is cut, and releases its locks.
NOTHING_STAYS_BEHIND = {
    "client_connection_check_interval": "500ms",  # also while a statement runs
    "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "2s",
    "idle_in_transaction_session_timeout": "60s",
}
_RETRIED = {
    "55P03",  # lock_not_available: lock_timeout
    "40P01",  # deadlock_detected
}
_TRANSACTION_TIMEOUT_SINCE = (17,)
_BLOCKERS = text("""
    SELECT a.pid, a.application_name, a.usename, a.backend_type, a.state, a.query,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float AS seconds, a.xact_start
    FROM unnest(pg_blocking_pids(CAST(:pid AS integer))) AS blocking(pid) JOIN pg_stat_activity AS a USING (pid)
""")
_TRANSACTIONS = text("SELECT pid, xact_start FROM pg_stat_activity WHERE pid = ANY(CAST(:pids AS integer[]))")


class Limits(NamedTuple):
    """Seconds: of a wait for a lock, of all attempts together, and of a statement or a revision (0: no limit)."""

    lock: float
    retry: float
    revision: float


class Blocker(NamedTuple):
    """A process that holds a lock which the migration waits for. The server hides None from our role."""

    pid: int
    application: str | None
    role: str | None
    backend: str | None
    state: str | None
    query: str | None
    seconds: float | None
    started: datetime | None

    def __str__(self) -> str:
        name = self.application or self.backend or "no application_name"
        if self.seconds is None:
            details = "details are hidden: grant pg_read_all_stats to the role of the migrations"
        else:
            details = (
                f"{self.state or 'active'}, transaction open for {self.seconds:.1f} s: {shortened(self.query or '')}"
            )
        return f"pid {self.pid} ({name}, role {self.role or 'none'}, {details})"


async def acquire_lock(connection: AsyncConnection, seconds: float) -> None:
    """Wait until no other job migrates this database. The lock is held until the connection closes.

    Polls in autocommit mode on a connection of its own. `pg_advisory_lock` would wait inside a statement, and its
    snapshot would block the other job's CREATE INDEX CONCURRENTLY: both would hang.
    Raise MigrationLockTimeout after `seconds`.
    """
    attempts = 0

    async def attempt() -> bool:
        nonlocal attempts
        acquired = bool(await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}))
        attempts += 1
        if not acquired and attempts == 1:
            logger.info("waiting for another migration job")
        return acquired

    if not await poll(attempt, until=bool, deadline=monotonic() + seconds, every=LOCK_POLL_SECONDS):
        raise MigrationLockTimeout(f"another migration job has held the lock for more than {seconds:g} s")


async def configure_session(connection: AsyncConnection, limits: Limits | None = None) -> int:
    """Set the limits of a connection, and return the process id of its backend. Commits."""
    values = dict(NOTHING_STAYS_BEHIND)
    if limits is not None:
        values["lock_timeout"] = _milliseconds(limits.lock)
        values["statement_timeout"] = _milliseconds(limits.revision)
        if (connection.dialect.server_version_info or ()) >= _TRANSACTION_TIMEOUT_SINCE:
            # Longer, because the server would ignore a statement_timeout that is not shorter.
            values["transaction_timeout"] = _milliseconds(limits.revision and limits.revision + 1)
    for name, value in values.items():
        await connection.execute(text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
    pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    await connection.commit()
    return int(pid or 0)


def _milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


class Runner:
    """Runs the revisions on one connection, while another one holds the lock of the job and watches."""

    def __init__(self, engine: AsyncEngine, lock: AsyncConnection, limits: Limits) -> None:
        self._engine = engine
        self._lock = lock
        self._limits = limits
        self._blockers: list[Blocker] = []

    async def run(
        self, migrate: Callable[[Connection], None], *, may_repeat: Callable[[], bool] = lambda: True
    ) -> None:
        """Call `migrate` until it gets its locks, and while it may be repeated. Raise MigrationFailed.

        A revision that does not get a lock is rolled back: the statements that queued behind it continue. The next
        attempt waits until the transactions that blocked it have ended: each attempt delays the other clients of the
        table. The pauses double, and are random so that two systems do not meet again and again. Each revision has the
        whole time for its attempts: the ones before it may have taken long, such as a back-fill.
        """
        deadline = monotonic() + self._limits.retry
        attempt = 1
        waiting: str | None = None
        while True:
            self._blockers = []
            try:
                await self._watched(migrate)
            except SQLAlchemyError as error:
                if sqlstate(error) not in _RETRIED:
                    raise MigrationFailed(description(error)) from error
                revision, _ = _source(error)
                if revision is not None and revision != waiting:
                    waiting, attempt = revision, 1
                    deadline = monotonic() - self._limits.lock + self._limits.retry  # since the wait began
                left = deadline - monotonic()
                if not may_repeat():
                    raise MigrationFailed(
                        f"{description(error)}\nnot tried again: the target is relative, and would count from the "
                        "revision that was just reached; name a revision to run the rest"
                    ) from error
                if left <= 0:
                    raise MigrationFailed(self._gave_up(error, attempt)) from error
                pause = min(pause_seconds(attempt), left)
                logger.warning(
                    "attempt %d: %s; blocked by %s; next attempt when that has ended, in %.1f s at the earliest and in "
                    "%.0f s at the latest",
                    attempt,
                    description(error).replace("\n", "; "),
                    self._blocked_by(),
                    pause,
                    left,
                )
                await asyncio.sleep(pause)
                try:
                    await self._wait_for_blockers(deadline)
                except SQLAlchemyError as lost:
                    raise _lock_was_lost(lost) from lost
                attempt += 1
            else:
                return

    async def _wait_for_blockers(self, deadline: float) -> None:
        """Wait until the transactions have ended that blocked the last attempt, at most until `deadline`."""
        blocking = {(each.pid, each.started) for each in self._blockers if each.started is not None}
        while blocking:
            parameters = {"pids": [pid for pid, _ in blocking]}
            blocking &= {(pid, started) for pid, started in await self._query(_TRANSACTIONS, parameters)}
            seconds = min(WATCH_SECONDS, deadline - monotonic())
            if not blocking or seconds <= 0:
                return
            await asyncio.sleep(seconds)

    def _blocked_by(self) -> str:
        return "; ".join(map(str, self._blockers)) or "a process that the server did not name in time"

    def _gave_up(self, error: SQLAlchemyError, attempts: int) -> str:
        lines = [
            description(error),
            f"blocked by: {self._blocked_by()}",
            f"gave up after {attempts} attempts in {self._limits.retry:g} s (MIGRATION_RETRY_TIMEOUT): run the "
            "migration again later, or end the blocking transaction",
        ]
        if self._blockers:
            lines[-1] += f" (SELECT pg_terminate_backend({self._blockers[0].pid}))"
        return "\n".join(lines)

    async def _watched(self, migrate: Callable[[Connection], None]) -> None:
        """Call `migrate`; abort it if the connection of the lock is lost, because another job could start."""
        async with self._engine.connect() as connection:
            pid = await configure_session(connection, self._limits)
            finished = asyncio.Event()
            watch = asyncio.create_task(self._watch(pid, finished), name="watch the migration")
            work = asyncio.create_task(connection.run_sync(migrate), name="migrate")
            try:
                await asyncio.wait((watch, work), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    reason = watch.exception()
                    raise _lock_was_lost(reason) from reason
            finally:
                finished.set()
                work.cancel()  # does nothing if it is done
                # Not `await work`: a connection that does not answer must not keep the job.
                await asyncio.wait((work, watch), timeout=ABORT_SECONDS)
            await work

    async def _watch(self, pid: int, finished: asyncio.Event) -> None:
        while not finished.is_set():
            if rows := await self._query(_BLOCKERS, {"pid": pid}):
                self._blockers = [Blocker(*row) for row in rows]
            with suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), WATCH_SECONDS)

    async def _query(self, statement: TextClause, parameters: dict[str, Any]) -> Sequence[Any]:
        """Return the rows of a query on the connection of the lock. Raise MigrationFailed without an answer in time."""
        query = asyncio.create_task(self._lock.execute(statement, parameters), name="query the connection of the lock")
        # If a revision blocks the event loop, the deadline passes before the answer is read: it gets more time.
        for seconds in (WATCH_ANSWER_SECONDS, WATCH_EXTRA_SECONDS):
            await asyncio.wait((query,), timeout=seconds)
        if not query.done():
            query.cancel()
            raise MigrationFailed(f"the server did not answer within {WATCH_ANSWER_SECONDS:g} s")
        return query.result().all()


def _lock_was_lost(reason: BaseException | None) -> MigrationFailed:
    return MigrationFailed(
        "the connection that holds the lock of the migration job was lost: "
        f"{first_line(reason) if reason else 'closed'}; applied revisions stay applied"
    )


def pause_seconds(attempt: int) -> float:
    """Return the random pause after an attempt. The first attempt is 1."""
    longest = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
    return float(longest * random.uniform(0.5, 1.5))  # noqa: S311 - not for cryptography


def sqlstate(error: SQLAlchemyError) -> str | None:
    """Return the server's code for the error; None if it is not from the server."""
    if not isinstance(error, DBAPIError):
        return None
    try:
        return getattr(error.driver_exception, "sqlstate", None)
    except ValueError:  # raised by SQLAlchemy's dialect itself, without an error of the driver
        return None


def description(error: SQLAlchemyError, place: str | None = None) -> str:
    """Return a few lines about the error: the place, the server's message, and the statement.

    The default place is the revision in which it was raised, with file and line.
    """
    while isinstance(error, PendingRollbackError) and isinstance(error.__context__, SQLAlchemyError):
        error = error.__context__  # the reason: Alembic could not even roll back
    cause = error.orig if isinstance(error, DBAPIError) else error
    message = (str(cause) or type(cause).__name__).splitlines()[0]
    # asyncpg's messages start with the class of the error, as SQLAlchemy's dialect renders them.
    message = message.rpartition(">: ")[2]
    if "cannot switch to state" in message:  # asyncpg, if a statement begins while the server ends the connection
        message = "the server ended the connection (its log says why; one reason is its transaction_timeout)"
    lines = [f"{place or _place(error)}: {message}"]
    if isinstance(error, DBAPIError) and error.statement:
        lines.append(f"statement: {shortened(error.statement)}")
    return "\n".join(lines)


def shortened(statement: str) -> str:
    """Return a statement in one line of at most STATEMENT_CHARACTERS."""
    line = " ".join(statement.split())
    return line if len(line) <= STATEMENT_CHARACTERS else line[: STATEMENT_CHARACTERS - 3] + "..."


def _place(error: BaseException) -> str:
    """Return the revision in which the error was raised, with file and line."""
    revision, position = _source(error)
    return "migration" if revision is None else f"revision {revision} ({position})"


def _source(error: BaseException) -> tuple[str | None, str]:
    """Return the revision in which the error was raised, with file and line; None if it was not raised in one."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if "down_revision" in frame.f_globals and "revision" in frame.f_globals:
            return str(frame.f_globals["revision"]), f"{Path(frame.f_code.co_filename).name}, line {line}"
    return None, ""
