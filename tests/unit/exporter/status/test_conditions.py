"""Each condition of the page, just beyond and just within its threshold."""

from collections.abc import Callable, Sequence

import pytest
from prometheus_client import Metric

from app.exporter.scraper import many
from app.exporter.status.conditions import CONDITIONS
from app.exporter.status.snapshot import View
from app.observability import catalogue
from app.observability.catalogue import Described

Value = float | tuple[float, ...]
Story = dict[tuple[Described, tuple[tuple[str, str], ...]], Value]


def views(story: Story, seconds: float = 150) -> list[View]:
    """Ten views; a value that is a pair goes from the one to the other in the middle."""
    result = []
    for number in range(10):
        metrics: list[Metric] = []
        for (described, labels), value in story.items():
            now = value if isinstance(value, float | int) else value[0 if number < 5 else 1]
            metrics.append(many(described, [(dict(labels), now)]))
        result.append(View.of(1000 + number * seconds / 9, metrics))
    return result


def at(described: Described, **labels: str) -> tuple[Described, tuple[tuple[str, str], ...]]:
    return described, tuple(labels.items())


def budget(supply: float, observed: float, headroom: float = 1) -> Story:
    labels = {"limit": "server connections"}
    return {
        at(catalogue.BUDGET_SUPPLY, **labels): supply,
        at(catalogue.BUDGET_OBSERVED, **labels): observed,
        at(catalogue.BUDGET_HEADROOM, **labels): headroom,
    }


def pool(used: float, most: float = 100) -> Story:
    return {
        at(catalogue.POOL_CONNECTIONS_MAX, replica="a"): most,
        at(catalogue.POOL_CONNECTIONS, replica="a", state="used"): used,
    }


def counted(described: Described, *values: float) -> Story:
    return {at(described, replica="a"): values}


def wait(below: float) -> Story:
    """A hundred waits, of which so many are shorter than half a second and none longer than one."""
    name = Described(f"{catalogue.POOL_WAIT.name}_bucket", "gauge", "")
    return {
        at(name, le="0.5"): (0, below),
        at(name, le="1.0"): (0, 100),
        at(name, le="+Inf"): (0, 100),
    }


def starts(number: float) -> Story:
    workers: Story = {at(catalogue.WORKER_START_TIME, replica="a", worker=str(worker)): 1 for worker in range(4)}
    return workers | {at(catalogue.WORKER_STARTS, replica="a"): (4, 4 + number)}


def counts(on_server: Value, in_pools: Value) -> Story:
    return {
        at(catalogue.SERVER_UP): 1,
        at(catalogue.SERVER_CONNECTIONS, application="headroom:api", role="app"): on_server,
        at(catalogue.POOL_CONNECTIONS, replica="a", state="idle"): in_pools,
    }


CASES: dict[str, tuple[Story, Story]] = {
    "HeadroomLow": (budget(100, 91), budget(100, 90)),
    "OverBudget": (budget(100, 1, headroom=-1), budget(100, 1, headroom=0)),
    "PoolSaturated": (pool(91), pool(90)),
    "PoolWaitSlow": (wait(98), wait(99)),
    "PoolTimeouts": (counted(catalogue.POOL_TIMEOUTS, 7, 8), counted(catalogue.POOL_TIMEOUTS, 7, 7)),
    "PoolRejections": (counted(catalogue.POOL_REJECTIONS, 7, 8), counted(catalogue.POOL_REJECTIONS, 7, 7)),
    "PoolConnectErrors": (counted(catalogue.POOL_CONNECT_ERRORS, 0, 1), counted(catalogue.POOL_CONNECT_ERRORS, 1, 1)),
    "PoolLeakSuspects": (counted(catalogue.POOL_LEAKS, 0, 1), counted(catalogue.POOL_LEAKS, 1, 1)),
    "WorkerFlapping": (starts(9), starts(8)),
    "ViewsDisagree": (counts(11, 10), counts((11, 9), 10)),
    "ServerDown": ({at(catalogue.SERVER_UP): 0}, {at(catalogue.SERVER_UP): 1}),
    "CollectorFailing": (
        {at(catalogue.COLLECTOR_SUCCESS, collector="server"): 0},
        {at(catalogue.COLLECTOR_SUCCESS, collector="server"): 1},
    ),
    "MigrationPending": ({at(catalogue.MIGRATIONS_PENDING): 1}, {at(catalogue.MIGRATIONS_PENDING): 0}),
}


def look(name: str) -> Callable[[Sequence[View]], tuple[str, str]]:
    [condition] = [condition for condition in CONDITIONS if condition.name == name]
    return condition.look


def test_every_condition_has_a_case() -> None:
    assert CASES.keys() == {condition.name for condition in CONDITIONS}


@pytest.mark.parametrize("name", CASES)
def test_a_condition_fires_beyond_its_threshold_and_is_quiet_at_it(name: str) -> None:
    beyond, at_it = CASES[name]

    assert look(name)(views(beyond))[0] == "firing"
    assert look(name)(views(at_it))[0] == "ok"


@pytest.mark.parametrize("name", ["HeadroomLow", "OverBudget", "PoolSaturated", "ViewsDisagree", "ServerDown"])
def test_what_nobody_can_tell_is_unknown(name: str) -> None:
    assert look(name)(views({}))[0] == "unknown"


def test_views_disagree_only_when_they_have_for_two_minutes() -> None:
    assert look("ViewsDisagree")(views(counts(11, 10), seconds=100))[0] == "ok"


def test_behind_pgbouncer_the_pools_are_compared_with_its_clients() -> None:
    story = counts(3, 10) | {
        at(catalogue.PGBOUNCER_UP): 1,
        at(catalogue.PGBOUNCER_CLIENTS, user="app", state="active"): 10,
    }

    assert look("ViewsDisagree")(views(story)) == ("ok", "+0 connections")
