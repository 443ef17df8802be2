"""The connection pool: a hard upper bound, a bounded first-in-first-out queue, and one deadline for a checkout.

SQLAlchemy's AsyncAdaptedQueuePool has an unbounded queue, and its timeout covers neither ping nor connect. A new caller
can overtake its queue, and a failed connect does not wake the next waiter (docs/decisions/0001-own-pool.md).
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Self

from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from app.database._sqlalchemy import close_proxy, entry_of, is_invalidated
from app.database.costs import CostWatch
from app.database.deadline import AnswerLimit, checkout_deadline, current_deadline, left_of, seconds_left
from app.database.lanes import Lane, LaneState, ShedReason, current_lane, current_work, expire
from app.database.liveness import SocketProbe, is_closed, ping, shut_down
from app.database.pool_events import (
    CLOSE_REASON,
    INVALIDATION,
    CloseReason,
    Holder,
    InvalidationCause,
    InvalidationKind,
    NullObserver,
    PoolObserver,
    PoolState,
    slot_info,
)
from app.database.wait_queue import ControlledDelay, Shed, WaitQueue
from app.errors import DatabaseUnavailable, PoolExhausted
from app.lanes import CRITICAL, EXPENSIVE, NORMAL, LaneName, lane_names
from app.pool_options import PoolOptions

logger = logging.getLogger(__name__)

# Minimum time for a ping. After a pause of the process, no time may be left for a connection that is alive. Pauses of
# half a second were seen: a processor quota, a full garbage collection.
MIN_PING_SECONDS = 0.1

# Minimum time between two replacements of all connections.
DISTRUST_SECONDS = 1.0
# Connections that a worker opens at the same time: after an outage, all workers of all replicas open theirs.
MAX_OPENING = 3
# After a failed attempt to open a connection, the next one waits; twice as long after each failure.
FIRST_RETRY_SECONDS = 0.05
MAX_RETRY_SECONDS = 1.0
# Additional time for listeners that run when a connection is open.
LISTENER_SECONDS = 0.1
# Share of `recycle` that is taken off at random. Connections that were opened together are not replaced together.
RECYCLE_JITTER = 0.1
# Target of a lane's queue, as a share of the lane's time-out.
TARGETS_PER_TIMEOUT = 6
# Time between two checks for overdue answers: its maximum, and its share of their limit.
MAX_WATCH_SECONDS = 0.5
WATCHES_PER_LIMIT = 8

# Keys in the `info` of a pool entry: facts about the connection, dropped when it is closed.
_IDLE_SINCE = "headroom.idle_since"
_PROBE = "headroom.probe"
_OPENED_AT = "headroom.opened_at"
_RECYCLE_AT = "headroom.recycle_at"
# Key in `record_info`: a fact about the slot.
_TASK = "headroom.task"


class BoundedPool(Pool):
    """A pool of at most `size + max_overflow` connections. `PoolOptions` says what each option means.

    - If no connection is idle and the pool is below its maximum, open one in the background. The caller gets whichever
      is ready first: the new connection or a returned one. A connection that nothing waits for any more is kept.
    - At the maximum, up to `max_waiters` callers queue, first in, first out. Further callers get PoolExhausted at once.
      In a queue that is overloaded (CoDel), those that have waited too long get it too. Callers of the critical lane
      come first.
    - Checkouts in the expensive lane wait for that lane first (docs/decisions/0037-lanes.md).
    - A checkout takes at most `timeout` seconds, ping and connect included. It raises PoolExhausted if no connection
      was returned in time, DatabaseUnavailable if the server did not answer in time. Two exceptions: a ping at the very
      end may take MIN_PING_SECONDS more, and a paused process notices the deadline late.
    - The most recently returned connection is checked out first, so the busy ones stay warm. A connection that was idle
      for `ping_after` is pinged; one that the server closed is noticed without a round trip.
    - A connection beyond `size` is closed after `shrink_after` seconds of idleness, not when it is returned. Closing at
      once costs 4 times the CPU under load (docs/decisions/0001-own-pool.md).
    - At most MAX_OPENING connections are opened at the same time. After a failure, the next attempt waits for up to
      MAX_RETRY_SECONDS.
    - A connection whose answer is overdue is shut down, and its holder gets the driver's error at once.

    The observer is notified of every event.
    """

    _is_asyncio = True

    def __init__(
        self,
        creator: Callable[..., Any],
        options: PoolOptions,
        observer: PoolObserver | None = None,
        answer_limit: AnswerLimit | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(creator, recycle=options.recycle, **kwargs)
        self._options = options
        self._answer_limit = answer_limit or AnswerLimit()
        self._observer = observer or NullObserver()
        self.coalesce_max = options.coalesce_max
        self.coalesce_in_flight = options.coalesce_in_flight
        # Occupied slots: connections that are idle, in use, being opened or being closed.
        self._occupied = 0
        # The most recently returned connection is last, and is checked out first.
        self._idle: list[ConnectionPoolEntry] = []
        self._shrinking: asyncio.TimerHandle | asyncio.Task[None] | None = None
        # Waiters and their deadlines, in order of arrival. A connection that is being opened is for the first of them.
        self._waiters: WaitQueue[ConnectionPoolEntry] = WaitQueue(
            ControlledDelay(options.queue_target, options.queue_interval)
        )
        self._opening: set[asyncio.Task[None]] = set()
        self._returning: set[asyncio.Task[None]] = set()
        self._may_open = asyncio.Semaphore(MAX_OPENING)
        self._failed_opens = 0
        self._open_after = 0.0
        # The event loop that the connections belong to, and the timer that looks for overdue answers.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = 0.0
        self._holding_tasks: set[asyncio.Task[Any]] = set()
        self._holders: dict[ConnectionPoolEntry, Holder] = {}
        self._disposed = False
        # Runs of the normal lane and their seconds.
        self._runs = 0
        self._run_seconds = 0.0
        self._costs = CostWatch(options.expensive_after, options.expensive_share, self._observer.lane_moved)
        # Looked up for each statement: an attribute of the pool costs less than one of the watch.
        self._moved = self._costs.moved
        self._suspects = self._costs.suspects
        self._slow_after = self._costs.after
        lane_names(options.own_lanes)  # refuses a repeated name
        critical = self._new_lane(CRITICAL, math.inf, options.max_waiters, options.timeout)
        # The lanes that have a limit of their own.
        self._limited = (
            self._new_lane(
                EXPENSIVE, options.expensive_share, options.expensive_max_waiters, options.expensive_timeout
            ),
            *(self._new_lane(each.name, each.share, each.queue, each.deadline) for each in options.own_lanes),
        )
        self._lanes = {lane.name: lane for lane in (critical, *self._limited)}

    @property
    def state(self) -> PoolState:
        """Return a snapshot of the pool."""
        idle = len(self._idle)
        options = self._options
        return PoolState(options.size, options.max_overflow, idle, self._occupied - idle, self._waiting)

    @property
    def lane_states(self) -> list[LaneState]:
        """Return a snapshot of each lane."""
        waiting = self._waiters.critical
        maximum = self._options.max_size
        in_lanes = sum(lane.running for lane in self._lanes.values())
        return [
            LaneState(CRITICAL, max(0, self._lanes[CRITICAL].running - waiting), waiting, maximum),
            LaneState(NORMAL, max(0, len(self._holders) - in_lanes), max(0, self._waiting - waiting), maximum),
            *(LaneState(each.name, each.running, each.waiting, min(each.share, maximum)) for each in self._limited),
        ]

    @property
    def moved_statements(self) -> int:
        """Return the number of statements that were moved to the expensive lane because of their cost."""
        return len(self._costs.moved)

    @property
    def observer(self) -> PoolObserver:
        """Return the observer of the pool's events."""
        return self._observer

    def timeout_in(self, lane: LaneName) -> float:
        """Return the deadline of a checkout in a lane, in seconds."""
        return self._options.timeout if lane == NORMAL else self._lane_named(lane).timeout

    @property
    def max_waiting_reads(self) -> int:
        """Return how many reads of one kind may wait: as many as a full queue of statements would answer."""
        return (self._options.max_waiters + self.coalesce_in_flight) * self.coalesce_max

    @property
    def has_listeners(self) -> bool:
        """Return True if code listens to checkouts: it may prepare a connection for one request."""
        dispatch = self.dispatch
        return bool(dispatch.checkout or dispatch.checkin or dispatch.reset)

    @property
    def _waiting(self) -> int:
        """Return the number of waiters for which no connection is being opened."""
        return max(0, len(self._waiters) - len(self._opening))

    def status(self) -> str:
        """Return the snapshot as text, as SQLAlchemy's pools do."""
        return str(self.state)

    # The methods of SQLAlchemy's QueuePool that monitoring code calls, with the same arithmetic.

    def size(self) -> int:
        """Return the number of connections that stay open."""
        return self._options.size

    def checkedin(self) -> int:
        """Return the number of idle connections."""
        return len(self._idle)

    def checkedout(self) -> int:
        """Return the number of connections that are in use, being opened or being closed."""
        return self._occupied - len(self._idle)

    def overflow(self) -> int:
        """Return the number of connections beyond `size()`: negative while fewer are open."""
        return self._occupied - self._options.size

    def timeout(self) -> float:
        """Return the deadline of a checkout in seconds."""
        return self._options.timeout

    def recreate(self) -> Self:
        """Return a new pool with the same options, as SQLAlchemy requires."""
        return self.__class__(
            self._creator,
            self._options,
            self._observer,
            self._answer_limit,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close idle connections and abort openings that nothing waits for. Connections returned later are closed."""
        self._disposed = True
        if isinstance(self._shrinking, asyncio.TimerHandle):
            self._shrinking.cancel()
        while self._idle:
            self._close(self._idle.pop(), "disposed")
        if self._opening and not self._waiting:
            for task in self._opening:
                task.cancel()
            await_only(asyncio.wait(set(self._opening)))

    def distrust(self, record: ConnectionPoolEntry) -> None:
        """Replace this connection, and the others that are open now, each at its next checkout.

        Call this if their server serves no more. The others are replaced at most once in DISTRUST_SECONDS: a server
        that stays read-only would otherwise make every failed write reconnect the whole pool.
        """
        now = time.time()
        if now - self._invalidate_time >= DISTRUST_SECONDS:
            self._invalidate_time = now
        else:
            record.invalidate(soft=True)

    def leak_suspects(self, after: float) -> list[tuple[float, Holder]]:
        """Return the holders of connections held for more than `after` seconds, with those seconds; each one once.

        May be called from another thread, since a stuck event loop is when leaks matter.
        """
        now = time.monotonic()
        found = []
        for holder in tuple(self._holders.values()):
            if not holder.reported and (seconds := now - holder.since) > after:
                holder.reported = True
                self._observer.leaked()
                found.append((seconds, holder))
        return found

    def connect(self) -> PoolProxiedConnection:
        """Check out a connection. Raise PoolExhausted, DatabaseUnavailable."""
        started = time.monotonic()
        work = current_work.get()
        lane = self._lane_of(current_lane.get(), work)
        timeout = self._options.timeout if lane is None else lane.timeout
        with checkout_deadline(started + left_of(timeout)):
            if lane is not None:
                self.refuse_second_checkout()
                lane.enter(current_deadline())
            try:
                if lane is not None:
                    self._observer.lane_entered(lane.name, time.monotonic() - started)
                connection = super().connect()
            except BaseException:
                if lane is not None:
                    lane.leave(0.0)
                raise
        self._record_acquired(entry_of(connection), started, time.monotonic(), math.inf, work, lane)
        return connection

    def checkout_nowait(self, work: str = "") -> ConnectionPoolEntry | None:
        """Check out an idle connection for one statement outside a transaction; None if that needs any wait.

        `work` is the text of the statement, or another name under which its cost is watched; empty: it is not watched.

        The entry comes without SQLAlchemy's proxy and greenlet, which saves 28 of 34 us of CPU. The caller must return
        it in every case: no proxy returns it when it is garbage-collected.
        """
        started = time.monotonic()
        if not self._idle or not self._is_ready(self._idle[-1], started):
            return None
        task = self.refuse_second_checkout()
        lane = None
        # Without a call in the normal lane: this is the path of most statements.
        if (name := current_lane.get()) != NORMAL or (self._moved and work in self._moved):
            lane = self._lane_of(name, work)
            if lane is not None and not lane.enter_nowait(started):
                return None
        record = self._idle.pop()
        if task is not None:
            self._record_task(record, task)
        self._record_acquired(record, started, started, self._answer_limit.seconds, work, lane)
        return record

    async def checkout_queued(self, work: str = "") -> ConnectionPoolEntry | None:
        """Check out like `checkout_nowait()`, after a wait for a connection that another caller returns.

        Return None below the maximum, where a connection must be opened, and in another lane than the normal one. Raise
        PoolExhausted, DatabaseUnavailable.
        """
        if self._idle or self._occupied < self._options.max_size or self.has_listeners:
            return None
        if self._lane_of(current_lane.get(), work) is not None:
            return None
        task = self.refuse_second_checkout()
        started = time.monotonic()
        with checkout_deadline(started + left_of(self._options.timeout)):
            record = await self._queue()
            if not self._is_ready(record, time.monotonic()):
                record = await greenlet_spawn(self._get_usable, started, record)
        if task is not None:
            self._record_task(record, task)
        self._record_acquired(record, started, time.monotonic(), self._answer_limit.seconds, work, None)
        return record

    def return_nowait(self, record: ConnectionPoolEntry) -> bool:
        """Return an entry of `checkout_nowait()`; False if that needs a wait, and `return_entry()` must do it."""
        if self._disposed or is_closed(record.driver_connection):
            return False
        self._pass_on(record, self._record_released(record))
        return True

    def return_proxy_nowait(self, connection: PoolProxiedConnection) -> bool:
        """Return a connection that has no transaction; False if that needs a wait, and `close()` must do it."""
        if self._disposed or self.dispatch.checkin or self.dispatch.reset or is_closed(connection.driver_connection):
            return False
        # Marked as reset: a rollback would do nothing with asyncpg, and cost a round trip with psycopg.
        close_proxy(connection, transaction_reset=True)
        return True

    def _new_lane(self, name: LaneName, share: float, max_waiters: int, timeout: float) -> Lane:
        # A statement of a lane may take much longer than the target of the pool's queue.
        delay = ControlledDelay(timeout / TARGETS_PER_TIMEOUT, self._options.queue_interval)
        others_are_busy = partial(self._others_are_busy, name)
        return Lane(name, share, max_waiters, timeout, delay, self._observer.lane_shed, others_are_busy)

    def _others_are_busy(self, name: LaneName) -> bool:
        return self._costs.others_are_busy or any(each.running for each in self._limited if each.name != name)

    def lane_name(self, work: str) -> LaneName:
        """Return the lane of a checkout for this statement in the current context."""
        lane = self._lane_of(current_lane.get(), work)
        return NORMAL if lane is None else lane.name

    def _lane_of(self, name: LaneName, work: str) -> Lane | None:
        """Return the lane of a checkout; None for the normal one, which has no limit of its own."""
        if name == NORMAL:
            return self._lanes[EXPENSIVE] if work in self._moved else None
        return self._lane_named(name)

    def _lane_named(self, name: LaneName) -> Lane:
        try:
            return self._lanes[name]
        except KeyError:
            raise LookupError(f"the pool has no lane {name!r}: declare it in OWN_LANES of app/lanes.py") from None

    def _is_ready(self, record: ConnectionPoolEntry, now: float) -> bool:
        """Return True if the connection needs no event hook, no ping and no recycling."""
        dispatch = self.dispatch
        options = self._options
        ping_after = options.ping_after
        return (
            not (dispatch.checkout or dispatch.checkin or dispatch.reset)
            and not is_invalidated(record)
            and now < record.info.get(_RECYCLE_AT, 0)
            and (ping_after is None or now - record.info[_IDLE_SINCE] < ping_after)
            and not self._probe(record).closed_by_server()
        )

    @staticmethod
    def _probe(record: ConnectionPoolEntry) -> SocketProbe:
        probe: SocketProbe | None = record.info.get(_PROBE)
        if probe is None:
            probe = record.info[_PROBE] = SocketProbe(record.driver_connection)
        return probe

    def refuse_second_checkout(self) -> asyncio.Task[Any] | None:
        """Raise RuntimeError if this task holds a connection: under load such tasks would wait for each other.

        Return the task if it may hold only one connection.
        """
        if not self._options.one_per_task:
            return None
        task = asyncio.current_task()
        if task in self._holding_tasks:
            raise RuntimeError(
                "this task already holds a connection and checks out a second one: use the session it has, or end "
                "that session first"
            )
        return task

    def _record_task(self, record: ConnectionPoolEntry, task: asyncio.Task[Any]) -> None:
        self._holding_tasks.add(task)
        slot_info(record)[_TASK] = task

    def _record_acquired(
        self,
        record: ConnectionPoolEntry,
        started: float,
        now: float,
        answer_within: float,
        work: str,
        lane: Lane | None,
    ) -> None:
        self._holders[record] = Holder(now, copy_context(), now + answer_within, work, lane)
        if self._watch is None:
            self._schedule_watch()
        self._observer.acquired(now - started)

    def _record_released(self, record: ConnectionPoolEntry) -> float:
        """Note that the connection was returned, and return the time."""
        now = time.monotonic()
        if (holder := self._holders.pop(record, None)) is not None:
            seconds = now - holder.since
            self._observer.released(seconds)
            if holder.lane is None:
                self._runs += 1
                self._run_seconds += seconds
                if seconds >= self._slow_after or (self._suspects and holder.work in self._suspects):
                    self._costs.add(holder.work, seconds)
            else:
                self._costs.add_in_lane(holder.work, seconds, is_limited=holder.lane.is_limited)
                holder.lane.leave(seconds)
        if self._options.one_per_task:
            self._holding_tasks.discard(slot_info(record).pop(_TASK, None))
        return now

    def expect_answer(self, record: ConnectionPoolEntry) -> None:
        """Shut the connection down unless `expect_no_answer()` is called within the limit of a statement."""
        if (holder := self._holders.get(record)) is not None:
            holder.answer_due = time.monotonic() + self._answer_limit.seconds

    def expect_no_answer(self, record: ConnectionPoolEntry) -> None:
        """Let the holder keep the connection without a deadline: the server has answered."""
        if (holder := self._holders.get(record)) is not None:
            holder.answer_due = math.inf

    def _schedule_watch(self) -> None:
        seconds = min(MAX_WATCH_SECONDS, self._answer_limit.seconds / WATCHES_PER_LIMIT)
        self._watch_at = time.monotonic() + seconds
        # A context of its own: the watch belongs to no single request.
        self._watch = asyncio.get_running_loop().call_later(seconds, self._end_overdue_waits, context=Context())

    def _end_overdue_waits(self) -> None:
        """Shut down the connections whose answer is overdue. One timer for all: setting it costs a request nothing."""
        now = time.monotonic()
        running = [(each.work, now - each.since) for each in self._holders.values() if each.lane is None]
        in_lanes = [now - each.since for each in self._holders.values() if each.lane and each.lane.is_limited]
        self._costs.review(now, self._runs, self._run_seconds, running, in_lanes)
        # After a pause of the process, the answer may have arrived, and the driver has yet to read it.
        if now - self._watch_at < MAX_WATCH_SECONDS:
            for record, holder in tuple(self._holders.items()):
                if holder.answer_due < now and record.dbapi_connection is not None:
                    holder.answer_due = math.inf
                    logger.warning(
                        "closing a connection: no answer of the database within %.1f s (DB_STATEMENT_DEADLINE; default:"
                        " the server's statement_timeout plus 2 s)",
                        self._answer_limit.seconds,
                    )
                    slot_info(record)[INVALIDATION] = ("hard", "unanswered")
                    shut_down(record.driver_connection)
        if self._holders:
            self._schedule_watch()
        else:
            self._watch = None

    # SQLAlchemy calls the two methods below in a greenlet, where `await_only` takes the place of `await`.

    def _do_get(self) -> ConnectionPoolEntry:
        task = self.refuse_second_checkout()
        record = self._get_usable(time.monotonic())
        if task is not None:
            self._record_task(record, task)
        try:
            if record.dbapi_connection is not None and getattr(record.driver_connection, "autocommit", False):
                record.dbapi_connection.autocommit = False  # psycopg's, left on by a statement outside a transaction
        except BaseException as error:
            self._record_released(record)
            self._discard(record, error)
            raise
        return record

    def _get_usable(self, started: float, record: ConnectionPoolEntry | None = None) -> ConnectionPoolEntry:
        """Return `record`, or else another entry, after a probe and a ping where they are due."""
        is_replacement = False
        while True:
            if record is None:
                record = self._take()
            try:
                if (is_replacement and record.info.get(_OPENED_AT, 0) >= started) or self._is_usable(record):
                    return record
            except BaseException as error:
                self._discard(record, error)
                raise
            self._discard(record)
            record = None
            is_replacement = True

    def _discard(self, record: ConnectionPoolEntry, error: BaseException | None = None) -> None:
        """Close a connection that was taken from the pool and not acquired by the caller, and free its slot."""
        try:
            if error is not None:
                record.invalidate(error)
        finally:
            self._free_slot()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self._loop is not _running_loop():
            self.return_from_anywhere(record)
            return
        now = self._record_released(record)
        if record.dbapi_connection is not None and is_closed(record.driver_connection):
            # psycopg closes a connection whose cancelled statement does not end, and fires no event.
            try:
                self._give_up(record, "hard", "hung_up")
            finally:  # closing waits for the server, and that wait can be cancelled
                self._free_slot()
        elif record.dbapi_connection is None:  # invalidated, or returned by the garbage collector
            self._free_slot()
        else:
            self._pass_on(record, now)

    return_entry = _do_return_conn  # for callers other than SQLAlchemy

    def return_from_anywhere(self, record: ConnectionPoolEntry) -> None:
        """Return an entry in the next event-loop iteration. May be called from any thread, as garbage collectors do."""
        loop = self._loop
        assert loop is not None, "the loop that opened the connection"

        def return_in_loop() -> None:
            task = loop.create_task(greenlet_spawn(self.return_entry, record))
            self._returning.add(task)  # asyncio holds tasks weakly
            task.add_done_callback(self._returning.discard)

        try:
            loop.call_soon_threadsafe(return_in_loop)
        except RuntimeError:  # the loop is closed, and with it the connection
            self._record_released(record)
            self._occupied -= 1

    def _pass_on(self, record: ConnectionPoolEntry, now: float) -> None:
        """Give the connection to the first waiter, or keep it."""
        record.info[_IDLE_SINCE] = now
        if (waiter := self._pop_waiter()) is not None:
            waiter.set_result(record)
        elif self._disposed:
            self._close(record, "disposed")
        else:
            self._idle.append(record)
            if self._occupied > self._options.size and self._shrinking is None:
                self._schedule_shrink(self._options.shrink_after)

    def _schedule_shrink(self, seconds: float) -> None:
        with suppress(RuntimeError):  # no running loop: the garbage collector returned the connection
            self._shrinking = asyncio.get_running_loop().call_later(seconds, self._start_shrink)

    def _start_shrink(self) -> None:
        self._shrinking = asyncio.create_task(greenlet_spawn(self._shrink))

    def _shrink(self) -> None:
        """Close connections beyond `size` that were idle for `shrink_after`, the coldest first."""
        again_in = 0.0
        try:
            while self._occupied > self._options.size and self._idle:
                since: float = self._idle[0].info[_IDLE_SINCE]
                again_in = since + self._options.shrink_after - time.monotonic()
                if again_in > 0:
                    break
                self._close(self._idle.pop(0), "surplus")
        finally:
            self._shrinking = None
            if again_in > 0:
                self._schedule_shrink(again_in)

    def _take(self) -> ConnectionPoolEntry:
        """Return an idle connection, or wait for the first one that is returned or opened."""
        if self._idle:
            return self._idle.pop()
        if self._occupied < self._options.max_size:
            try:
                return await_only(self._wait(open_one=True))
            except TimeoutError:
                raise DatabaseUnavailable("cannot connect: the server did not answer in time") from None
            except Shed:
                raise self._overloaded() from None
        return await_only(self._queue())

    async def _queue(self) -> ConnectionPoolEntry:
        """Wait for the first connection that is returned or opened, if the queue is not full."""
        # The critical lane has a queue of its own length.
        waiting = self._waiters.critical if current_lane.get() == CRITICAL else self._waiting - self._waiters.critical
        if waiting >= self._options.max_waiters:
            self._observer.rejected()
            self._shed("full")
            raise PoolExhausted(f"no connection, and the queue is full ({self.state})")
        self._observer.queued()
        since = time.monotonic()
        try:
            return await self._wait()
        except TimeoutError:
            self._observer.timed_out()
            self._shed("timeout")
            raise PoolExhausted(f"no connection after {time.monotonic() - since:.1f} s ({self.state})") from None
        except Shed:
            raise self._overloaded() from None
        finally:
            self._observer.dequeued(time.monotonic() - since)

    def _overloaded(self) -> PoolExhausted:
        self._shed("overload")
        return PoolExhausted(
            f"no connection: the queue is overloaded (DB_QUEUE_TARGET {self._options.queue_target:g} s,"
            f" DB_QUEUE_INTERVAL {self._options.queue_interval:g} s; {self.state})"
        )

    def _shed(self, reason: ShedReason) -> None:
        self._observer.lane_shed(current_lane.get(), reason)

    async def _wait(self, *, open_one: bool = False) -> ConnectionPoolEntry:
        """Wait in the queue. Raise TimeoutError at the deadline, or the error of a failed connect."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[ConnectionPoolEntry] = loop.create_future()
        is_critical = current_lane.get() == CRITICAL
        self._waiters.add(waiter, time.monotonic(), current_deadline(), is_critical=is_critical)
        if open_one:
            self._open(waiter)
        expiry = loop.call_later(seconds_left(), expire, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Served and cancelled in the same event-loop iteration: pass the connection on to the next waiter.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                await greenlet_spawn(self._do_return_conn, waiter.result())
            raise
        finally:
            expiry.cancel()
            self._waiters.discard(waiter)

    def _pop_waiter(self) -> "asyncio.Future[ConnectionPoolEntry] | None":
        """Remove the first waiter from the queue and return it."""
        # Time that a connection takes to open is no sign of overload.
        return self._waiters.pop(time.monotonic(), may_shed=not self._opening) if self._waiters else None

    def _open(self, waiter: asyncio.Future[ConnectionPoolEntry]) -> None:
        """Start opening a connection in a free slot."""
        self._occupied += 1
        loop = waiter.get_loop()
        if self._loop is not loop:
            self._loop, self._watch, self._may_open = loop, None, asyncio.Semaphore(MAX_OPENING)
        task = loop.create_task(self._open_in_turn())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_in_turn(self) -> None:
        """Open a connection for the first waiter, unless no waiter is left when the semaphore admits this task."""
        task: Any = asyncio.current_task()
        try:
            async with self._may_open:
                if (seconds := self._open_after - time.monotonic()) > 0:
                    await asyncio.sleep(seconds)
                record = await self._open_now() if self._has_waiter() else None
        except BaseException:
            self._opening.discard(task)
            self._free_slot()
            raise
        self._opening.discard(task)
        if record is not None:
            await greenlet_spawn(self._pass_on, record, time.monotonic())
        else:
            self._free_slot()

    async def _open_now(self) -> ConnectionPoolEntry | None:
        """Open a connection. If that fails, raise the error in the present waiters, and return None."""
        waiting = self._waiters.deadlines()
        deadline = max(waiting.values())
        invalidated = self._invalidate_time

        def create() -> ConnectionPoolEntry:
            with checkout_deadline(deadline):
                return self._create_connection()

        try:
            # The opener keeps the deadline itself. This bounds the application's own listeners for the event "connect".
            async with asyncio.timeout(deadline - time.monotonic() + LISTENER_SECONDS):
                record = await greenlet_spawn(create)
        except Exception as error:  # noqa: BLE001 - raised by the waiters
            self._failed_opens += 1
            longest = min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(self._failed_opens, 10))
            self._open_after = time.monotonic() + longest * random.uniform(0.5, 1)  # noqa: S311 - not a secret
            # After the deadline, these waiters have left.
            if time.monotonic() < deadline:
                self._report_failed_open(error, waiting)
            return None
        self._failed_opens = 0
        self._open_after = 0.0
        # SQLAlchemy compares wall-clock times. After the clock was set back, a new connection would be invalid at once.
        record.starttime = max(record.starttime, invalidated)  # type: ignore[attr-defined]
        record.info[_OPENED_AT] = time.monotonic()
        record.info[_RECYCLE_AT] = self._recycle_at()
        return record

    def _report_failed_open(self, error: Exception, waiting: Iterable[asyncio.Future[ConnectionPoolEntry]]) -> None:
        """Raise the error in the first waiter; in all of `waiting` if no open connection could serve them."""
        if self._occupied > len(self._opening):
            first = self._pop_waiter()
            waiting = () if first is None else (first,)
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)

    def _recycle_at(self) -> float:
        jitter = random.uniform(0, RECYCLE_JITTER)  # noqa: S311 - not a secret
        return time.monotonic() + self._options.recycle * (1 - jitter)

    def _has_waiter(self) -> bool:
        return any(not waiter.done() for waiter in self._waiters)

    def _free_slot(self) -> None:
        """Free a slot. Open a connection in it if waiters outnumber pending opens."""
        self._occupied -= 1
        waiting = [waiter for waiter in self._waiters if not waiter.done()][len(self._opening) :]
        if waiting:
            self._open(waiting[0])

    def _close(self, record: ConnectionPoolEntry, reason: CloseReason) -> None:
        slot_info(record)[CLOSE_REASON] = reason
        # Free the slot only after the connection is gone: otherwise the next one would exceed the maximum.
        try:
            record.close()
        finally:
            self._free_slot()

    def _is_usable(self, record: ConnectionPoolEntry) -> bool:
        """Probe the connection, and ping it if it was idle. If it is broken or too old, close it and return False."""
        connection = record.dbapi_connection
        idle_since = record.info.get(_IDLE_SINCE)
        if connection is None or idle_since is None:  # just opened
            return True
        now = time.monotonic()
        ping_after = self._options.ping_after
        kind: InvalidationKind = "soft"
        cause: InvalidationCause = "pool"
        if self._invalidate_time <= record.starttime:  # type: ignore[attr-defined]
            silent = not self._probe(record).closed_by_server()
            must_ping = not silent or (ping_after is not None and now - idle_since >= ping_after)
            if not must_ping or self._is_answered(connection):
                recycle_at = record.info.setdefault(_RECYCLE_AT, self._recycle_at())  # not if SQLAlchemy reopened it
                if now < recycle_at and not is_invalidated(record):
                    return True
                shut_down(record.driver_connection)  # the caller must not wait until the server closes it too
                record.close()
                return False
            kind, cause = "hard", "unanswered" if silent else "hung_up"
        shut_down(record.driver_connection)  # a graceful close could take as long again
        self._give_up(record, kind, cause)
        return False

    def _is_answered(self, connection: DBAPIConnection) -> bool:
        """Ping the server."""
        started = time.monotonic()
        try:
            # Half of the time that is left: the other half is for opening a replacement.
            at_least = min(MIN_PING_SECONDS, self._options.timeout / 2)
            return ping(self._dialect, connection, within=max(at_least, seconds_left() / 2))
        except TimeoutError:
            # What swallowed this ping (a vanished peer, a firewall) has probably cut the other connections too.
            self._invalidate_time = time.time()
            return False
        finally:
            self._observer.pinged(time.monotonic() - started)

    def _give_up(self, record: ConnectionPoolEntry, kind: InvalidationKind, cause: InvalidationCause) -> None:
        slot_info(record)[INVALIDATION] = (kind, cause)
        record.invalidate()


def pool_state(engine: AsyncEngine) -> PoolState | None:
    """Return a snapshot of the engine's current pool; None if the pool is not bounded (SQLite).

    Always query the engine, not a pool: `engine.dispose()` gives the engine a new pool.
    """
    pool: Pool = engine.pool
    return pool.state if isinstance(pool, BoundedPool) else None


def lane_states(engine: AsyncEngine) -> tuple[list[LaneState], int]:
    """Return a snapshot of the lanes, and the number of statements that were moved because of their cost."""
    pool: Pool = engine.pool
    return (pool.lane_states, pool.moved_statements) if isinstance(pool, BoundedPool) else ([], 0)


def leak_suspects(engine: AsyncEngine, after: float) -> list[tuple[float, Holder]]:
    """Return `BoundedPool.leak_suspects()` of the engine's current pool."""
    pool: Pool = engine.pool
    return pool.leak_suspects(after) if isinstance(pool, BoundedPool) else []


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
