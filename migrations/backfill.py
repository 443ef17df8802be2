"""Changes the rows of a large table in small batches, next to a live system.

A revision declares its back-fill in a variable `backfill`, and runs what is left of it. `headroom backfill NAME`
runs it before the migration, for as long as it takes. See docs/expand-and-contract.md and
docs/decisions/0026-expand-and-contract.md.
"""

import asyncio
import logging
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

from alembic import op
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.database.schema_version import BACKFILLS_TABLE
from app.errors import MigrationFailed, first_line
from app.observability.catalogue import PGBOUNCER_CLIENTS, POOL_PENDING_REQUESTS
from app.settings import Settings, load_settings
from migrations.runner import description, pause_seconds, sqlstate

logger = logging.getLogger("headroom.backfill")

FIRST_ROWS = 100
# The number of rows follows the time of a batch: a batch holds its row locks, and delays others, for about this time.
BATCH_SECONDS = 0.25
# The pause between two batches is as long as the batch was, up to this time.
LONGEST_PAUSE_SECONDS = 1.0
# How often the lag of the standbys and the queue of the pools are queried.
CHECK_SECONDS = 1.0
# While requests wait for a connection, one batch goes on after this time: a busy system must not stop it for ever.
QUEUE_PAUSE_SECONDS = 10.0
LAG_BYTES = 64 * 1024 * 1024
PROGRESS_SECONDS = 10.0
LOCK_POLL_SECONDS = 1.0
EXPORTER_SECONDS = 2.0
# Passes over the table. Rows that still match after the last one are written by code that does not fill the column.
PASSES = 3
_RETRIED = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available: lock_timeout
}
_CREATE = text(f"""
    CREATE TABLE IF NOT EXISTS {BACKFILLS_TABLE} (
        name text CONSTRAINT pk_{BACKFILLS_TABLE} PRIMARY KEY,
        position text,
        rows_read bigint NOT NULL DEFAULT 0,
        rows_changed bigint NOT NULL DEFAULT 0,
        started_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz
    )
""")
_KEY = text("""
    SELECT quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), c.reltuples::bigint
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indrelid
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = to_regclass(:table) AND i.indisprimary AND i.indnkeyatts = 1
""")
_LAG = text("""
    SELECT coalesce(max(extract(epoch FROM replay_lag)), 0)::float8,
           coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::float8
    FROM pg_stat_replication WHERE state IN ('streaming', 'catchup')
""")

T = TypeVar("T")


@dataclass(frozen=True)
class Backfill:
    """A change of all rows of a table that match a condition, in SQL. `name` is for the command and for the progress.

    A changed row must not match `where` any more. The table has a primary key of one column. A batch has at most `rows`
    rows.
    """

    name: str
    table: str
    set: str
    where: str
    rows: int = 1_000

    @property
    def statement(self) -> str:
        """Return the statement that changes all rows at once, for a script."""
        return f"UPDATE {self.table} SET {self.set} WHERE {self.where}"


class Progress(NamedTuple):
    """The row of a back-fill in the table `schema_backfills`. `position` is the last key that was read, as text."""

    position: str | None
    rows_read: int
    rows_changed: int
    is_finished: bool


class Throttle(NamedTuple):
    """What slows a back-fill down.

    It stops while a standby is more than `lag_seconds` or LAG_BYTES behind; 0 turns that off. It slows down while
    requests wait for a connection, which the exporter at `exporter_url` says; None turns that off.
    """

    lag_seconds: float = 10.0
    exporter_url: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Throttle":
        """Return the limits of the settings."""
        return cls(settings.backfill_max_lag, settings.exporter_url)


def run_in_revision(backfill: Backfill) -> None:
    """Run the rest of a back-fill in `upgrade()`. The revision should do nothing else, because it can be interrupted.

    A script (--sql) gets one statement instead.
    """
    if op.get_context().as_sql:
        op.execute(text(_literal(backfill.statement)))
        return
    settings = load_settings()
    with op.get_context().autocommit_block():
        run(op.get_bind(), backfill, throttle=Throttle.of(settings), retry_seconds=settings.migration_retry_timeout)


def run(connection: Connection, backfill: Backfill, *, throttle: Throttle, retry_seconds: float) -> Progress:
    """Run a back-fill to its end, from where it was interrupted. Return the progress.

    The connection is one of an async engine, in autocommit mode, has a `lock_timeout`, and does not go through a
    pooler. If another process runs the back-fill, wait until that one has ended. A batch that does not get a lock is
    tried again for `retry_seconds`; then the driver's error is raised. Raise MigrationFailed if rows match again and
    again.
    """
    return _Run(connection, backfill, throttle, retry_seconds).run()


def progress(connection: Connection, name: str) -> Progress | None:
    """Return the progress of a back-fill; None if it was never started."""
    if connection.scalar(text(f"SELECT to_regclass('{BACKFILLS_TABLE}')")) is None:
        return None
    row = connection.execute(
        text(
            "SELECT position, rows_read, rows_changed, finished_at IS NOT NULL"
            f" FROM {BACKFILLS_TABLE} WHERE name = :name"
        ),
        {"name": name},
    ).one_or_none()
    return None if row is None else Progress(*row)


def pending_requests(url: str) -> float:
    """Return how many requests wait for a connection, in the pools and in PgBouncer, as the exporter at `url` says.

    Raise OSError if it does not answer, or stops within its answer.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/metrics", timeout=EXPORTER_SECONDS) as response:  # noqa: S310
            exposition = response.read().decode()
    except HTTPException as error:
        raise OSError(f"the answer is not complete: {error!r}") from error
    return sum(
        sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == POOL_PENDING_REQUESTS.name
        or (sample.name == PGBOUNCER_CLIENTS.name and sample.labels["state"] == "waiting")
    )


class _Run:
    """A run of a back-fill, by one process."""

    def __init__(self, connection: Connection, backfill: Backfill, throttle: Throttle, retry_seconds: float) -> None:
        self._connection = connection
        self._backfill = backfill
        self._throttle = throttle
        self._retry_seconds = retry_seconds
        self._rows = min(FIRST_ROWS, backfill.rows)
        self._next_check = self._next_report = monotonic()
        self._exporter_answers = True
        key = self._execute(_KEY, table=backfill.table).one_or_none()
        if key is None:
            raise MigrationFailed(f"back-fill {backfill.name}: {backfill.table} has no primary key of one column")
        self._key, self._type, self._table_rows = key

    def run(self) -> Progress:
        with self._lock():
            for _ in range(PASSES):
                current = self._start()
                if current.is_finished:
                    break
                while not current.is_finished:
                    started = monotonic()
                    current = self._retried_batch(current)
                    self._after_batch(current, monotonic() - started)
            else:
                if self._is_needed():
                    raise MigrationFailed(
                        f"back-fill {self._backfill.name}: rows of {self._backfill.table} still match after {PASSES} "
                        f"passes ({self._backfill.where}): the code or a trigger must fill the rows that are written"
                    )
        return current

    def _start(self) -> Progress:
        """Return the progress from which to go on. Start again if rows match although the last pass is finished."""
        name = self._backfill.name
        current = progress(self._connection, name)
        if current is not None and not current.is_finished:
            logger.info("back-fill %s: continues after %s %s", name, self._key, current.position)
            return current
        if not self._is_needed():
            return current or Progress(None, 0, 0, is_finished=True)
        logger.info("back-fill %s: starts%s", name, " again, rows match that were written later" if current else "")
        self._execute(_CREATE)
        self._execute(
            text(
                f"INSERT INTO {BACKFILLS_TABLE} (name) VALUES (:name)"
                " ON CONFLICT (name) DO UPDATE SET position = NULL, rows_read = 0, finished_at = NULL"
            ),
            name=name,
        )
        return Progress(None, 0, current.rows_changed if current else 0, is_finished=False)

    def _is_needed(self) -> bool:
        return bool(
            self._connection.scalar(
                text(f"SELECT EXISTS (SELECT FROM {self._backfill.table} WHERE {_literal(self._backfill.where)})")
            )
        )

    def _retried_batch(self, current: Progress) -> Progress:
        deadline = monotonic() + self._retry_seconds
        attempt = 1
        while True:
            try:
                return self._batch(current)
            except DBAPIError as error:
                if sqlstate(error) not in _RETRIED or monotonic() >= deadline:
                    raise
                self._rows = max(1, self._rows // 2)
                pause = pause_seconds(attempt)
                logger.warning(
                    "back-fill %s: attempt %d after %s %s: %s; next attempt in %.1f s",
                    self._backfill.name,
                    attempt,
                    self._key,
                    current.position,
                    description(error, "batch").splitlines()[0],
                    pause,
                )
                self._sleep(pause)
                attempt += 1

    def _batch(self, current: Progress) -> Progress:
        """Change the next rows, and store the position in the same statement."""
        after, values = "true", {}
        if current.position is not None:
            after = f"{self._key} > CAST(CAST(:position AS text) AS {self._type})"
            values = {"position": current.position}
        count, last = self._execute(
            text(
                f"SELECT count(*), (array_agg(key ORDER BY key DESC))[1]::text FROM (SELECT {self._key} AS key"
                f" FROM {self._backfill.table} WHERE {after} ORDER BY {self._key} LIMIT {self._rows}) AS batch"
            ),
            **values,
        ).one()
        # A range of keys, not a list of them: the plan is a scan of the primary key, whatever the statistics say.
        changed = (
            f"UPDATE {self._backfill.table} SET {_literal(self._backfill.set)} WHERE ({_literal(self._backfill.where)})"
            f" AND {after} AND {self._key} <= CAST(CAST(:last AS text) AS {self._type}) RETURNING 1"
        )
        row = self._execute(
            text(
                f"WITH changed AS ({changed}) UPDATE {BACKFILLS_TABLE} SET position = coalesce(:last, position),"
                " rows_read = rows_read + :count, rows_changed = rows_changed + (SELECT count(*) FROM changed),"
                " updated_at = clock_timestamp(), finished_at = CASE WHEN :is_last THEN clock_timestamp() END"
                " WHERE name = :name RETURNING position, rows_read, rows_changed, finished_at IS NOT NULL"
            ),
            **values,
            last=last,
            count=count,
            is_last=count < self._rows,
            name=self._backfill.name,
        ).one()
        return Progress(*row)

    def _after_batch(self, current: Progress, seconds: float) -> None:
        """Adapt the size of a batch to its time, report, and pause for other clients."""
        if seconds > BATCH_SECONDS:
            self._rows = max(1, self._rows // 2)
        elif seconds < BATCH_SECONDS / 2:
            self._rows = min(self._backfill.rows, self._rows * 2)
        now = monotonic()
        if current.is_finished or now >= self._next_report:
            self._next_report = now + PROGRESS_SECONDS
            self._report(current)
        if not current.is_finished:
            self._sleep(min(seconds, LONGEST_PAUSE_SECONDS))
            if monotonic() >= self._next_check:
                self._pause()
                self._next_check = monotonic() + CHECK_SECONDS

    def _report(self, current: Progress) -> None:
        share = f" of about {self._table_rows}" if self._table_rows > 0 else ""
        logger.info(
            "back-fill %s: %s; %d rows read%s, %d changed",
            self._backfill.name,
            "finished" if current.is_finished else f"at {self._key} {current.position}",
            current.rows_read,
            share,
            current.rows_changed,
        )

    def _pause(self) -> None:
        """Wait for standbys that are behind, and for a while if requests wait for a connection."""
        queue_until = monotonic() + QUEUE_PAUSE_SECONDS
        is_logged = False
        while reason := self._lag() or (self._queue() if monotonic() < queue_until else ""):
            if not is_logged:
                logger.info("back-fill %s: pauses, because %s", self._backfill.name, reason)
                is_logged = True
            self._sleep(CHECK_SECONDS)

    def _lag(self) -> str:
        if not self._throttle.lag_seconds:
            return ""
        seconds, size = self._execute(_LAG).one()
        if seconds <= self._throttle.lag_seconds and size <= LAG_BYTES:
            return ""
        return f"a standby is {seconds:.1f} s and {size / 1024 / 1024:.0f} MiB behind"

    def _queue(self) -> str:
        url = self._throttle.exporter_url
        if url is None:
            return ""
        try:
            count = self._await(lambda: asyncio.to_thread(pending_requests, url))
        except (OSError, ValueError) as error:
            if self._exporter_answers:
                logger.warning(
                    "back-fill %s: does not know how many requests wait for a connection: EXPORTER_URL %s: %s",
                    self._backfill.name,
                    url,
                    first_line(error),
                )
            self._exporter_answers = False
            return ""
        self._exporter_answers = True
        return f"{count:.0f} requests wait for a connection" if count else ""

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold an advisory lock of the session. Poll for it: a statement that waits would hold a snapshot."""
        key = {"key": crc32(f"headroom back-fill {self._backfill.name}".encode())}
        is_logged = False
        while not self._connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), key):
            if not is_logged:
                logger.info("back-fill %s: another process runs it, waiting for its end", self._backfill.name)
                is_logged = True
            self._sleep(LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):  # the connection was lost, and the lock with it
                self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)

    def _sleep(self, seconds: float) -> None:
        self._await(lambda: asyncio.sleep(seconds))

    def _await(self, start: Callable[[], Awaitable[T]]) -> T:
        """Await in the event loop that drives the connection. Its other tasks go on."""
        adapted: Any = self._connection.connection.dbapi_connection
        result: T = adapted.run_async(lambda _: start())
        return result

    def _execute(self, statement: TextClause, **values: Any) -> Any:
        return self._connection.execute(statement, values)


def _literal(fragment: str) -> str:
    """Escape the colons of SQL: `text()` would take them for parameters."""
    return fragment.replace(":", "\\:")
