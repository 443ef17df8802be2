import pytest
from prometheus_client import Metric

from app.exporter.scraper import family
from app.exporter.status.conditions import CONDITIONS, Evaluation
from app.exporter.status.snapshot import Snapshot
from app.observability import catalogue
from app.observability.catalogue import MetricSpec

# A value, or one for the first half of the snapshots and one for the second half.
Value = float | tuple[float, float]
Series = tuple[MetricSpec, tuple[tuple[str, str], ...]]
Samples = dict[Series, Value]


def snapshots(samples: Samples, seconds: float) -> list[Snapshot]:
    """Return ten snapshots that cover `seconds`."""
    result = []
    for number in range(10):
        metrics: list[Metric] = []
        for (spec, labels), value in samples.items():
            now = value if isinstance(value, float | int) else value[0 if number < 5 else 1]
            metrics.append(family(spec, [(dict(labels), now)]))
        result.append(Snapshot.of(1000 + number * seconds / 9, metrics))
    return result


def series(spec: MetricSpec, **labels: str) -> Series:
    return spec, tuple(labels.items())


def budget(supply: float, observed: float, headroom: float = 1) -> Samples:
    labels = {"limit": "server connections"}
    return {
        series(catalogue.BUDGET_SUPPLY, **labels): supply,
        series(catalogue.BUDGET_OBSERVED, **labels): observed,
        series(catalogue.BUDGET_HEADROOM, **labels): headroom,
    }


def pool(used: float, maximum: float = 100) -> Samples:
    return {
        series(catalogue.POOL_CONNECTIONS_MAX, replica="a"): maximum,
        series(catalogue.POOL_CONNECTIONS, replica="a", state="used"): used,
    }


def counter(spec: MetricSpec, before: float, after: float) -> Samples:
    return {series(spec, replica="a"): (before, after)}


def waits(below: float) -> Samples:
    """Return 100 waits of at most 1 s, of which `below` take at most 0.5 s."""
    bucket = MetricSpec(f"{catalogue.POOL_WAIT.name}_bucket", "gauge", "")
    return {
        series(bucket, le="0.5"): (0, below),
        series(bucket, le="1.0"): (0, 100),
        series(bucket, le="+Inf"): (0, 100),
    }


def starts(number: float) -> Samples:
    """Return a replica of four workers in which `number` more were started."""
    workers: Samples = {series(catalogue.WORKER_START_TIME, replica="a", worker=str(worker)): 1 for worker in range(4)}
    return workers | {series(catalogue.WORKER_STARTS, replica="a"): (4, 4 + number)}


def connections(on_server: Value, in_pools: Value) -> Samples:
    return {
        series(catalogue.SERVER_UP): 1,
        series(catalogue.SERVER_CONNECTIONS, application="headroom:api", role="app"): on_server,
        series(catalogue.POOL_CONNECTIONS, replica="a", state="idle"): in_pools,
    }


def sheds(before: float, after: float) -> Samples:
    return {
        series(catalogue.LANE_SHED, replica="a", lane="expensive", reason="full"): (before, after),
        series(catalogue.LANE_SHED, replica="a", lane="normal", reason="full"): (7, 7),
    }


def backup_ages(full: float, any_type: float) -> Samples:
    return {
        series(catalogue.BACKUP_AGE, type="full"): full,
        series(catalogue.BACKUP_AGE, type="any"): any_type,
        series(catalogue.BACKUP_INTERVAL, type="full"): 100,
        series(catalogue.BACKUP_INTERVAL, type="any"): 10,
    }


def backup_window(window: float) -> Samples:
    return {
        series(catalogue.BACKUP_WINDOW): window,
        series(catalogue.BACKUP_RETENTION): 1000,
        series(catalogue.BACKUP_INTERVAL, type="any"): 10,
        series(catalogue.BACKUP_INTERVAL, type="full"): 100,
    }


def standby(up: tuple[int, int] = (1, 1), lag: float = 0) -> Samples:
    """Return what the two workers of a replica report of its standby."""
    found: Samples = {}
    for number, is_up in enumerate(up):
        worker = {"replica": "a", "worker": str(number)}
        found[series(catalogue.READ_STANDBY_UP, **worker)] = is_up
        found[series(catalogue.READ_LAG, **worker)] = lag + number
        found[series(catalogue.READ_LAG_LIMIT, **worker)] = 10
    return found


# For each condition: samples just beyond its threshold, and samples at it.
CASES: dict[str, tuple[Samples, Samples]] = {
    "HeadroomLow": (budget(100, 91), budget(100, 90)),
    "OverBudget": (budget(100, 1, headroom=-1), budget(100, 1, headroom=0)),
    "PoolSaturated": (pool(91), pool(90)),
    "PoolWaitSlow": (waits(98), waits(99)),
    "PoolTimeouts": (counter(catalogue.POOL_TIMEOUTS, 7, 8), counter(catalogue.POOL_TIMEOUTS, 7, 7)),
    "PoolRejections": (counter(catalogue.POOL_REJECTIONS, 7, 8), counter(catalogue.POOL_REJECTIONS, 7, 7)),
    "LaneSheds": (sheds(3, 4), sheds(3, 3)),
    "PoolConnectErrors": (counter(catalogue.POOL_CONNECT_ERRORS, 0, 1), counter(catalogue.POOL_CONNECT_ERRORS, 1, 1)),
    "PoolLeakSuspects": (counter(catalogue.POOL_LEAKS, 0, 1), counter(catalogue.POOL_LEAKS, 1, 1)),
    "WorkerFlapping": (starts(9), starts(8)),
    "ViewsDisagree": (connections(11, 10), connections((11, 9), 10)),
    "ServerDown": ({series(catalogue.SERVER_UP): 0}, {series(catalogue.SERVER_UP): 1}),
    "CollectorFailing": (
        {series(catalogue.COLLECTOR_SUCCESS, collector="server"): 0},
        {series(catalogue.COLLECTOR_SUCCESS, collector="server"): 1},
    ),
    "StandbyLost": (standby(up=(0, 0)), standby(up=(0, 1))),
    "StandbyLagging": (standby(lag=10.1), standby(lag=10)),
    "MigrationPending": ({series(catalogue.MIGRATIONS_PENDING): 1}, {series(catalogue.MIGRATIONS_PENDING): 0}),
    "SchemaIncompatible": (
        {series(catalogue.MIGRATIONS_AHEAD): 1, series(catalogue.SCHEMA_COMPATIBLE): 0},
        {series(catalogue.MIGRATIONS_AHEAD): 1, series(catalogue.SCHEMA_COMPATIBLE): 1},
    ),
    "BackupMissing": ({series(catalogue.BACKUPS): 0}, {series(catalogue.BACKUPS): 1}),
    "BackupTooOld": (backup_ages(full=200, any_type=21), backup_ages(full=200, any_type=20)),
    "BackupDamaged": ({series(catalogue.BACKUPS_DAMAGED): 1}, {series(catalogue.BACKUPS_DAMAGED): 0}),
    "BackupRetentionExceeded": (backup_window(1201), backup_window(1200)),
    "BackupRepositoryUnreadable": (
        {series(catalogue.BACKUP_REPOSITORY_READABLE): 0},
        {series(catalogue.BACKUP_REPOSITORY_READABLE): 1},
    ),
    "BackupServiceDown": ({series(catalogue.BACKUP_STATUS_AGE): 121}, {series(catalogue.BACKUP_STATUS_AGE): 120}),
    "WalArchiveLate": ({series(catalogue.WAL_ARCHIVE_WAITING): 121}, {series(catalogue.WAL_ARCHIVE_WAITING): 120}),
    "RestoreDrillFailed": (
        {series(catalogue.BACKUP_DRILL_SUCCESS): 0},
        {series(catalogue.BACKUP_DRILL_SUCCESS): 1},
    ),
    "RestoreDrillOverdue": (
        {series(catalogue.BACKUP_DRILL_AGE): 35 * 86_400 + 1},
        {series(catalogue.BACKUP_DRILL_AGE): 35 * 86_400},
    ),
}


def evaluate(name: str, samples: Samples, seconds: float = 150) -> Evaluation:
    [condition] = [condition for condition in CONDITIONS if condition.name == name]
    return condition.evaluate(snapshots(samples, seconds))


def test_conditions_have_a_case() -> None:
    assert CASES.keys() == {condition.name for condition in CONDITIONS}


@pytest.mark.parametrize("name", CASES)
def test_condition_fires_beyond_its_threshold_and_not_at_it(name: str) -> None:
    beyond, at_threshold = CASES[name]

    assert evaluate(name, beyond).state == "firing"
    assert evaluate(name, at_threshold).state == "ok"


@pytest.mark.parametrize(
    "name",
    [
        "HeadroomLow",
        "OverBudget",
        "PoolSaturated",
        "ViewsDisagree",
        "ServerDown",
        *(condition.name for condition in CONDITIONS if condition.optional),
    ],
)
def test_condition_without_samples_is_unknown(name: str) -> None:
    assert evaluate(name, {}).state == "unknown"


def test_headroom_low_says_how_much_is_open() -> None:
    assert evaluate("HeadroomLow", budget(100, 91)).value == "91% of the limit is open"


def test_lag_of_a_lost_standby_is_unknown() -> None:
    """StandbyLost fires for it."""
    assert evaluate("StandbyLagging", standby(up=(0, 0), lag=1000)).state == "unknown"


def test_schema_incompatible_names_the_direction() -> None:
    behind: Samples = {series(catalogue.MIGRATIONS_AHEAD): 0, series(catalogue.SCHEMA_COMPATIBLE): 0}
    ahead: Samples = {series(catalogue.MIGRATIONS_AHEAD): 2, series(catalogue.SCHEMA_COMPATIBLE): 1}

    assert evaluate("SchemaIncompatible", behind) == Evaluation("ok", "not ahead of this release")
    assert evaluate("SchemaIncompatible", ahead) == Evaluation("ok", "2 ahead, compatible")


def test_views_disagree_fires_only_after_two_minutes() -> None:
    assert evaluate("ViewsDisagree", connections(11, 10), seconds=100).state == "ok"


def test_views_disagree_is_unknown_to_an_exporter_of_the_server_alone() -> None:
    def success(collector: str) -> Samples:
        return {series(catalogue.COLLECTOR_SUCCESS, collector=collector): 1}

    samples = connections(11, 10) | success("server")

    assert evaluate("ViewsDisagree", samples).state == "unknown"
    assert evaluate("ViewsDisagree", samples | success("replicas")).state == "firing"


def test_views_disagree_behind_pgbouncer_compares_its_clients() -> None:
    samples = connections(3, 10) | {
        series(catalogue.PGBOUNCER_UP): 1,
        series(catalogue.PGBOUNCER_CLIENTS, user="app", state="active"): 10,
    }

    assert evaluate("ViewsDisagree", samples) == Evaluation("ok", "no difference")
