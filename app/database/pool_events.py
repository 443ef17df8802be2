"""Events and states of the connection pool, declared once: for the pool, its metrics and the metrics catalogue.

The database package knows no metrics library. A `PoolObserver` is notified of every event; `PoolState` is a snapshot.
"""

import asyncio
import math
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from app.database.costs import Direction
from app.database.lanes import Lane, ShedReason
from app.database.liveness import SocketProbe
from app.lanes import LaneName

CloseReason = Literal[
    "surplus",  # beyond the pool's size, and idle for `shrink_after`
    "recycled",  # older than `recycle`
    "invalidated",  # see InvalidationCause
    "disposed",  # the pool was closed
    "lost",  # garbage-collected or detached without being returned; the server may still have it
]
# Closed at once (hard), or at its next checkout (soft).
InvalidationKind = Literal["hard", "soft"]
InvalidationCause = Literal[
    "hung_up",  # the server closed it while it was idle
    "unanswered",  # it did not answer a ping, or a statement in time
    "pool",  # another connection did not answer, or its server stopped serving, so none of the same age is trusted
    "cancelled",  # its request was cancelled during a statement
    "disconnect",  # the server closed it during a statement
    "error",  # anything else
]
# The states of an open connection: fields of PoolState, and labels of its metric.
IDLE, USED = "idle", "used"
CLOSE_REASONS: tuple[CloseReason, ...] = get_args(CloseReason)
INVALIDATION_KINDS: tuple[InvalidationKind, ...] = get_args(InvalidationKind)
INVALIDATION_CAUSES: tuple[InvalidationCause, ...] = get_args(InvalidationCause)

# Keys in `record_info` of a pool entry: they belong to the slot, not to the connection that is in it.
CLOSE_REASON = "headroom.close_reason"
INVALIDATION = "headroom.invalidation"


class PoolState(NamedTuple):
    """A snapshot of a pool. All fields are connections, except `waiting`: callers in the queue."""

    size: int
    max_overflow: int
    idle: int
    used: int
    waiting: int

    @property
    def max_size(self) -> int:
        """Return the largest number of connections that may be open."""
        return self.size + self.max_overflow

    @property
    def overflow(self) -> int:
        """Return the number of open connections beyond `size`."""
        return max(0, self.idle + self.used - self.size)

    @property
    def has_capacity(self) -> bool:
        """Return True if the next checkout would not have to queue."""
        return self.idle > 0 or self.used < self.max_size

    def __str__(self) -> str:
        return f"size={self.size} overflow={self.overflow} in_use={self.used} waiting={self.waiting}"


class PoolObserver(Protocol):
    """Receives every event of a pool when it happens. Durations are seconds."""

    def acquired(self, seconds: float) -> None:
        """Record a checkout, and the time from the call to having the connection."""

    def released(self, seconds: float) -> None:
        """Record a returned connection, and the time that it was held."""

    def queued(self) -> None:
        """Record a caller that has to wait for another caller's connection."""

    def dequeued(self, seconds: float) -> None:
        """Record that a caller left the queue, with or without a connection, and its time in the queue."""

    def timed_out(self) -> None:
        """Record a caller that left the queue at its deadline without a connection."""

    def rejected(self) -> None:
        """Record a caller that was refused because the queue was full."""

    def lane_entered(self, lane: LaneName, seconds: float) -> None:
        """Record a caller that its lane has admitted, and the time that it waited for the lane."""

    def lane_shed(self, lane: LaneName, reason: ShedReason) -> None:
        """Record a caller that was refused because its lane was full, or the pool had no connection."""

    def lane_moved(self, direction: Direction) -> None:
        """Record a statement that was moved to the expensive lane because of its cost, or back."""

    def coalesced(self, reads: int, seconds: float) -> None:
        """Record a statement that answers this many reads, and the longest time that one of them has waited."""

    def coalesced_writes(self, writes: int, seconds: float) -> None:
        """Record a statement that is to insert this many rows, and the longest time that one of them has waited."""

    def sent_again(self, writes: int) -> None:
        """Record rows that a shared statement has not inserted, and that their callers send by themselves."""

    def opened(self, seconds: float) -> None:
        """Record a connection that was opened, and the time that took."""

    def open_failed(self) -> None:
        """Record a connection that could not be opened."""

    def pinged(self, seconds: float) -> None:
        """Record a ping, and the time until its answer or its failure."""

    def closed(self, reason: CloseReason) -> None:
        """Record a connection that left the pool."""

    def invalidated(self, kind: InvalidationKind, cause: InvalidationCause) -> None:
        """Record a connection that will not be used again."""

    def leaked(self) -> None:
        """Record a connection that is held for too long or was never returned. May be called from another thread."""


class NullObserver:
    """Ignores every event."""

    def _ignore(self, *_: object) -> None: ...

    lane_entered = lane_shed = lane_moved = _ignore
    acquired = released = queued = dequeued = timed_out = rejected = coalesced = coalesced_writes = sent_again = _ignore
    opened = open_failed = pinged = closed = invalidated = leaked = _ignore


@dataclass(slots=True, eq=False)
class Holder:
    """The holder of a checked-out connection.

    `since` is on the clock of time.monotonic(); `context` is the context of the checkout, with the request's variables.
    """

    since: float
    context: Context
    answer_due: float = math.inf
    """Deadline of the answer that the holder waits for."""
    work: str = ""
    """The text of the statement, if it is known."""
    lane: Lane | None = None
    """The lane, if that is not the normal one."""
    reported: bool = False


def slot_info(record: ConnectionPoolEntry) -> dict[Any, Any]:
    """Return the facts kept for a slot of the pool. They outlive the connection that is in it."""
    info = record.record_info
    assert info is not None
    return info


def observe_closings(engine: AsyncEngine, observer: PoolObserver) -> None:
    """Notify the observer of every connection that the engine's pool, or its successor, invalidates or closes."""

    def invalidated(connection: DBAPIConnection, record: ConnectionPoolEntry, error: BaseException | None) -> None:
        info = slot_info(record)
        observer.invalidated(*info.pop(INVALIDATION, ("hard", _cause(record, error))))
        info[CLOSE_REASON] = "invalidated"

    def soft_invalidated(connection: DBAPIConnection, record: ConnectionPoolEntry, error: BaseException | None) -> None:
        observer.invalidated("soft", _cause(record, error))

    def closed(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        observer.closed(slot_info(record).pop(CLOSE_REASON, "recycled"))

    def detached(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        # The server still has this connection, and no pool counts it any more.
        observer.closed("lost")
        observer.leaked()

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
    return "disconnect" if SocketProbe(record.driver_connection).closed_by_server() else "error"
