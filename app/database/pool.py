"""The connection pool: no more connections than it was given, a short queue, one deadline, and numbers that are true.

SQLAlchemy's own queue pool differs in what matters under overload. Its queue has no end, so requests wait for a
connection long after their clients gave up. Its timeout is that of the queue alone: a ping and a connect come on top.
A request that arrives may take the connection that another has waited for, and when opening one fails, nobody who
waits is told that there is room again.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple, Self, TypeVar

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from app.database.liveness import Line, answers, hang_up, is_closed
from app.database.meter import Checkout, CloseReason, InvalidationCause, InvalidationKind, NoMeter, PoolMeter
from app.errors import DatabaseUnavailable, PoolExhausted

Result = TypeVar("Result")

# What a test may take even where no time is left: the process itself stood still, for a quota of processor time or a
# full garbage collection (half a second was seen), and has a connection at hand that is alive.
LEAST_TEST_SECONDS = 0.1

# Of a connection, in the record's `info`, which goes when the connection does.
_IDLE_SINCE = "headroom.idle_since"
_LINE = "headroom.line"
# Of a place in the pool, in `record_info`.
_HOLDER = "headroom.holder"
_CLOSE_REASON = "headroom.close_reason"
_INVALIDATION = "headroom.invalidation"
# When the checkout under way has to be done, in the time of time.monotonic().
_deadline: ContextVar[float] = ContextVar("checkout deadline")


class PoolState(NamedTuple):
    """One look at a pool, in connections."""

    size: int
    max_overflow: int
    idle: int
    used: int
    waiting: int

    @property
    def overflow(self) -> int:
        """Open connections beyond `size`."""
        return max(0, self.idle + self.used - self.size)

    @property
    def has_room(self) -> bool:
        """Whether the next one to come need not wait."""
        return self.idle > 0 or self.used < self.size + self.max_overflow

    def __str__(self) -> str:
        return f"size={self.size} overflow={self.overflow} in_use={self.used} waiting={self.waiting}"


class HeadroomPool(Pool):
    """A pool of at most `pool_size + max_overflow` connections, of which `pool_size` are kept when nobody needs them:
    one beyond is closed when nobody has needed it for `shrink_after` seconds. (SQLAlchemy's closes it when it comes
    back. Eight requests at a time on a pool of five then open a connection for every third, which costs more than the
    request: measured, 4 times the application's processor time and 5 times the server's.)

    Whoever finds none idle and room for another one has it opened, and takes whichever comes first: that one, or one
    that somebody gives back. Opening takes some ten round trips, one after the other, and under load others come back
    long before. One that nobody waits for any more when it is open is kept.

    When all are taken, up to `max_waiters` wait, first come first served; whoever comes then is refused at once.
    Getting a connection takes `timeout` seconds at the most, with a ping and a connect if they are needed:
    PoolExhausted for who waited in vain, DatabaseUnavailable where the server is what took so long. (A process that
    stood still meanwhile, or a ping at the very end, may take LEAST_TEST_SECONDS more.)

    The connection that came back last goes out first. So the busy ones stay warm, and after `ping_after` seconds of
    idleness (None: never) the server is asked whether it still has that connection. One that the server closed is
    noticed without asking.

    With `one_per_task`, a task that holds a connection and wants a second one gets a RuntimeError: under load, requests
    that each hold one and wait for another would wait for each other.

    `meter` is told of everything that a gauge, pulled now and then, would miss.
    """

    _is_asyncio = True

    def __init__(
        self,
        creator: Callable[..., Any],
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float = 3.0,
        max_waiters: int = 100,
        ping_after: float | None = 0.5,
        shrink_after: float = 10.0,
        one_per_task: bool = False,
        meter: PoolMeter | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(creator, **kwargs)
        self._size = pool_size
        self._max_overflow = max_overflow
        self._timeout = timeout
        self._max_waiters = max_waiters
        self._ping_after = ping_after
        self._shrink_after = shrink_after
        self._one_per_task = one_per_task
        self._meter = meter or NoMeter()
        # Places taken: by a connection that is idle or in use, and by one that is just being opened or closed.
        self._taken = 0
        # The one that came back last is at the end, and goes out first.
        self._idle: list[ConnectionPoolEntry] = []
        self._shrinking: asyncio.TimerHandle | asyncio.Task[None] | None = None
        # Who waits for a connection, in order of arrival, and until when. What is being opened is for the first.
        self._waiters: dict[asyncio.Future[ConnectionPoolEntry], float] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._holders: set[asyncio.Task[Any]] = set()
        self._checkouts: dict[ConnectionPoolEntry, Checkout] = {}
        self._disposed = False

    @property
    def state(self) -> PoolState:
        idle = len(self._idle)
        return PoolState(self._size, self._max_overflow, idle, self._taken - idle, self._waiting)

    @property
    def _waiting(self) -> int:
        """Those for whom none is being opened."""
        return max(0, len(self._waiters) - len(self._opening))

    def status(self) -> str:
        return str(self.state)

    def recreate(self) -> Self:
        return self.__class__(
            self._creator,
            pool_size=self._size,
            max_overflow=self._max_overflow,
            timeout=self._timeout,
            max_waiters=self._max_waiters,
            ping_after=self._ping_after,
            shrink_after=self._shrink_after,
            one_per_task=self._one_per_task,
            meter=self._meter,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def dispose(self) -> None:
        """Close what is idle, and what is being opened for nobody; and from now on whatever comes back."""
        self._disposed = True
        if isinstance(self._shrinking, asyncio.TimerHandle):
            self._shrinking.cancel()
        while self._idle:
            self._close(self._idle.pop(), "disposed")
        if self._opening and not self._waiting:
            for task in self._opening:
                task.cancel()
            await_only(asyncio.wait(set(self._opening)))

    def overdue(self, after: float) -> list[tuple[float, Checkout]]:
        """The checkouts of more than `after` seconds, and how long they last; each is told of once.

        May be called from another thread: a stuck event loop is when it matters.
        """
        now = time.monotonic()
        found = []
        for checkout in tuple(self._checkouts.values()):
            if not checkout.reported and (seconds := now - checkout.since) > after:
                checkout.reported = True
                self._meter.leaked()
                found.append((seconds, checkout))
        return found

    def connect(self) -> PoolProxiedConnection:
        asked = time.monotonic()
        token = _deadline.set(asked + self._timeout)
        try:
            connection = super().connect()
        finally:
            _deadline.reset(token)
        self._note(connection._connection_record, asked)
        return connection

    def lend(self) -> ConnectionPoolEntry | None:
        """A connection for one statement outside a transaction, if one can be had with nothing to wait for.

        It comes without SQLAlchemy's proxy and greenlet around it: measured, with the way back, 6 microseconds of
        processor time instead of 34. Whoever has it brings it back, in every case: no proxy does when it is collected.
        """
        asked = time.monotonic()
        if not self._idle or not self._fit(self._idle[-1], asked):
            return None
        self._refuse_a_second()
        record = self._idle.pop()
        self._held(record)
        self._note(record, asked)
        return record

    def take_back(self, record: ConnectionPoolEntry) -> bool:
        """Take back what was lent; False where that has something to wait for, and is `_do_return_conn`'s to do."""
        if self._disposed or is_closed(record.driver_connection):
            return False
        self._came_back(record)
        self._offer(record)
        return True

    def close_now(self, connection: PoolProxiedConnection) -> bool:
        """Take back a connection on which no transaction was begun; False where that has something to wait for."""
        if self._disposed or self.dispatch.checkin or self.dispatch.reset:
            return False
        # "Reset" by what used it: a rollback would do nothing for asyncpg, and be awaited with psycopg.
        connection._close_special(transaction_reset=True)
        return True

    def _fit(self, record: ConnectionPoolEntry, now: float) -> bool:
        """Whether it can go out as it is: nobody wants to be told, and it need be neither tested nor replaced."""
        dispatch = self.dispatch
        return (
            not (dispatch.checkout or dispatch.checkin or dispatch.reset)
            and not record._is_hard_or_soft_invalidated()  # type: ignore[attr-defined]
            and (self._recycle < 0 or time.time() - record.starttime < self._recycle)  # type: ignore[attr-defined]
            and (self._ping_after is None or now - record.info[_IDLE_SINCE] < self._ping_after)
            and not self._line(record).hung_up()
        )

    @staticmethod
    def _line(record: ConnectionPoolEntry) -> Line:
        line: Line | None = record.info.get(_LINE)
        if line is None:
            line = record.info[_LINE] = Line(record.driver_connection)
        return line

    def _refuse_a_second(self) -> None:
        if self._one_per_task and asyncio.current_task() in self._holders:
            raise RuntimeError(
                "this request holds a connection and asks for another one: use the session it has, or end it first"
            )

    def _held(self, record: ConnectionPoolEntry) -> None:
        if self._one_per_task and (task := asyncio.current_task()) is not None:
            self._holders.add(task)
            self._facts(record)[_HOLDER] = task

    def _note(self, record: ConnectionPoolEntry, asked: float) -> None:
        now = time.monotonic()
        self._checkouts[record] = Checkout(now, copy_context())
        self._meter.handed_out(now - asked)

    # SQLAlchemy calls the two below in a greenlet: what would be an `await` elsewhere is `await_only` here.

    def _do_get(self) -> ConnectionPoolEntry:
        self._refuse_a_second()
        record = self._take()
        self._held(record)
        try:
            self._make_sure(record)
            if record.dbapi_connection is not None and getattr(record.driver_connection, "autocommit", False):
                record.dbapi_connection.autocommit = False  # psycopg's, left so by a statement on its own
        except BaseException as error:
            try:
                record.invalidate(error)
            finally:
                self._do_return_conn(record)
            raise
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self._came_back(record)
        if record.dbapi_connection is not None and is_closed(record.driver_connection):
            # psycopg closes a connection whose cancelled statement does not end, and tells nobody.
            try:
                self._give_up(record, "hard", "hung_up")
            finally:  # whoever waits for its goodbye may be cancelled
                self._free_place()
        elif record.dbapi_connection is None:  # it broke, or the garbage collector brought it
            self._free_place()
        else:
            self._offer(record)

    def _came_back(self, record: ConnectionPoolEntry) -> None:
        if (checkout := self._checkouts.pop(record, None)) is not None:
            self._meter.given_back(time.monotonic() - checkout.since)
        if self._one_per_task:
            self._holders.discard(self._facts(record).pop(_HOLDER, None))

    def _offer(self, record: ConnectionPoolEntry) -> None:
        """Give it to who has waited longest, or keep it."""
        record.info[_IDLE_SINCE] = time.monotonic()
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(record)
        elif self._disposed:
            self._close(record, "disposed")
        else:
            self._idle.append(record)
            if self._taken > self._size and self._shrinking is None:
                self._shrink_later(self._shrink_after)

    def _shrink_later(self, seconds: float) -> None:
        with suppress(RuntimeError):  # no loop: the garbage collector brings back what a loop left behind
            self._shrinking = asyncio.get_running_loop().call_later(seconds, self._shrink_now)

    def _shrink_now(self) -> None:
        self._shrinking = asyncio.create_task(greenlet_spawn(self._shrink))

    def _shrink(self) -> None:
        """Close what is open beyond the size and has not been needed for a while, the coldest first."""
        again_in = 0.0
        try:
            while self._taken > self._size and self._idle:
                since: float = self._idle[0].info[_IDLE_SINCE]
                again_in = since + self._shrink_after - time.monotonic()
                if again_in > 0:
                    break
                self._close(self._idle.pop(0), "surplus")
        finally:
            self._shrinking = None
            if again_in > 0:
                self._shrink_later(again_in)

    def _take(self) -> ConnectionPoolEntry:
        """One that is idle, or else the first that is given back or opened."""
        if self._idle:
            return self._idle.pop()
        if self._taken < self._size + self._max_overflow:
            try:
                return self._wait(have_opened=True)
            except TimeoutError:
                raise DatabaseUnavailable("cannot connect: no answer in time") from None
        if self._waiting >= self._max_waiters:
            self._meter.rejected()
            raise PoolExhausted(f"no connection, and no room in the queue ({self.state})")
        self._meter.queued()
        since = time.monotonic()
        try:
            return self._wait()
        except TimeoutError:
            self._meter.timed_out()
            raise PoolExhausted(f"no connection after {self._timeout:.1f} s ({self.state})") from None
        finally:
            self._meter.left_queue(time.monotonic() - since)

    def _wait(self, *, have_opened: bool = False) -> ConnectionPoolEntry:
        """Raises TimeoutError at the deadline, and what opening one raised for who is first in the queue then."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[ConnectionPoolEntry] = loop.create_future()
        self._waiters[waiter] = _deadline.get()
        if have_opened:
            self._open(waiter)
        expiry = loop.call_later(seconds_left(), _expire, waiter)
        try:
            return await_only(waiter)
        except asyncio.CancelledError:
            # Served and cancelled in the same turn of the loop: the next in line gets it.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._do_return_conn(waiter.result())
            raise
        finally:
            expiry.cancel()
            self._waiters.pop(waiter, None)

    def _next_waiter(self) -> "asyncio.Future[ConnectionPoolEntry] | None":
        """Take who has waited longest out of the queue."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            if not waiter.done():
                return waiter
        return None

    def _open(self, waiter: asyncio.Future[ConnectionPoolEntry]) -> None:
        """Begin to open a connection in a free place, within the time that the waiter has."""
        self._taken += 1
        task = waiter.get_loop().create_task(greenlet_spawn(self._open_by, self._waiters[waiter]))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _open_by(self, deadline: float) -> None:
        _deadline.set(deadline)
        task: Any = asyncio.current_task()
        try:
            record = self._create_connection()
        except BaseException as error:
            self._opening.discard(task)
            failed = isinstance(error, Exception)
            # At the deadline the one it was for has gone, and the next in line has time left.
            if failed and time.monotonic() < deadline and (waiter := self._next_waiter()) is not None:
                waiter.set_exception(error)
            self._free_place()
            if not failed:
                raise
        else:
            self._opening.discard(task)
            self._offer(record)

    def _free_place(self) -> None:
        """There is room for one more: open it, if there are more who wait than are being opened."""
        self._taken -= 1
        waiting = [waiter for waiter in self._waiters if not waiter.done()][len(self._opening) :]
        if waiting:
            self._open(waiting[0])

    def _close(self, record: ConnectionPoolEntry, reason: CloseReason) -> None:
        self._facts(record)[_CLOSE_REASON] = reason
        # The place is free only when the connection is gone: opening the next one before would be one too many.
        try:
            record.close()
        finally:
            self._free_place()

    def _make_sure(self, record: ConnectionPoolEntry) -> None:
        """Find out whether the connection is alive. One that is not loses it; SQLAlchemy then opens another."""
        connection = record.dbapi_connection
        idle_since = record.info.get(_IDLE_SINCE)
        if connection is None or idle_since is None:  # just opened
            return
        kind: InvalidationKind = "soft"
        cause: InvalidationCause = "pool"
        if self._invalidate_time <= record.starttime:  # type: ignore[attr-defined]
            silent = not self._line(record).hung_up()
            if silent and (self._ping_after is None or time.monotonic() - idle_since < self._ping_after):
                return
            kind, cause = "hard", "unanswered" if silent else "hung_up"
            asked = time.monotonic()
            try:
                # Half of the time that is left: the rest is for opening another one if there is no answer.
                least = min(LEAST_TEST_SECONDS, self._timeout / 2)
                if answers(self._dialect, connection, within=max(least, seconds_left() / 2)):
                    return
            except TimeoutError:
                # Whatever swallowed this one (a peer that vanished, a firewall) has probably swallowed the others, too.
                self._invalidate_time = time.time()
            finally:
                self._meter.pinged(time.monotonic() - asked)
        hang_up(record.driver_connection)  # a goodbye could take as long again
        self._give_up(record, kind, cause)

    def _give_up(self, record: ConnectionPoolEntry, kind: InvalidationKind, cause: InvalidationCause) -> None:
        self._facts(record)[_INVALIDATION] = (kind, cause)
        record.invalidate()

    @staticmethod
    def _facts(record: ConnectionPoolEntry) -> dict[Any, Any]:
        """What is noted of a place in the pool, whichever connection is in it."""
        facts = record.record_info
        assert facts is not None
        return facts


def report_endings(engine: AsyncEngine, meter: PoolMeter) -> None:
    """Tell the meter of every connection that the engine's pool, or one that takes its place, gives up or closes."""

    def invalidated(connection: DBAPIConnection, record: ConnectionPoolEntry, error: BaseException | None) -> None:
        facts = HeadroomPool._facts(record)
        meter.invalidated(*facts.pop(_INVALIDATION, ("hard", _cause(record, error))))
        facts[_CLOSE_REASON] = "invalidated"

    def soft_invalidated(connection: DBAPIConnection, record: ConnectionPoolEntry, error: BaseException | None) -> None:
        meter.invalidated("soft", _cause(record, error))

    def closed(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        meter.closed(HeadroomPool._facts(record).pop(_CLOSE_REASON, "recycled"))

    def detached(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        # The server has a connection that no pool counts: the garbage collector found it, or somebody detached it.
        meter.closed("lost")
        meter.leaked()

    for name, listener in (
        ("invalidate", invalidated),
        ("soft_invalidate", soft_invalidated),
        ("close", closed),
        ("detach", detached),
    ):
        event.listen(engine.sync_engine, name, listener)


def _cause(record: ConnectionPoolEntry, error: BaseException | None) -> InvalidationCause:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "disconnect" if Line(record.driver_connection).hung_up() else "error"


def pool_state(engine: AsyncEngine) -> PoolState | None:
    """The state of the engine's pool now, or None where it has no bounded pool (SQLite in memory).

    Always through the engine: `dispose()` gives it a new pool.
    """
    pool: Pool = engine.pool
    return pool.state if isinstance(pool, HeadroomPool) else None


def overdue(engine: AsyncEngine, after: float) -> list[tuple[float, Checkout]]:
    """What HeadroomPool.overdue() says of the engine's pool now."""
    pool: Pool = engine.pool
    return pool.overdue(after) if isinstance(pool, HeadroomPool) else []


def seconds_left() -> float:
    """Until the deadline of the checkout under way; infinite outside of one."""
    return max(0.0, _deadline.get(float("inf")) - time.monotonic())


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Call a function of SQLAlchemy's greenlet world; TimeoutError, and the call cancelled, after `seconds`."""

    async def bounded() -> Result:
        async with asyncio.timeout(seconds):
            return await greenlet_spawn(call)

    run: Coroutine[Any, Any, Result] = bounded()
    return await_only(run)


def _expire(waiter: asyncio.Future[ConnectionPoolEntry]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
