import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from app import lanes
from app.budget.model import Inequality, Term
from app.exporter.scraper import family
from app.exporter.status import conditions, live_status
from app.exporter.status.live_status import LiveStatus, lane_rows, segments
from app.exporter.status.snapshot import Snapshot
from app.lanes import LaneSpec
from app.observability import catalogue


def test_snapshots_keep_the_metrics_of_every_condition() -> None:
    """A condition without its metric stays unknown, and the page hides it."""
    names = set(re.findall(r"catalogue\.([A-Z_]+)\b", Path(conditions.__file__).read_text()))
    specs = [spec for name in names if isinstance(spec := getattr(catalogue, name), catalogue.MetricSpec)]

    assert len(specs) > 30
    assert {spec.name.removesuffix("_total") for spec in specs} <= live_status._KEPT


async def test_page_is_updated_again_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(live_status, "INTERVAL_SECONDS", 0.01)
    updated = asyncio.Event()
    outcomes: list[Exception | None] = [ValueError("first"), ValueError("second"), None, ValueError("third"), None]

    class Status(LiveStatus):
        async def update(self) -> None:
            if not outcomes:
                updated.set()
            elif error := outcomes.pop(0):
                raise error

    arguments: Any = (None, None)
    running = asyncio.create_task(Status(*arguments).run())
    async with asyncio.timeout(60):
        await updated.wait()
    running.cancel()

    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["first", "third"]


def snapshot(used: int, idle: int, overflow: int) -> Snapshot:
    return Snapshot.of(
        0,
        [
            family(
                catalogue.POOL_CONNECTIONS,
                [
                    ({"pool": "api", "state": "used"}, used),
                    ({"pool": "api", "state": "idle"}, idle),
                    ({"pool": "read", "state": "used"}, 1000),
                ],
            ),
            family(catalogue.POOL_CONNECTIONS_IDLE_MAX, [({"pool": "api"}, used - overflow if overflow else 100)]),
        ],
    )


def limit(demand: int, supply: int) -> Inequality:
    return Inequality("server connections", [Term("api", demand)], [Term("max", supply + 8), Term("reserved", -8)])


@pytest.mark.parametrize("observed", [None, 0, 12, 70, 97])
@pytest.mark.parametrize(("used", "idle", "overflow"), [(0, 0, 0), (3, 7, 0), (30, 0, 10), (60, 0, 40)])
@pytest.mark.parametrize(("demand", "supply"), [(64, 92), (92, 92), (120, 92), (64, 40)])
def test_segments_of_a_limit_count_each_connection_once(
    demand: int, supply: int, used: int, idle: int, overflow: int, observed: int | None
) -> None:
    parts = {
        segment["key"]: segment["connections"]
        for segment in segments(snapshot(used, idle, overflow), limit(demand, supply), observed)
    }

    assert min(parts.values()) >= 0
    assert (parts["used"], parts["overflow"]) == (used - overflow, overflow)
    assert parts["idle"] == idle
    open_now = max(used + idle, observed or 0)
    assert parts["used"] + parts["overflow"] + parts["idle"] + parts["other"] == open_now
    assert sum(parts.values()) == max(supply, demand, open_now) + parts["reserved"]
    assert parts["reserved"] == 8


def test_lane_of_the_application_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "OWN_LANES", (LaneSpec("reports", 0.5, 10, 5.0),))
    running = [({"lane": "normal"}, 3), ({"lane": "reports"}, 1)]

    rows = lane_rows([Snapshot.of(0, [family(catalogue.LANE_RUNNING, running)])])

    assert [(row["name"], row["running"]) for row in rows] == [
        ("critical", 0),
        ("normal", 3),
        ("expensive", 0),
        ("reports", 1),
    ]


def test_segments_of_the_read_server_count_the_pool_to_the_standby() -> None:
    limit = Inequality("read server connections", [Term("reads", 2000)], [Term("max", 3000)])

    found = segments(snapshot(used=3, idle=7, overflow=0), limit, None)

    parts = {segment["key"]: segment["connections"] for segment in found if segment["connections"]}
    assert parts == {"used": 1000, "not_open": 1000, "free": 1000}
