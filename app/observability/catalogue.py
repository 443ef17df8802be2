"""Every metric: its name, kind, labels and help text. Dashboards, alerts and the documentation's table rely on it.

The exporter adds two labels that are not listed here: `replica` to every metric that a worker writes, and `worker` to
a worker's gauges.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from app.database.costs import DIRECTIONS
from app.database.lanes import SHED_REASONS
from app.database.pool_events import CLOSE_REASONS, IDLE, INVALIDATION_CAUSES, USED
from app.database.standby import ROUTES
from app.lanes import BUILT_IN

# Values of the label `pool`: the pool to the primary, and the one to a standby (DATABASE_READ_URL).
PRIMARY_POOL, READ_POOL = "api", "read"

# Why the server ends the connection of a client (app/server/protocol.py).
REFUSAL_REASONS = (
    "malformed",
    "headers_too_large",
    "header_timeout",
    "body_timeout",
    "send_timeout",
    "discarded",
)
# Why a request ended before its response (app/web/cancellation.py).
CANCELLATION_REASONS = ("client_gone", "deadline")


class MetricSpec(NamedTuple):
    """The description of a metric. The `name` of a counter includes its `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


# Pools. Written by workers (pool_metrics.py).
POOL_CONNECTIONS = MetricSpec(
    "db_pool_connections", "gauge", f"Open connections of the pool, by state: {IDLE} or {USED}.", ("pool", "state")
)
POOL_CONNECTIONS_MAX = MetricSpec(
    "db_pool_connections_max", "gauge", "Maximum number of connections: the pool's size plus its overflow.", ("pool",)
)
POOL_CONNECTIONS_IDLE_MAX = MetricSpec(
    "db_pool_connections_idle_max", "gauge", "Idle connections that the pool keeps open: its size.", ("pool",)
)
POOL_CONNECTIONS_IDLE_MIN = MetricSpec(
    "db_pool_connections_idle_min",
    "gauge",
    "Idle connections that the pool opens in advance: always 0, it opens them on demand.",
    ("pool",),
)
POOL_CONNECTIONS_OVERFLOW = MetricSpec(
    "db_pool_connections_overflow", "gauge", "Open connections beyond the pool's size.", ("pool",)
)
POOL_PENDING_REQUESTS = MetricSpec(
    "db_pool_pending_requests", "gauge", "Requests that are waiting in the pool's queue.", ("pool",)
)
POOL_WAIT = MetricSpec(
    "db_pool_wait_seconds",
    "histogram",
    "Time to acquire a connection, including the queue, a ping and a connect.",
    ("pool",),
)
POOL_USE = MetricSpec(
    "db_pool_use_seconds", "histogram", "Time from acquiring a connection to returning it.", ("pool",)
)
POOL_CREATE = MetricSpec(
    "db_pool_create_seconds", "histogram", "Time to open a connection, including authentication.", ("pool",)
)
POOL_PING = MetricSpec("db_pool_ping_seconds", "histogram", "Time to ping a connection before a checkout.", ("pool",))
POOL_CHECKOUTS = MetricSpec("db_pool_checkouts_total", "counter", "Connections checked out.", ("pool",))
POOL_WAITS = MetricSpec("db_pool_waits_total", "counter", "Requests that had to queue for a connection.", ("pool",))
POOL_WAIT_BLOCKED = MetricSpec(
    "db_pool_wait_blocked_seconds_total", "counter", "Total time that requests spent in the queue.", ("pool",)
)
POOL_TIMEOUTS = MetricSpec(
    "db_pool_timeouts_total",
    "counter",
    "Requests that left the queue at their deadline without a connection.",
    ("pool",),
)
POOL_REJECTIONS = MetricSpec(
    "db_pool_rejections_total", "counter", "Requests that were rejected because the queue was full.", ("pool",)
)
LANE_RUNNING = MetricSpec(
    "db_lane_running",
    "gauge",
    f"Connections in use by lane: {', '.join(BUILT_IN)}, and those of app/lanes.py.",
    ("pool", "lane"),
)
LANE_WAITING = MetricSpec(
    "db_lane_waiting", "gauge", "Requests that wait for the lane or, in the lane, for a connection.", ("pool", "lane")
)
LANE_LIMIT = MetricSpec(
    "db_lane_limit",
    "gauge",
    "Connections of a worker that the lane may use at a time; less than 1 is a share of the time.",
    ("pool", "lane"),
)
LANE_SHED = MetricSpec(
    "db_lane_shed_total",
    "counter",
    f"Checkouts that were refused, by lane and by reason: {', '.join(SHED_REASONS)}.",
    ("pool", "lane", "reason"),
)
LANE_MOVES = MetricSpec(
    "db_lane_moves_total",
    "counter",
    f"Statements moved to another lane because of their cost, by the lane that they went to: {', '.join(DIRECTIONS)}.",
    ("pool", "to"),
)
LANE_MOVED = MetricSpec(
    "db_lane_moved_statements", "gauge", "Statements in the expensive lane because of their cost.", ("pool",)
)
POOL_COALESCED_READS = MetricSpec(
    "db_pool_coalesced_reads_total", "counter", "Reads that were answered by a statement for waiting reads.", ("pool",)
)
POOL_COALESCED_STATEMENTS = MetricSpec(
    "db_pool_coalesced_statements_total", "counter", "Statements for waiting reads.", ("pool",)
)
POOL_COALESCED_WRITES = MetricSpec(
    "db_pool_coalesced_writes_total", "counter", "Rows that were sent in a statement for waiting writes.", ("pool",)
)
POOL_COALESCED_WRITES_SENT_AGAIN = MetricSpec(
    "db_pool_coalesced_writes_sent_again_total",
    "counter",
    "Rows that a statement for waiting writes did not insert, and that were sent by themselves.",
    ("pool",),
)
POOL_COALESCED_WRITE_STATEMENTS = MetricSpec(
    "db_pool_coalesced_write_statements_total",
    "counter",
    "Statements for waiting writes, without those that send refused rows again.",
    ("pool",),
)
POOL_COALESCE_WAIT = MetricSpec(
    "db_pool_coalesce_wait_seconds",
    "histogram",
    "Longest time that a read or write of a shared statement has waited, the time for a connection included.",
    ("pool",),
)
POOL_CONNECT_ERRORS = MetricSpec(
    "db_pool_connect_errors_total", "counter", "Connections that could not be opened.", ("pool",)
)
POOL_CLOSED = MetricSpec(
    "db_pool_closed_total",
    "counter",
    f"Connections that left the pool, by reason: {', '.join(CLOSE_REASONS)}.",
    ("pool", "reason"),
)
POOL_INVALIDATIONS = MetricSpec(
    "db_pool_invalidations_total",
    "counter",
    "Connections invalidated, at once (hard) or at their next checkout (soft), by cause: "
    f"{', '.join(INVALIDATION_CAUSES)}.",
    ("pool", "kind", "cause"),
)
POOL_LEAKS = MetricSpec(
    "db_pool_leaks_total", "counter", "Leak suspects: connections held for too long or never returned.", ("pool",)
)

# Reads that may go to a standby. Written by workers if DATABASE_READ_URL is set (read_metrics.py).
READS = MetricSpec(
    "db_reads_total",
    "counter",
    f"Reads by where they went, or why they went to the primary: {', '.join(ROUTES)}.",
    ("route",),
)
READ_LAG = MetricSpec(
    "db_read_lag_seconds", "gauge", "Time for which the standby has lacked something that the primary had, at most."
)
READ_LAG_LIMIT = MetricSpec(
    "db_read_lag_limit_seconds", "gauge", "Lag from which on the standby gets no reads (DB_READ_MAX_LAG)."
)
READ_STANDBY_UP = MetricSpec(
    "db_read_standby_up", "gauge", "1 if the standby has answered the last poll, and is one; otherwise 0."
)

# HTTP and the worker process. Written by workers (http_metrics.py, process_metrics.py).
HTTP_REQUESTS = MetricSpec("http_requests_total", "counter", "HTTP requests answered.", ("method", "route", "status"))
HTTP_DURATION = MetricSpec(
    "http_request_duration_seconds",
    "histogram",
    "Time from a request's headers to the end of its response.",
    ("method", "route"),
)
HTTP_IN_FLIGHT = MetricSpec("http_requests_in_flight", "gauge", "HTTP requests in progress.")
HTTP_REFUSED_CLIENTS = MetricSpec(
    "http_refused_clients_total",
    "counter",
    f"Connections that the server ended because of their client, by reason: {', '.join(REFUSAL_REASONS)}.",
    ("reason",),
)
HTTP_CANCELLED = MetricSpec(
    "http_cancelled_requests_total",
    "counter",
    "Requests ended before their response: reads whose client has disconnected (client_gone), and requests whose "
    "Request-Timeout has passed (deadline).",
    ("reason",),
)
WORKER_STARTS = MetricSpec("headroom_worker_starts_total", "counter", "Workers that started serving.")
WORKER_START_TIME = MetricSpec(
    "headroom_worker_start_time_seconds", "gauge", "Unix time at which the worker started serving."
)
WORKER_CPU = MetricSpec("headroom_worker_cpu_seconds_total", "counter", "CPU time of the workers.")
WORKER_MEMORY = MetricSpec(
    "headroom_worker_resident_memory_bytes", "gauge", "Resident memory of the worker, including shared pages."
)
BUILD_INFO = MetricSpec(
    "headroom_build_info", "gauge", "Always 1; the labels hold the running versions.", ("version", "python")
)

# The budget and the server. Collected by the exporter.
BUDGET_CONNECTIONS = MetricSpec(
    "db_budget_connections",
    "gauge",
    "One term of the budget; reserved connections are negative.",
    ("limit", "side", "term"),
)
BUDGET_DEMAND = MetricSpec("db_budget_demand", "gauge", "Connections that the settings allow to open.", ("limit",))
BUDGET_SUPPLY = MetricSpec("db_budget_supply", "gauge", "Connections that the limit admits.", ("limit",))
BUDGET_HEADROOM = MetricSpec(
    "db_budget_headroom", "gauge", "Supply minus demand; a negative value means over budget.", ("limit",)
)
BUDGET_OBSERVED = MetricSpec("db_budget_observed", "gauge", "Connections open now, from all clients.", ("limit",))
SERVER_UP = MetricSpec("db_server_up", "gauge", "1 if the server answers the exporter, otherwise 0.")
SERVER_CONNECTIONS = MetricSpec(
    "db_server_connections", "gauge", "Client connections of the server.", ("role", "application", "state")
)
SERVER_MAX_CONNECTIONS = MetricSpec("db_server_max_connections", "gauge", "The server's max_connections setting.")
MIGRATIONS_PENDING = MetricSpec(
    "db_migrations_pending", "gauge", "Revisions of this release that are not applied to the database."
)
MIGRATIONS_AHEAD = MetricSpec(
    "db_migrations_ahead", "gauge", "Revisions applied to the database that this release does not have."
)
SCHEMA_COMPATIBLE = MetricSpec(
    "db_schema_compatible", "gauge", "1 if the programs of this release may run on the database's schema, otherwise 0."
)

# The WAL archive of the server, and the backups. Collected by the exporter if archive_mode is on, and if
# BACKUP_STATUS_DIR is set.
WAL_ARCHIVE_WAITING = MetricSpec(
    "db_wal_archive_waiting_seconds",
    "gauge",
    "Time that the oldest finished WAL segment has waited to be archived; 0 if none waits.",
)
WAL_ARCHIVED_AGE = MetricSpec(
    "db_wal_archived_age_seconds",
    "gauge",
    "Time since the last WAL segment was archived. An idle server archives none.",
)
WAL_ARCHIVE_FAILURES = MetricSpec(
    "db_wal_archive_failures_total", "counter", "Failed attempts to archive a WAL segment."
)
BACKUP_REPOSITORY_READABLE = MetricSpec(
    "db_backup_repository_readable", "gauge", "1 if the repository of the backups can be read, otherwise 0."
)
BACKUP_STATUS_AGE = MetricSpec(
    "db_backup_status_age_seconds", "gauge", "Time since the service `backup` looked at the repository."
)
BACKUPS = MetricSpec("db_backups", "gauge", "Backups in the repository.")
BACKUPS_DAMAGED = MetricSpec(
    "db_backups_damaged", "gauge", "Backups in the repository that contain pages with a wrong checksum."
)
BACKUP_AGE = MetricSpec(
    "db_backup_age_seconds", "gauge", "Time since the last backup ended, by type: full, or any.", ("type",)
)
BACKUP_INTERVAL = MetricSpec(
    "db_backup_interval_seconds", "gauge", "Scheduled time from one backup to the next, by type.", ("type",)
)
BACKUP_WINDOW = MetricSpec(
    "db_backup_window_seconds", "gauge", "Age of the oldest backup: the database can be restored to any moment since."
)
BACKUP_RETENTION = MetricSpec("db_backup_retention_seconds", "gauge", "Time for which backups are kept.")
BACKUP_DRILL_AGE = MetricSpec(
    "db_backup_drill_age_seconds",
    "gauge",
    "Time since the last restore drill; without one, since the repository was created.",
)
BACKUP_DRILL_SUCCESS = MetricSpec(
    "db_backup_drill_success", "gauge", "1 if the last restore drill succeeded, otherwise 0."
)
BACKUP_DRILL_AT_RISK = MetricSpec(
    "db_backup_drill_rpo_seconds",
    "gauge",
    "Last restore drill: time from a commit until the repository had the transaction.",
)
BACKUP_DRILL_RECOVERY = MetricSpec(
    "db_backup_drill_rto_seconds",
    "gauge",
    "Last restore drill: time from the start of the restore until the database accepted connections.",
)

# PgBouncer's console. Collected by the exporter if DB_POOLER=pgbouncer.
PGBOUNCER_UP = MetricSpec("pgbouncer_up", "gauge", "1 if PgBouncer's console answers the exporter, otherwise 0.")
PGBOUNCER_CLIENTS = MetricSpec(
    "pgbouncer_pools_client_connections", "gauge", "SHOW POOLS: client connections.", ("database", "user", "state")
)
PGBOUNCER_SERVERS = MetricSpec(
    "pgbouncer_pools_server_connections", "gauge", "SHOW POOLS: server connections.", ("database", "user", "state")
)
PGBOUNCER_MAX_WAIT = MetricSpec(
    "pgbouncer_pools_client_maxwait_seconds",
    "gauge",
    "SHOW POOLS: waiting time of the first client in the queue.",
    ("database", "user"),
)
PGBOUNCER_TRANSACTIONS = MetricSpec(
    "pgbouncer_stats_transactions_total", "counter", "SHOW STATS: transactions.", ("database",)
)
PGBOUNCER_QUERIES = MetricSpec("pgbouncer_stats_queries_total", "counter", "SHOW STATS: queries.", ("database",))
PGBOUNCER_RECEIVED = MetricSpec(
    "pgbouncer_stats_received_bytes_total", "counter", "SHOW STATS: bytes received.", ("database",)
)
PGBOUNCER_SENT = MetricSpec("pgbouncer_stats_sent_bytes_total", "counter", "SHOW STATS: bytes sent.", ("database",))
PGBOUNCER_TRANSACTION_TIME = MetricSpec(
    "pgbouncer_stats_transaction_seconds_total", "counter", "SHOW STATS: time spent in transactions.", ("database",)
)
PGBOUNCER_QUERY_TIME = MetricSpec(
    "pgbouncer_stats_query_seconds_total", "counter", "SHOW STATS: time spent in queries.", ("database",)
)
PGBOUNCER_WAIT_TIME = MetricSpec(
    "pgbouncer_stats_client_wait_seconds_total",
    "counter",
    "SHOW STATS: time that clients waited for a server connection.",
    ("database",),
)
PGBOUNCER_LISTS = MetricSpec("pgbouncer_lists_items", "gauge", "SHOW LISTS: length of each list.", ("list",))

# The exporter itself.
COLLECTOR_SUCCESS = MetricSpec(
    "headroom_collector_success",
    "gauge",
    "1 if the collector succeeded before the deadline, otherwise 0.",
    ("collector",),
)
COLLECTOR_DURATION = MetricSpec(
    "headroom_collector_duration_seconds", "gauge", "Duration of the collector's last run.", ("collector",)
)


def metric_specs() -> Iterator[MetricSpec]:
    """Return every metric, in the order of this file."""
    return (value for value in globals().values() if isinstance(value, MetricSpec))


def metrics_table() -> str:
    """Return the documentation's table of metrics, in Markdown."""
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for spec in metric_specs():
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(rows)
