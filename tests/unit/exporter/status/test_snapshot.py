import pytest
from prometheus_client import Metric

from app.exporter.scraper import family
from app.exporter.status.snapshot import Snapshot, increase, quantiles
from app.observability.catalogue import POOL_CHECKOUTS, POOL_CONNECTIONS, POOL_WAIT


def checkouts(time: float, **by_replica: float) -> Snapshot:
    return Snapshot.of(
        time, [family(POOL_CHECKOUTS, [({"replica": name}, value) for name, value in by_replica.items()])]
    )


def waits(time: float, **cumulative: float) -> Snapshot:
    """Return a snapshot of a histogram with the buckets 0.1 s, 1 s and infinity."""
    metric = Metric(POOL_WAIT.name, POOL_WAIT.help, "histogram")
    for bound, count in zip(("0.1", "1.0", "+Inf"), cumulative.values(), strict=True):
        metric.add_sample(f"{POOL_WAIT.name}_bucket", {"le": bound}, count)
    return Snapshot.of(time, [metric])


def test_total_is_the_sum_of_the_selected_samples() -> None:
    samples = [({"replica": "a", "state": "used"}, 1), ({"replica": "b", "state": "used"}, 2), ({"state": "idle"}, 4)]
    snapshot = Snapshot.of(0, [family(POOL_CONNECTIONS, samples)])

    assert snapshot.total(POOL_CONNECTIONS) == 7
    assert snapshot.total(POOL_CONNECTIONS, state="used") == 3
    assert snapshot.total(POOL_CHECKOUTS) == 0
    assert snapshot.value(POOL_CHECKOUTS) is None


def test_increase_handles_replicas_that_restart_appear_and_disappear() -> None:
    snapshots = [checkouts(0, a=10, b=5), checkouts(1, a=15, b=2), checkouts(2, a=15, c=3), checkouts(3, c=4)]

    assert increase(snapshots, POOL_CHECKOUTS) == 5 + 2 + 3 + 1
    assert increase(snapshots, POOL_CHECKOUTS, replica="a") == 5
    assert increase(snapshots[:1], POOL_CHECKOUTS) == 0


def test_quantile_is_interpolated_within_its_bucket() -> None:
    snapshots = [waits(0, a=100, b=100, c=100), waits(1, a=150, b=200, c=200)]

    assert quantiles(snapshots, POOL_WAIT, 0.25, 0.5, 0.75) == [
        pytest.approx(0.05),
        pytest.approx(0.1),
        pytest.approx(0.55),
    ]


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert quantiles([waits(0, a=0, b=0, c=0), waits(1, a=0, b=0, c=9)], POOL_WAIT, 0.5) == [1.0]


def test_quantile_without_observations_is_none() -> None:
    assert quantiles([waits(0, a=1, b=1, c=1), waits(1, a=1, b=1, c=1)], POOL_WAIT, 0.5) == [None]
    assert quantiles([], POOL_WAIT, 0.5) == [None]
