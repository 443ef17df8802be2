"""The pool's gauges. Names, labels and meaning are the contract with every dashboard; the README lists them."""

from typing import Protocol

from prometheus_client import Gauge


class PoolState(Protocol):
    """What this module wants to know about a pool, in connections. `app.database.pool` has it."""

    @property
    def size(self) -> int: ...
    @property
    def max_overflow(self) -> int: ...
    @property
    def idle(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def overflow(self) -> int: ...
    @property
    def waiting(self) -> int: ...


# liveall: a sample for each worker, gone when the worker is. The exporter adds `replica` and `worker`.
CONNECTIONS = Gauge(
    "db_pool_connections", "Open connections of the pool.", ["pool", "state"], multiprocess_mode="liveall"
)
CONNECTIONS_MAX = Gauge(
    "db_pool_connections_max", "Most connections the pool may open.", ["pool"], multiprocess_mode="liveall"
)
CONNECTIONS_IDLE_MAX = Gauge(
    "db_pool_connections_idle_max", "Most idle connections the pool keeps.", ["pool"], multiprocess_mode="liveall"
)
CONNECTIONS_OVERFLOW = Gauge(
    "db_pool_connections_overflow", "Open connections beyond the pool's size.", ["pool"], multiprocess_mode="liveall"
)
PENDING_REQUESTS = Gauge(
    "db_pool_pending_requests", "Requests waiting for a connection.", ["pool"], multiprocess_mode="liveall"
)


def publish(pool: str, state: PoolState) -> None:
    """Set the gauges of this process's pool."""
    CONNECTIONS.labels(pool, "idle").set(state.idle)
    CONNECTIONS.labels(pool, "used").set(state.used)
    CONNECTIONS_MAX.labels(pool).set(state.size + state.max_overflow)
    CONNECTIONS_IDLE_MAX.labels(pool).set(state.size)
    CONNECTIONS_OVERFLOW.labels(pool).set(state.overflow)
    PENDING_REQUESTS.labels(pool).set(state.waiting)
