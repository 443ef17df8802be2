"""Pool metrics of this process: the pool notifies them of events, and a heartbeat publishes its gauges."""

from collections.abc import Iterable
from itertools import product

from app.database.costs import DIRECTIONS, Direction
from app.database.lanes import SHED_REASONS, LaneState, ShedReason
from app.database.pool_events import (
    CLOSE_REASONS,
    IDLE,
    INVALIDATION_CAUSES,
    INVALIDATION_KINDS,
    USED,
    CloseReason,
    InvalidationCause,
    InvalidationKind,
    PoolState,
)
from app.lanes import LaneName, lane_names
from app.observability import catalogue
from app.observability.instruments import counter, gauge, histogram, incrementer, observer


class PoolMetrics:
    """Counts the events of one pool: a PoolObserver, which documents each event. Create it after the worker's fork.

    Every label set exists from the start, at zero: `increase()` misses the event that creates a series.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self._count_checkout = incrementer(counter(catalogue.POOL_CHECKOUTS).labels(pool))
        self._observe_wait = observer(histogram(catalogue.POOL_WAIT).labels(pool))
        # An event that updates one metric is that metric's own method: no lookup and no extra call per event.
        self.released = observer(histogram(catalogue.POOL_USE).labels(pool))
        self.queued = counter(catalogue.POOL_WAITS).labels(pool).inc
        self.dequeued = counter(catalogue.POOL_WAIT_BLOCKED).labels(pool).inc
        self.timed_out = counter(catalogue.POOL_TIMEOUTS).labels(pool).inc
        self.rejected = counter(catalogue.POOL_REJECTIONS).labels(pool).inc
        self.opened = histogram(catalogue.POOL_CREATE).labels(pool).observe
        self.open_failed = counter(catalogue.POOL_CONNECT_ERRORS).labels(pool).inc
        self.pinged = histogram(catalogue.POOL_PING).labels(pool).observe
        self.leaked = counter(catalogue.POOL_LEAKS).labels(pool).inc
        self._count_coalesced = incrementer(counter(catalogue.POOL_COALESCED_STATEMENTS).labels(pool))
        self._count_reads = counter(catalogue.POOL_COALESCED_READS).labels(pool).inc
        self._count_write_statements = incrementer(counter(catalogue.POOL_COALESCED_WRITE_STATEMENTS).labels(pool))
        self._count_writes = counter(catalogue.POOL_COALESCED_WRITES).labels(pool).inc
        self.sent_again = counter(catalogue.POOL_COALESCED_WRITES_SENT_AGAIN).labels(pool).inc
        self._observe_coalesced = observer(histogram(catalogue.POOL_COALESCE_WAIT).labels(pool))
        self._shed = {
            (lane, reason): counter(catalogue.LANE_SHED).labels(pool, lane, reason)
            for lane, reason in product(lane_names(), SHED_REASONS)
        }
        self._moves = {direction: counter(catalogue.LANE_MOVES).labels(pool, direction) for direction in DIRECTIONS}
        self._closed = {reason: counter(catalogue.POOL_CLOSED).labels(pool, reason) for reason in CLOSE_REASONS}
        self._invalidated = {
            (kind, cause): counter(catalogue.POOL_INVALIDATIONS).labels(pool, kind, cause)
            for kind, cause in product(INVALIDATION_KINDS, INVALIDATION_CAUSES)
        }

    def publish(self, state: PoolState) -> None:
        """Set the gauges to a snapshot of the pool."""
        pool = self.pool
        gauge(catalogue.POOL_CONNECTIONS).labels(pool, IDLE).set(state.idle)
        gauge(catalogue.POOL_CONNECTIONS).labels(pool, USED).set(state.used)
        gauge(catalogue.POOL_CONNECTIONS_MAX).labels(pool).set(state.max_size)
        gauge(catalogue.POOL_CONNECTIONS_IDLE_MAX).labels(pool).set(state.size)
        gauge(catalogue.POOL_CONNECTIONS_IDLE_MIN).labels(pool).set(0)
        gauge(catalogue.POOL_CONNECTIONS_OVERFLOW).labels(pool).set(state.overflow)
        gauge(catalogue.POOL_PENDING_REQUESTS).labels(pool).set(state.waiting)

    def publish_lanes(self, lanes: Iterable[LaneState], moved: int) -> None:
        """Set the gauges of the lanes to a snapshot. `moved` is the number of statements that were moved."""
        for name, running, waiting, limit in lanes:
            gauge(catalogue.LANE_RUNNING).labels(self.pool, name).set(running)
            gauge(catalogue.LANE_WAITING).labels(self.pool, name).set(waiting)
            gauge(catalogue.LANE_LIMIT).labels(self.pool, name).set(limit)
        gauge(catalogue.LANE_MOVED).labels(self.pool).set(moved)

    def lane_entered(self, lane: LaneName, seconds: float) -> None:
        """Do nothing: the wait for the lane is a part of the checkout's time."""

    def lane_shed(self, lane: LaneName, reason: ShedReason) -> None:
        """Record a refused checkout."""
        self._shed[lane, reason].inc()

    def lane_moved(self, direction: Direction) -> None:
        """Record a statement that was moved because of its cost."""
        self._moves[direction].inc()

    def acquired(self, seconds: float) -> None:
        """Record a checkout."""
        self._count_checkout()
        self._observe_wait(seconds)

    def coalesced(self, reads: int, seconds: float) -> None:
        """Record a statement for waiting reads."""
        self._count_coalesced()
        self._count_reads(reads)
        self._observe_coalesced(seconds)

    def coalesced_writes(self, writes: int, seconds: float) -> None:
        """Record a statement for waiting writes."""
        self._count_write_statements()
        self._count_writes(writes)
        self._observe_coalesced(seconds)

    def closed(self, reason: CloseReason) -> None:
        """Record a connection that left the pool."""
        self._closed[reason].inc()

    def invalidated(self, kind: InvalidationKind, cause: InvalidationCause) -> None:
        """Record a connection that will not be used again."""
        self._invalidated[kind, cause].inc()
