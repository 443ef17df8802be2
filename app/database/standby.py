"""A standby that serves the reads which it can answer as the primary would. All other reads go to the primary.

Each worker watches the positions of both servers (LSNs, in bytes of the primary's log). A read goes to the standby if

- the standby has answered the last poll,
- it has replayed what the primary had flushed `max_lag` seconds ago or later, by the clock of this worker,
- it has replayed the last write of the client (`read_after.py`).

The standby's known position is a lower bound for every connection of its pool, because positions only grow and

- all open connections lead to one server: one that leads to another is refused when it is opened,
- a connection is admitted only if its server has replayed that position. A server that has crashed may start behind it.

A standby that does not follow the primary after a failover stays on the old timeline, and so behind every new position.

So the decision takes no round trip, and reads that share a statement may do so on each server as ever: their sessions
have queues of their own (docs/decisions/0045-read-replicas.md).
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from sqlalchemy import URL, Select, literal_column, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from app.database.by_key import KeyedSelect
from app.database.deadline import after_waiting
from app.database.engine import OtherServer, make_engine
from app.database.fast_path import Fetch
from app.database.lanes import in_lane
from app.database.liveness import is_closed
from app.database.pool_events import PoolObserver
from app.database.read_after import (
    UNKNOWN_POSITION,
    columns_of,
    fetch_row,
    note_commit,
    note_commits,
    note_written,
    position,
    read_after,
)
from app.database.session import Database, Entity, ReadSession, Returning, Row, StatementSession
from app.database.shared_insert import SharedInsert
from app.errors import (
    DatabaseUnavailable,
    InvalidInput,
    OutcomeUnknown,
    PoolExhausted,
    StatementTimeout,
    first_line,
)
from app.lanes import CRITICAL
from app.pool_options import PoolOptions

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

Route = Literal[
    "standby",
    "behind",  # to the primary: the standby has not replayed the client's last write
    "lagging",  # to the primary: the standby is too far behind
    "unavailable",  # to the primary: the standby does not answer, or failed during the read
]
ROUTES: tuple[Route, ...] = get_args(Route)

POLL_SECONDS = 0.25
# While a client reads what the standby is not known to have replayed, the standby is polled this often.
URGENT_POLL_SECONDS = 0.05
# A standby that has not answered a poll after this time gets no reads.
ANSWER_SECONDS = 1.0
# Its return is logged after this time without trouble. Reads may fail on a server that answers each poll.
SETTLED_SECONDS = 5.0

# Of the standby. The control file has the timeline from the first restartpoint on, maybe minutes after a failover.
_TIMELINE = (
    "greatest((SELECT timeline_id FROM pg_control_checkpoint()),"
    " (SELECT min_recovery_end_timeline FROM pg_control_recovery()))::bigint"
)
_REPLAYED = "coalesce((pg_last_wal_replay_lsn() - '0/0')::bigint, 0)"
# The time of the start too: after a restart, a server may be behind what it had replayed before.
_SERVER = "concat_ws(' ', inet_server_addr(), inet_server_port(), extract(epoch FROM pg_postmaster_start_time()))"
_STATE = {"is_standby": "pg_is_in_recovery()", "timeline": _TIMELINE, "lsn": _REPLAYED, "server": _SERVER}
_STATE_SQL = f"SELECT {', '.join(_STATE.values())}"
_STATE_STATEMENT: Select[*tuple[Any, ...]] = select(*(literal_column(sql).label(name) for name, sql in _STATE.items()))
# PostgreSQL sends its log to a standby only as far as it is flushed.
_FLUSHED: Select[*tuple[Any, ...]] = select(
    *(
        literal_column(sql).label(name)
        for name, sql in zip(("timeline", "lsn"), columns_of("pg_current_wal_flush_lsn()"), strict=True)
    )
)


class _Sample(NamedTuple):
    """A position that the primary had flushed. `asked` is on the clock of time.monotonic(), before the query."""

    asked: float
    position: int


class Replay:
    """How far a standby has replayed the primary's log, and since when it has been behind.

    It compares positions that this process has queried. So it needs no clock of the servers, and an idle primary is not
    mistaken for a standby that lags.
    """

    def __init__(self) -> None:
        self.position = 0
        self._current_at = -math.inf
        # Those that the standby has not replayed. If it is behind for minutes, the oldest ones are forgotten.
        self._samples: deque[_Sample] = deque(maxlen=1000)

    def lag(self, now: float) -> float:
        """Return for how long the standby has lacked something, in seconds, at most; infinite if unknown."""
        return now - self._current_at

    def flushed(self, asked: float, position: int) -> None:
        """Note a position of the primary, which was queried at `asked`."""
        self._samples.append(_Sample(asked, position))
        self._compare()

    def replayed(self, position: int) -> None:
        """Note a position of the standby."""
        self.position = max(self.position, position)
        self._compare()

    def _compare(self) -> None:
        while self._samples and self._samples[0].position <= self.position:
            self._current_at = self._samples.popleft().asked


class Standby:
    """A standby with its pool, and what is known of it."""

    def __init__(
        self,
        primary: ReadSession,
        *,
        url: URL,
        application_name: str,
        pool: PoolOptions,
        max_lag: float,
        observer: PoolObserver | None = None,
        routed: Callable[[Route], None] = lambda _: None,
    ) -> None:
        """Describe the standby. Nothing is connected yet.

        `primary` reads on the primary. Beyond `max_lag` seconds of lag, the standby gets no reads. `routed` is called
        for each read.
        """
        self.engine = make_engine(
            url=url, application_name=application_name, pool=pool, observer=observer, admit=self._admit
        )
        self.session = ReadSession(self.engine)
        self.routed = routed
        self._primary = primary
        self._max_lag = max_lag
        self._replay = Replay()
        # The server of the pool's open connections, and these.
        self._server = ""
        self._connections: list[Any] = []
        self._failure: str | None = "it was not polled yet"
        # When it had a failure or lagged, on the clock of time.monotonic(), and whether that is in the log.
        self._trouble_at = -math.inf
        self._is_reported = False
        self._is_urgent = asyncio.Event()

    @property
    def lag(self) -> float:
        """Return for how long the standby has lacked something, in seconds, at most; infinite if unknown."""
        return self._replay.lag(time.monotonic())

    @property
    def is_up(self) -> bool:
        """Return True if the standby has answered the last poll and did not fail a read since."""
        return self._failure is None

    def route(self) -> Route:
        """Return where a read of the current request goes, and why."""
        if self._failure is not None:
            return "unavailable"
        if self._replay.lag(time.monotonic()) > self._max_lag:
            return "lagging"
        needed = read_after.get()
        if needed is not None and needed.position > self._replay.position:
            self._is_urgent.set()
            return "behind"
        return "standby"

    def failed(self, error: Exception) -> None:
        """Send no reads to the standby before the next poll that it answers."""
        self._failure = first_line(error)
        self._log()

    async def watch(self) -> None:
        """Poll both servers until the task is cancelled. Neither waits for the other."""
        await asyncio.gather(self._watch_primary(), self._watch_standby())

    async def _watch_primary(self) -> None:
        while True:
            await self._poll_primary()
            await asyncio.sleep(POLL_SECONDS)

    async def _watch_standby(self) -> None:
        while True:
            self._is_urgent.clear()
            await self._poll_standby()
            await asyncio.sleep(URGENT_POLL_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS - URGENT_POLL_SECONDS):
                    await self._is_urgent.wait()

    async def _poll_primary(self) -> None:
        asked = time.monotonic()
        try:
            row = await self._ask(self._primary, _FLUSHED, lambda: None)
        except Exception as error:  # noqa: BLE001 - the next poll may succeed; until then, the lag grows
            logger.debug("the primary did not report its position: %s", error)
        else:
            self._replay.flushed(asked, position(row["timeline"], row["lsn"]))

    async def _poll_standby(self) -> None:
        try:
            await self._query_standby()
        except Exception as error:  # noqa: BLE001 - the next poll may succeed
            self.failed(error)
        else:
            self._log()

    async def _query_standby(self) -> None:
        row = await self._ask(
            self.session, _STATE_STATEMENT, lambda: self.failed(TimeoutError(f"no answer within {ANSWER_SECONDS:g} s"))
        )
        if row["is_standby"] and row["server"] == self._server:
            self._replay.replayed(position(row["timeline"], row["lsn"]))
            self._failure = None
            return
        await self.engine.dispose()
        raise DatabaseUnavailable(
            "its connections lead to different servers: name the standby itself, not a pooler of several"
            if row["is_standby"]
            else "it is no standby any more"
        )

    async def _ask(self, session: ReadSession, statement: Select[*tuple[Any, ...]], overdue: Callable[[], None]) -> Row:
        """Return the row of the statement. Call `overdue` if it takes longer than ANSWER_SECONDS.

        Not cancelled then: to cancel a statement of a server that does not answer takes seconds itself.
        """
        with in_lane(CRITICAL):  # a pool that is busy is not a server that is gone
            asking = asyncio.ensure_future(session.first(statement))
        try:
            if not (await asyncio.wait({asking}, timeout=ANSWER_SECONDS))[0]:
                overdue()
            row = await asking
        finally:
            asking.cancel()
        assert row is not None
        return row

    def _log(self) -> None:
        """Log when reads leave the standby, and when they have returned to it."""
        now, lag = time.monotonic(), self.lag
        reason = self._failure
        if reason is None and self._max_lag < lag < math.inf:
            reason = f"it is {lag:.0f} s behind (DB_READ_MAX_LAG: {self._max_lag:g} s)"
        if reason is not None:
            self._trouble_at = now
            if not self._is_reported:
                logger.warning("reads go to the primary, not to the standby: %s", reason)
                self._is_reported = True
        elif self._is_reported and now - self._trouble_at >= SETTLED_SECONDS:
            logger.info("reads go to the standby again")
            self._is_reported = False

    def _admit(self, connection: Any) -> None:
        """Raise DatabaseUnavailable unless the connection leads to a standby that may take part in the pool."""
        for is_last in (False, True):
            is_standby, timeline, lsn, server = await_only(fetch_row(connection, _STATE_SQL))
            if not is_standby:
                raise DatabaseUnavailable("it is no standby")
            self._connections = [each for each in self._connections if not is_closed(each)]
            if self._connections and server != self._server:
                raise OtherServer("the open connections lead to another standby")
            if position(timeline, lsn) >= self._replay.position:
                break
            # The known position may have grown since the query.
            if is_last:
                raise DatabaseUnavailable("it has not replayed what reads rely on")
        self._server = server
        self._connections.append(connection)


def read_pool_options(primary: PoolOptions, size: int) -> PoolOptions:
    """Return the options of the standby's pool: those of the primary's, with at most `size` connections.

    A read that gets no connection to a standby that is gone has half of its time left for the primary, in each lane.
    The pool is smaller, so the shares of lanes are too: they leave a connection to others, or half of the time of the
    only one.
    """
    most = size - 1 if size > 1 else 0.5
    return replace(
        primary,
        size=size,
        max_overflow=0,
        timeout=primary.timeout / 2,
        expensive_timeout=primary.expensive_timeout / 2,
        expensive_share=min(primary.expensive_share, most),
        own_lanes=tuple(
            replace(each, share=min(each.share, most), deadline=each.deadline / 2) for each in primary.own_lanes
        ),
    )


class _RoutedReads(ReadSession):
    """Runs each read on the standby or on the primary. A read that fails on the standby is repeated on the primary."""

    def __init__(self, engine: AsyncEngine, primary: ReadSession, standby: Standby) -> None:
        super().__init__(engine)
        self._primary = primary
        self._standby = standby

    def wrap_fetch(self, wrap: Callable[[Fetch], Fetch]) -> None:
        for session in (self._primary, self._standby.session):
            session.wrap_fetch(wrap)

    async def all(self, statement: Select[*tuple[Any, ...]], **parameters: Any) -> Sequence[Row]:
        return await self._routed(lambda session: session.all(statement, **parameters))

    async def first(self, statement: Select[*tuple[Any, ...]], **parameters: Any) -> Row | None:
        return await self._routed(lambda session: session.first(statement, **parameters))

    def one(self, statement: KeyedSelect, key: Any) -> Awaitable[Row | None]:
        return self._routed(lambda session: session.one(statement, key))

    async def entities(self, statement: Select[Entity], **parameters: Any) -> Sequence[Entity]:
        return await self._routed(lambda session: session.entities(statement, **parameters))

    async def _routed(self, read: Callable[[ReadSession], Awaitable[Result]]) -> Result:
        standby = self._standby
        route = standby.route()
        waited = 0.0
        if route == "standby":
            started = time.monotonic()
            try:
                result = await read(standby.session)
            except (StatementTimeout, InvalidInput):
                raise
            except PoolExhausted:
                # A full pool is no reason to load the primary too. An unavailable standby is a reason.
                if standby.route() != "unavailable":
                    raise
            except DatabaseUnavailable as error:
                standby.failed(error)
            except Exception:  # noqa: BLE001, S110 - if the statement is at fault, the primary says so
                # The replay of the log cancelled the read, or a table that was just created is not replayed.
                pass
            else:
                standby.routed(route)
                return result
            route = "unavailable"
            waited = time.monotonic() - started
        standby.routed(route)
        with after_waiting(waited):
            return await read(self._primary)


class _NotedStatements(StatementSession):
    """Notes the position of each write."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self.call_after_write(note_commit)

    async def returned(self, statement: Returning | SharedInsert, **parameters: Any) -> Row | None:
        try:
            return await super().returned(statement, **parameters)
        except (OutcomeUnknown, asyncio.CancelledError):
            note_written(UNKNOWN_POSITION)
            raise


class ReplicatedDatabase(Database):
    """A database whose reads may go to a standby. `url` and the options are those of `Standby`."""

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        super().__init__(engine)
        self.standby = Standby(self.primary_read, **options)
        self.engines.append(self.standby.engine)
        self.read = _RoutedReads(engine, self.primary_read, self.standby)
        self.statement = _NotedStatements(engine)
        note_commits(engine)
