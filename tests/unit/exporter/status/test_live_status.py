"""The document of the live page."""

import pytest

from app.budget.model import Inequality, Term
from app.exporter.scraper import many
from app.exporter.status.live_status import segments
from app.exporter.status.snapshot import View
from app.observability import catalogue


def view(used: int, idle: int, overflow: int) -> View:
    return View.of(
        0,
        [
            many(catalogue.POOL_CONNECTIONS, [({"state": "used"}, used), ({"state": "idle"}, idle)]),
            many(catalogue.POOL_CONNECTIONS_IDLE_MAX, [({}, used - overflow if overflow else 100)]),
        ],
    )


def limit(demand: int, supply: int) -> Inequality:
    return Inequality("server connections", [Term("api", demand)], [Term("max", supply + 8), Term("reserved", -8)])


@pytest.mark.parametrize("observed", [None, 0, 12, 70, 97])
@pytest.mark.parametrize(("used", "idle", "overflow"), [(0, 0, 0), (3, 7, 0), (30, 0, 10), (60, 0, 40)])
@pytest.mark.parametrize(("demand", "supply"), [(64, 92), (92, 92), (120, 92), (64, 40)])
def test_the_picture_of_a_limit_leaves_nothing_out_and_counts_nothing_twice(
    demand: int, supply: int, used: int, idle: int, overflow: int, observed: int | None
) -> None:
    parts = {
        part["key"]: part["connections"]
        for part in segments(view(used, idle, overflow), limit(demand, supply), observed)
    }

    assert min(parts.values()) >= 0
    assert (parts["used"], parts["overflow"]) == (used - overflow, overflow)
    assert parts["idle"] == idle
    opened = max(used + idle, observed or 0)
    assert parts["used"] + parts["overflow"] + parts["idle"] + parts["other"] == opened
    assert sum(parts.values()) == max(supply, demand, opened) + parts["reserved"]
    assert parts["reserved"] == 8
