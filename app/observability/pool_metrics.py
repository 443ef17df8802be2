"""The pool's metrics, as this process has them: durations and events pushed by the pool, gauges pulled from it."""

from itertools import product

from app.database.pool_events import CLOSE_REASONS, INVALIDATION_CAUSES, INVALIDATION_KINDS, PoolState
from app.observability import catalogue
from app.observability.instruments import counter, gauge, histogram

CONNECTIONS = gauge(catalogue.POOL_CONNECTIONS)
CONNECTIONS_MAX = gauge(catalogue.POOL_CONNECTIONS_MAX)
CONNECTIONS_IDLE_MAX = gauge(catalogue.POOL_CONNECTIONS_IDLE_MAX)
CONNECTIONS_IDLE_MIN = gauge(catalogue.POOL_CONNECTIONS_IDLE_MIN)
CONNECTIONS_OVERFLOW = gauge(catalogue.POOL_CONNECTIONS_OVERFLOW)
PENDING_REQUESTS = gauge(catalogue.POOL_PENDING_REQUESTS)
WAIT = histogram(catalogue.POOL_WAIT)
USE = histogram(catalogue.POOL_USE)
CREATE = histogram(catalogue.POOL_CREATE)
PING = histogram(catalogue.POOL_PING)
CHECKOUTS = counter(catalogue.POOL_CHECKOUTS)
WAITS = counter(catalogue.POOL_WAITS)
WAIT_BLOCKED = counter(catalogue.POOL_WAIT_BLOCKED)
TIMEOUTS = counter(catalogue.POOL_TIMEOUTS)
REJECTIONS = counter(catalogue.POOL_REJECTIONS)
CONNECT_ERRORS = counter(catalogue.POOL_CONNECT_ERRORS)
CLOSED = counter(catalogue.POOL_CLOSED)
INVALIDATIONS = counter(catalogue.POOL_INVALIDATIONS)
LEAKS = counter(catalogue.POOL_LEAKS)


class PoolMetrics:
    """Counts what the pool of this name reports: a PoolObserver. Made in the worker, after the fork.

    Every label set that can occur exists from the start, at zero: a series that began with its first event would hide
    that event from `increase()`.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._wait = WAIT.labels(pool)
        self._use = USE.labels(pool)
        self._create = CREATE.labels(pool)
        self._ping = PING.labels(pool)
        self._checkouts = CHECKOUTS.labels(pool)
        self._waits = WAITS.labels(pool)
        self._wait_blocked = WAIT_BLOCKED.labels(pool)
        self._timeouts = TIMEOUTS.labels(pool)
        self._rejections = REJECTIONS.labels(pool)
        self._connect_errors = CONNECT_ERRORS.labels(pool)
        self._leaks = LEAKS.labels(pool)
        for reason in CLOSE_REASONS:
            CLOSED.labels(pool, reason)
        for kind, cause in product(INVALIDATION_KINDS, INVALIDATION_CAUSES):
            INVALIDATIONS.labels(pool, kind, cause)

    def publish(self, state: PoolState) -> None:
        """Set the gauges."""
        CONNECTIONS.labels(self._pool, "idle").set(state.idle)
        CONNECTIONS.labels(self._pool, "used").set(state.used)
        CONNECTIONS_MAX.labels(self._pool).set(state.max_size)
        CONNECTIONS_IDLE_MAX.labels(self._pool).set(state.size)
        CONNECTIONS_IDLE_MIN.labels(self._pool).set(0)  # the first one is opened at the start, and not again
        CONNECTIONS_OVERFLOW.labels(self._pool).set(state.overflow)
        PENDING_REQUESTS.labels(self._pool).set(state.waiting)

    # What follows is PoolObserver, which documents each method.

    def acquired(self, seconds: float) -> None:
        self._checkouts.inc()
        self._wait.observe(seconds)

    def released(self, seconds: float) -> None:
        self._use.observe(seconds)

    def queued(self) -> None:
        self._waits.inc()

    def dequeued(self, seconds: float) -> None:
        self._wait_blocked.inc(seconds)

    def timed_out(self) -> None:
        self._timeouts.inc()

    def rejected(self) -> None:
        self._rejections.inc()

    def opened(self, seconds: float) -> None:
        self._create.observe(seconds)

    def open_failed(self) -> None:
        self._connect_errors.inc()

    def pinged(self, seconds: float) -> None:
        self._ping.observe(seconds)

    def closed(self, reason: str) -> None:
        CLOSED.labels(self._pool, reason).inc()

    def invalidated(self, kind: str, cause: str) -> None:
        INVALIDATIONS.labels(self._pool, kind, cause).inc()

    def leaked(self) -> None:
        self._leaks.inc()
