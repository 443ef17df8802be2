"""Arithmetic on scrapes: as Prometheus would do it."""

import pytest
from prometheus_client import Metric

from app.exporter.scraper import many
from app.exporter.status.snapshot import View, increase, quantiles
from app.observability.catalogue import POOL_CHECKOUTS, POOL_CONNECTIONS, POOL_WAIT


def checkouts(time: float, **by_replica: float) -> View:
    return View.of(time, [many(POOL_CHECKOUTS, [({"replica": name}, value) for name, value in by_replica.items()])])


def waits(time: float, **cumulative: float) -> View:
    """Buckets of 0.1 s, 1 s and infinity."""
    metric = Metric(POOL_WAIT.name, POOL_WAIT.help, "histogram")
    for bound, count in zip(("0.1", "1.0", "+Inf"), cumulative.values(), strict=True):
        metric.add_sample(f"{POOL_WAIT.name}_bucket", {"le": bound}, count)
    return View.of(time, [metric])


def test_a_total_is_the_sum_of_what_has_the_labels() -> None:
    samples = [({"replica": "a", "state": "used"}, 1), ({"replica": "b", "state": "used"}, 2), ({"state": "idle"}, 4)]
    view = View.of(0, [many(POOL_CONNECTIONS, samples)])

    assert view.total(POOL_CONNECTIONS) == 7
    assert view.total(POOL_CONNECTIONS, state="used") == 3
    assert view.total(POOL_CHECKOUTS) == 0
    assert view.value(POOL_CHECKOUTS) is None


def test_an_increase_adds_up_over_replicas_that_start_anew_come_and_go() -> None:
    views = [checkouts(0, a=10, b=5), checkouts(1, a=15, b=2), checkouts(2, a=15, c=3), checkouts(3, c=4)]

    assert increase(views, POOL_CHECKOUTS) == 5 + 2 + 3 + 1
    assert increase(views, POOL_CHECKOUTS, replica="a") == 5
    assert increase(views[:1], POOL_CHECKOUTS) == 0


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    views = [waits(0, a=100, b=100, c=100), waits(1, a=150, b=200, c=200)]

    assert quantiles(views, POOL_WAIT, 0.25, 0.5, 0.75) == [
        pytest.approx(0.05),
        pytest.approx(0.1),
        pytest.approx(0.55),
    ]


def test_what_is_beyond_the_last_bound_is_at_least_that() -> None:
    assert quantiles([waits(0, a=0, b=0, c=0), waits(1, a=0, b=0, c=9)], POOL_WAIT, 0.5) == [1.0]


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantiles([waits(0, a=1, b=1, c=1), waits(1, a=1, b=1, c=1)], POOL_WAIT, 0.5) == [None]
    assert quantiles([], POOL_WAIT, 0.5) == [None]
