"""The conditions of the alerts in ops/prometheus/rules/alerts.yml, evaluated for the live page.

Prometheus waits for a condition to last; the page shows it at once. A test compares names and thresholds.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from app.database.pool_events import USED
from app.exporter.collectors.replicas import ReplicasCollector
from app.exporter.status.snapshot import Snapshot, increase, quantiles
from app.observability import catalogue

LOW_HEADROOM = 0.1
SATURATED = 0.9
SLOW_WAIT_SECONDS = 0.5
DISAGREEMENT_SECONDS = 120.0
RECENT_SECONDS = 300.0
LEAKS_SECONDS = 900.0
SHEDDING_SECONDS = 120.0
FLAPPING_SECONDS = 600.0
FLAPPING_STARTS = 2
MISSED_BACKUPS = 2
BACKUP_STATUS_SECONDS = 120.0
WAL_WAITING_SECONDS = 120.0
DRILL_DAYS = 35
# The roles of ops/postgres/roles.sql; a rotation of the password changes from one to the other.
API_ROLES = ("headroom_app", "headroom_app_2")


class Evaluation(NamedTuple):
    """Whether a condition holds ("firing"), and the value that decides it, as text."""

    state: Literal["ok", "firing", "unknown"]
    value: str


# Evaluates the snapshots of the last minutes, oldest first. There is at least one.
Evaluate = Callable[[Sequence[Snapshot]], Evaluation]

UNKNOWN = Evaluation("unknown", "unknown")


class Condition(NamedTuple):
    """An alert's condition: its name, what it means, its severity, what to do first, and how to evaluate it.

    An optional condition is not shown while it is unknown: the stack has no such part.
    """

    name: str
    summary: str
    severity: Literal["critical", "warning"]
    next_step: str
    evaluate: Evaluate
    optional: bool = False


def since(snapshots: Sequence[Snapshot], seconds: float) -> Sequence[Snapshot]:
    """Return the snapshots that are at most `seconds` older than the last one."""
    return [snapshot for snapshot in snapshots if snapshot.time >= snapshots[-1].time - seconds]


def free_share(snapshot: Snapshot) -> float | None:
    """Return the share of the tightest limit that is not open, from 0 to 1; None if unknown."""
    shares = []
    for labels, supply in snapshot.select(catalogue.BUDGET_SUPPLY):
        observed = snapshot.value(catalogue.BUDGET_OBSERVED, **labels)
        if observed is not None and supply:
            shares.append((supply - observed) / supply)
    return min(shares, default=None)


def disagreement(snapshot: Snapshot) -> float | None:
    """Return the API's connections that the server counts, minus those that its pools count; None if unknown.

    Behind PgBouncer, its client connections are compared instead of the server's. With EXPORTER_SCOPE=server the pools
    are unknown.
    """
    collectors = {labels["collector"] for labels, _ in snapshot.select(catalogue.COLLECTOR_SUCCESS)}
    if collectors and ReplicasCollector.name not in collectors:
        return None
    in_pools = snapshot.total(catalogue.POOL_CONNECTIONS)
    in_pools -= snapshot.total(catalogue.POOL_CONNECTIONS, pool=catalogue.READ_POOL)  # on another server
    pgbouncer_up = snapshot.value(catalogue.PGBOUNCER_UP)
    if pgbouncer_up is not None:
        if not pgbouncer_up:
            return None
        return sum(snapshot.total(catalogue.PGBOUNCER_CLIENTS, user=role) for role in _api_roles(snapshot)) - in_pools
    if not snapshot.value(catalogue.SERVER_UP):
        return None
    return snapshot.total(catalogue.SERVER_CONNECTIONS, application="headroom:api") - in_pools


def _api_roles(snapshot: Snapshot) -> set[str]:
    """Return the roles of the API's connections. While a password is rotated, it has two."""
    reported = snapshot.select(catalogue.SERVER_CONNECTIONS, application="headroom:api")
    return {labels["role"] for labels, _ in reported} | set(API_ROLES)


def _firing_if(condition: bool, value: str) -> Evaluation:
    return Evaluation("firing" if condition else "ok", value)


def _headroom_low(snapshots: Sequence[Snapshot]) -> Evaluation:
    share = free_share(snapshots[-1])
    return UNKNOWN if share is None else _firing_if(share < LOW_HEADROOM, f"{1 - share:.0%} of the limit is open")


def _over_budget(snapshots: Sequence[Snapshot]) -> Evaluation:
    smallest = min((headroom for _, headroom in snapshots[-1].select(catalogue.BUDGET_HEADROOM)), default=None)
    return UNKNOWN if smallest is None else _firing_if(smallest < 0, f"headroom {smallest:.0f}")


def _pool_saturated(snapshots: Sequence[Snapshot]) -> Evaluation:
    shares = []
    now = snapshots[-1]
    for replica in {labels["replica"] for labels, _ in now.select(catalogue.POOL_CONNECTIONS_MAX)}:
        maximum = now.total(catalogue.POOL_CONNECTIONS_MAX, replica=replica)
        shares.append(now.total(catalogue.POOL_CONNECTIONS, replica=replica, state=USED) / maximum)
    if not shares:
        return UNKNOWN
    return _firing_if(max(shares) > SATURATED, f"{max(shares):.0%} in use")


def _pool_wait_slow(snapshots: Sequence[Snapshot]) -> Evaluation:
    [p99] = quantiles(since(snapshots, RECENT_SECONDS), catalogue.POOL_WAIT, 0.99)
    if p99 is None:
        return Evaluation("ok", "no checkouts")
    return _firing_if(p99 > SLOW_WAIT_SECONDS, f"p99 {p99 * 1000:.0f} ms")


def _any_within(seconds: float, spec: catalogue.MetricSpec) -> Evaluate:
    """Return an evaluation that fires if the counter increased within the last `seconds`."""

    def evaluate(snapshots: Sequence[Snapshot]) -> Evaluation:
        number = increase(since(snapshots, seconds), spec)
        return _firing_if(number > 0, f"{number:.0f} in {seconds / 60:.0f} minutes")

    return evaluate


def _lane_sheds(snapshots: Sequence[Snapshot]) -> Evaluation:
    recent = since(snapshots, SHEDDING_SECONDS)
    lanes = {labels["lane"] for labels, _ in snapshots[-1].select(catalogue.LANE_SHED)}
    numbers = {lane: increase(recent, catalogue.LANE_SHED, lane=lane) for lane in sorted(lanes)}
    shedding = [f"{lane} {number:.0f}" for lane, number in numbers.items() if number > 0]
    return _firing_if(bool(shedding), f"{', '.join(shedding) or 0} in {SHEDDING_SECONDS / 60:.0f} minutes")


def _worker_flapping(snapshots: Sequence[Snapshot]) -> Evaluation:
    recent = since(snapshots, FLAPPING_SECONDS)
    worst = (0.0, 0.0)
    for labels, _ in snapshots[-1].select(catalogue.WORKER_STARTS):
        replica = labels["replica"]
        workers = len(list(snapshots[-1].select(catalogue.WORKER_START_TIME, replica=replica)))
        # Only snapshots that know the replica: the first workers of a new replica replace none.
        known = [
            snapshot for snapshot in recent if snapshot.value(catalogue.WORKER_STARTS, replica=replica) is not None
        ]
        starts = increase(known, catalogue.WORKER_STARTS, replica=replica)
        worst = max(worst, (starts - FLAPPING_STARTS * workers, starts))
    excess, starts = worst
    return _firing_if(excess > 0, f"{starts:.0f} starts in {FLAPPING_SECONDS / 60:.0f} minutes")


def _views_disagree(snapshots: Sequence[Snapshot]) -> Evaluation:
    differences = [disagreement(snapshot) for snapshot in since(snapshots, DISAGREEMENT_SECONDS)]
    known = [difference for difference in differences if difference is not None]
    if not known or differences[-1] is None:
        return UNKNOWN
    # Connections that open and close make the difference change its sign. A leak does not.
    one_sided = min(known) > 0 or max(known) < 0
    covered = snapshots[-1].time - snapshots[0].time >= DISAGREEMENT_SECONDS
    return _firing_if(one_sided and covered, f"difference {known[-1]:+.0f}" if known[-1] else "no difference")


def _server_down(snapshots: Sequence[Snapshot]) -> Evaluation:
    up = snapshots[-1].value(catalogue.SERVER_UP)
    return UNKNOWN if up is None else _firing_if(not up, "up" if up else "down")


def _collector_failing(snapshots: Sequence[Snapshot]) -> Evaluation:
    results = snapshots[-1].select(catalogue.COLLECTOR_SUCCESS)
    failing = [labels["collector"] for labels, success in results if not success]
    return _firing_if(bool(failing), ", ".join(failing) or "0 failing")


def _migration_pending(snapshots: Sequence[Snapshot]) -> Evaluation:
    pending = snapshots[-1].value(catalogue.MIGRATIONS_PENDING)
    return UNKNOWN if pending is None else _firing_if(pending > 0, f"{pending:.0f} pending")


def _schema_incompatible(snapshots: Sequence[Snapshot]) -> Evaluation:
    ahead = snapshots[-1].value(catalogue.MIGRATIONS_AHEAD)
    compatible = snapshots[-1].value(catalogue.SCHEMA_COMPATIBLE)
    if ahead is None or compatible is None:
        return UNKNOWN
    if not ahead:
        return Evaluation("ok", "not ahead of this release")
    return _firing_if(not compatible, f"{ahead:.0f} ahead, {'compatible' if compatible else 'incompatible'}")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h"


def _exceeds(spec: catalogue.MetricSpec, limit: float, text: Callable[[float], str]) -> Evaluate:
    """Return an evaluation that fires if the newest value is above the limit. `text` describes the value."""

    def evaluate(snapshots: Sequence[Snapshot]) -> Evaluation:
        value = snapshots[-1].value(spec)
        return UNKNOWN if value is None else _firing_if(value > limit, text(value))

    return evaluate


def _is_zero(spec: catalogue.MetricSpec, zero: str, other: str) -> Evaluate:
    """Return an evaluation that fires if the newest value is 0. The texts describe the value."""

    def evaluate(snapshots: Sequence[Snapshot]) -> Evaluation:
        value = snapshots[-1].value(spec)
        return UNKNOWN if value is None else _firing_if(not value, other if value else zero)

    return evaluate


def _backup_too_old(snapshots: Sequence[Snapshot]) -> Evaluation:
    now = snapshots[-1]
    ages = {labels["type"]: age for labels, age in now.select(catalogue.BACKUP_AGE)}
    intervals = {labels["type"]: interval for labels, interval in now.select(catalogue.BACKUP_INTERVAL)}
    if not ages:
        return UNKNOWN
    late = any(age > MISSED_BACKUPS * intervals[kind] for kind, age in ages.items())
    return _firing_if(late, ", ".join(f"{kind} {_hours(age)}" for kind, age in sorted(ages.items())))


def _retention_exceeded(snapshots: Sequence[Snapshot]) -> Evaluation:
    now = snapshots[-1]
    window, retention = now.value(catalogue.BACKUP_WINDOW), now.value(catalogue.BACKUP_RETENTION)
    interval = now.value(catalogue.BACKUP_INTERVAL, type="full")
    if window is None or retention is None or interval is None:
        return UNKNOWN
    return _firing_if(window > retention + MISSED_BACKUPS * interval, f"oldest {_hours(window)}")


def _standby_lost(snapshots: Sequence[Snapshot]) -> Evaluation:
    up = list(snapshots[-1].select(catalogue.READ_STANDBY_UP))
    if not up:
        return UNKNOWN
    replicas = {labels["replica"] for labels, _ in up}
    without = len(replicas - {labels["replica"] for labels, value in up if value})
    return _firing_if(without > 0, f"{without} of {len(replicas)} replicas without it")


def _standby_lagging(snapshots: Sequence[Snapshot]) -> Evaluation:
    now = snapshots[-1]
    lags: dict[str, list[float]] = {}
    for labels, lag in now.select(catalogue.READ_LAG):
        if now.value(catalogue.READ_STANDBY_UP, **labels):
            lags.setdefault(labels["replica"], []).append(lag)
    limit = max((value for _, value in now.select(catalogue.READ_LAG_LIMIT)), default=None)
    if limit is None or not lags:
        return UNKNOWN
    longest = max(min(each) for each in lags.values())
    return _firing_if(longest > limit, f"{longest:.1f} s behind")


CONDITIONS = (
    Condition(
        "HeadroomLow",
        "Nearly all admitted connections are open",
        "critical",
        "Find the clients that hold the connections: this stack's programs, or others.",
        _headroom_low,
    ),
    Condition(
        "OverBudget",
        "The settings allow more connections than a limit admits",
        "warning",
        'Run "headroom budget --suggest" and set the pool sizes it names.',
        _over_budget,
    ),
    Condition(
        "PoolSaturated",
        "Nearly all connections of a replica's pools are in use",
        "warning",
        "Check how long connections are held before you make the pools larger.",
        _pool_saturated,
    ),
    Condition(
        "PoolWaitSlow",
        "Requests wait too long for a connection",
        "warning",
        "Check how long connections are held, and look for slow statements.",
        _pool_wait_slow,
    ),
    Condition(
        "PoolTimeouts",
        "Requests timed out while they waited for a connection",
        "critical",
        "Clients get 503. Shed load, or find the requests that hold the connections.",
        _any_within(RECENT_SECONDS, catalogue.POOL_TIMEOUTS),
    ),
    Condition(
        "PoolRejections",
        "Requests were rejected because a pool's queue was full",
        "critical",
        "Clients get 503 at once. Shed load, or find the requests that hold the connections.",
        _any_within(RECENT_SECONDS, catalogue.POOL_REJECTIONS),
    ),
    Condition(
        "LaneSheds",
        "A lane of the pools refuses checkouts",
        "warning",
        "Clients get 503. The API's log names the statements that were moved to the lane expensive.",
        _lane_sheds,
    ),
    Condition(
        "PoolConnectErrors",
        "Connections could not be opened",
        "critical",
        "Check that the database is up and has free connections.",
        _any_within(RECENT_SECONDS, catalogue.POOL_CONNECT_ERRORS),
    ),
    Condition(
        "PoolLeakSuspects",
        "Connections were held for too long or never returned",
        "warning",
        "The API's log names the request and its route.",
        _any_within(LEAKS_SECONDS, catalogue.POOL_LEAKS),
    ),
    Condition(
        "WorkerFlapping",
        "Workers are replaced too often",
        "critical",
        "The API's log says why the workers ended. If it does not, check the kernel's log for an out-of-memory kill.",
        _worker_flapping,
    ),
    Condition(
        "ViewsDisagree",
        "Server and pools disagree about the number of the API's connections",
        "warning",
        "Positive difference: look for a leak. Negative: pools count connections that are closed.",
        _views_disagree,
    ),
    Condition(
        "ServerDown",
        "The database does not answer the exporter",
        "critical",
        "Check that PostgreSQL runs and is reachable. The exporter's log has the error.",
        _server_down,
    ),
    Condition(
        "StandbyLost",
        "The standby for reads does not answer, and the primary serves its reads",
        "warning",
        "Check that the standby runs, and its log. The API's log has the reason.",
        _standby_lost,
        optional=True,
    ),
    Condition(
        "StandbyLagging",
        "The standby for reads is too far behind, and the primary serves its reads",
        "warning",
        "Look for a long query or a lock on the standby, and at the network between the servers.",
        _standby_lagging,
        optional=True,
    ),
    Condition(
        "CollectorFailing",
        "A collector of the exporter fails, so its metrics are missing",
        "warning",
        "The exporter's log has the reason.",
        _collector_failing,
    ),
    Condition(
        "MigrationPending",
        "The database lacks migrations of this release",
        "warning",
        "Run the migration job, and read its log if it fails.",
        _migration_pending,
    ),
    Condition(
        "SchemaIncompatible",
        "The database is newer than this release, which may not run on it",
        "critical",
        'Run "headroom schema": it names the release to start, or the downgrade to run.',
        _schema_incompatible,
    ),
    Condition(
        "BackupMissing",
        "The repository has no backup",
        "critical",
        'Run "make backup type=full", and read the log of the service backup.',
        _is_zero(catalogue.BACKUPS, "no backup", "there is a backup"),
        optional=True,
    ),
    Condition(
        "BackupTooOld",
        "Scheduled backups do not succeed",
        "critical",
        "The log of the service backup has the reason.",
        _backup_too_old,
        optional=True,
    ),
    Condition(
        "BackupDamaged",
        "A backup found pages with a wrong checksum: the database is damaged",
        "critical",
        "Do not let the intact backups expire. The runbook has the steps.",
        _exceeds(catalogue.BACKUPS_DAMAGED, 0, lambda number: f"{number:.0f} damaged"),
        optional=True,
    ),
    Condition(
        "BackupRetentionExceeded",
        "Backups are older than their retention: they are not removed",
        "warning",
        "The log of the service backup has the reason.",
        _retention_exceeded,
        optional=True,
    ),
    Condition(
        "BackupRepositoryUnreadable",
        "The repository of the backups cannot be read",
        "critical",
        "The log of the service backup has the reason.",
        _is_zero(catalogue.BACKUP_REPOSITORY_READABLE, "unreadable", "readable"),
        optional=True,
    ),
    Condition(
        "BackupServiceDown",
        "The service backup does not report",
        "warning",
        "Start the service backup, and read its log.",
        _exceeds(catalogue.BACKUP_STATUS_AGE, BACKUP_STATUS_SECONDS, lambda age: f"{age:.0f} s ago"),
        optional=True,
    ),
    Condition(
        "WalArchiveLate",
        "WAL is not archived: with the volume, its transactions would be lost",
        "critical",
        "PostgreSQL's log has the message of pgBackRest.",
        _exceeds(catalogue.WAL_ARCHIVE_WAITING, WAL_WAITING_SECONDS, lambda age: f"{age:.0f} s"),
        optional=True,
    ),
    Condition(
        "RestoreDrillFailed",
        "The last restore drill failed",
        "critical",
        'Run "make restore-drill" again, and read its output.',
        _is_zero(catalogue.BACKUP_DRILL_SUCCESS, "failed", "succeeded"),
        optional=True,
    ),
    Condition(
        "RestoreDrillOverdue",
        "No restore drill has been run for too long",
        "warning",
        'Run "make restore-drill".',
        _exceeds(catalogue.BACKUP_DRILL_AGE, DRILL_DAYS * 86_400, lambda age: f"{age / 86_400:.0f} days ago"),
        optional=True,
    ),
)
