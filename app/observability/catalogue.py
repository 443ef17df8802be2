"""Every metric by name: the contract with dashboards and alerts. The table in docs/metrics.md is made of it.

The labels `replica` and `worker` are not here: the exporter adds `replica` to whatever a worker has written, and
`worker` to its gauges.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from app.database.pool_events import CLOSE_REASONS, INVALIDATION_CAUSES


class Described(NamedTuple):
    """What a metric is. `name` of a counter includes its `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


# The pools. A worker writes them (pool_metrics.py).
POOL_CONNECTIONS = Described(
    "db_pool_connections", "gauge", "Connections of the pool, idle (open and free) or used.", ("pool", "state")
)
POOL_CONNECTIONS_MAX = Described(
    "db_pool_connections_max", "gauge", "Connections the pool may open: its size and its overflow.", ("pool",)
)
POOL_CONNECTIONS_IDLE_MAX = Described(
    "db_pool_connections_idle_max", "gauge", "Connections the pool keeps when nobody needs them: its size.", ("pool",)
)
POOL_CONNECTIONS_IDLE_MIN = Described(
    "db_pool_connections_idle_min",
    "gauge",
    "Idle connections the pool sees to that there are; it opens one for a request only.",
    ("pool",),
)
POOL_CONNECTIONS_OVERFLOW = Described(
    "db_pool_connections_overflow", "gauge", "Open connections beyond the pool's size.", ("pool",)
)
POOL_PENDING_REQUESTS = Described(
    "db_pool_pending_requests", "gauge", "Requests that wait in the pool's queue.", ("pool",)
)
POOL_WAIT = Described(
    "db_pool_wait_seconds",
    "histogram",
    "From asking for a connection to having it: the queue, a ping and a connect included.",
    ("pool",),
)
POOL_USE = Described("db_pool_use_seconds", "histogram", "From having a connection to giving it back.", ("pool",))
POOL_CREATE = Described("db_pool_create_seconds", "histogram", "To open a connection, signing in included.", ("pool",))
POOL_PING = Described("db_pool_ping_seconds", "histogram", "To ask the server whether a connection lives.", ("pool",))
POOL_CHECKOUTS = Described("db_pool_checkouts_total", "counter", "Connections handed out.", ("pool",))
POOL_WAITS = Described("db_pool_waits_total", "counter", "Requests that had to queue for a connection.", ("pool",))
POOL_WAIT_BLOCKED = Described(
    "db_pool_wait_blocked_seconds_total", "counter", "Time that requests spent in the queue.", ("pool",)
)
POOL_TIMEOUTS = Described(
    "db_pool_timeouts_total", "counter", "Requests that left the queue without a connection.", ("pool",)
)
POOL_REJECTIONS = Described("db_pool_rejections_total", "counter", "Requests that found the queue full.", ("pool",))
POOL_CONNECT_ERRORS = Described(
    "db_pool_connect_errors_total", "counter", "Connections that could not be opened.", ("pool",)
)
POOL_CLOSED = Described(
    "db_pool_closed_total",
    "counter",
    f"Connections that are no longer the pool's: {', '.join(CLOSE_REASONS)}.",
    ("pool", "reason"),
)
POOL_INVALIDATIONS = Described(
    "db_pool_invalidations_total",
    "counter",
    f"Connections given up, at once (hard) or at their next use (soft): {', '.join(INVALIDATION_CAUSES)}.",
    ("pool", "kind", "cause"),
)
POOL_LEAKS = Described(
    "db_pool_leaks_total", "counter", "Leak suspects: held too long, or never given back.", ("pool",)
)

# HTTP and the process. A worker writes them (http_metrics.py, process_metrics.py).
HTTP_REQUESTS = Described("http_requests_total", "counter", "Requests answered.", ("method", "route", "status"))
HTTP_DURATION = Described(
    "http_request_duration_seconds", "histogram", "From a request's head to its answer's end.", ("method", "route")
)
HTTP_IN_FLIGHT = Described("http_requests_in_flight", "gauge", "Requests under way.")
WORKER_STARTS = Described("headroom_worker_starts_total", "counter", "Workers that began to serve.")
WORKER_START_TIME = Described(
    "headroom_worker_start_time_seconds", "gauge", "When the worker began to serve, in Unix time."
)
WORKER_CPU = Described("headroom_worker_cpu_seconds_total", "counter", "Processor time of the workers.")
WORKER_MEMORY = Described(
    "headroom_worker_resident_memory_bytes", "gauge", "Memory of the worker, shared pages included."
)
BUILD_INFO = Described("headroom_build_info", "gauge", "1; what runs is in the labels.", ("version", "python"))

# The budget, and the server's own view. The exporter finds these out.
BUDGET_CONNECTIONS = Described(
    "db_budget_connections", "gauge", "A term of the budget; what is reserved is negative.", ("limit", "side", "term")
)
BUDGET_DEMAND = Described("db_budget_demand", "gauge", "Connections that may be opened, at the worst.", ("limit",))
BUDGET_SUPPLY = Described("db_budget_supply", "gauge", "Connections that are admitted.", ("limit",))
BUDGET_HEADROOM = Described("db_budget_headroom", "gauge", "Supply minus demand; negative: over budget.", ("limit",))
BUDGET_OBSERVED = Described("db_budget_observed", "gauge", "Connections that are open, by whoever.", ("limit",))
SERVER_UP = Described("db_server_up", "gauge", "Whether the server answers the exporter.")
SERVER_CONNECTIONS = Described(
    "db_server_connections", "gauge", "Client connections of the server.", ("role", "application", "state")
)
SERVER_MAX_CONNECTIONS = Described("db_server_max_connections", "gauge", "The server's max_connections.")
MIGRATIONS_PENDING = Described(
    "db_migrations_pending", "gauge", "Revisions of this release that the database does not have."
)

# PgBouncer's console. The exporter asks it where DB_POOLER=pgbouncer.
PGBOUNCER_UP = Described("pgbouncer_up", "gauge", "Whether PgBouncer's console answers the exporter.")
PGBOUNCER_CLIENTS = Described(
    "pgbouncer_pools_client_connections", "gauge", "SHOW POOLS: clients.", ("database", "user", "state")
)
PGBOUNCER_SERVERS = Described(
    "pgbouncer_pools_server_connections", "gauge", "SHOW POOLS: server connections.", ("database", "user", "state")
)
PGBOUNCER_MAX_WAIT = Described(
    "pgbouncer_pools_client_maxwait_seconds",
    "gauge",
    "SHOW POOLS: how long the first client in the queue has waited.",
    ("database", "user"),
)
PGBOUNCER_TRANSACTIONS = Described(
    "pgbouncer_stats_transactions_total", "counter", "SHOW STATS: transactions.", ("database",)
)
PGBOUNCER_QUERIES = Described("pgbouncer_stats_queries_total", "counter", "SHOW STATS: queries.", ("database",))
PGBOUNCER_RECEIVED = Described(
    "pgbouncer_stats_received_bytes_total", "counter", "SHOW STATS: bytes received.", ("database",)
)
PGBOUNCER_SENT = Described("pgbouncer_stats_sent_bytes_total", "counter", "SHOW STATS: bytes sent.", ("database",))
PGBOUNCER_TRANSACTION_TIME = Described(
    "pgbouncer_stats_transaction_seconds_total", "counter", "SHOW STATS: time in transactions.", ("database",)
)
PGBOUNCER_QUERY_TIME = Described(
    "pgbouncer_stats_query_seconds_total", "counter", "SHOW STATS: time in queries.", ("database",)
)
PGBOUNCER_WAIT_TIME = Described(
    "pgbouncer_stats_client_wait_seconds_total",
    "counter",
    "SHOW STATS: time that clients waited for a server connection.",
    ("database",),
)
PGBOUNCER_LISTS = Described("pgbouncer_lists_items", "gauge", "SHOW LISTS: how long each of its lists is.", ("list",))

# The exporter about itself.
COLLECTOR_SUCCESS = Described(
    "headroom_collector_success", "gauge", "Whether the collector had its part ready in time.", ("collector",)
)
COLLECTOR_DURATION = Described(
    "headroom_collector_duration_seconds", "gauge", "How long the collector's last part took.", ("collector",)
)


def described() -> Iterator[Described]:
    """All of them, in the order of this file."""
    return (each for each in globals().values() if isinstance(each, Described))


def metrics_table() -> str:
    """The documentation's table of metrics, in Markdown."""
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for each in described():
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    return "\n".join(rows)
