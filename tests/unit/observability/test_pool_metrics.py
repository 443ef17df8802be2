from itertools import product

import pytest
from prometheus_client import REGISTRY

from app import lanes
from app.database.lanes import SHED_REASONS, LaneState
from app.database.pool_events import CLOSE_REASONS, INVALIDATION_CAUSES, INVALIDATION_KINDS, PoolObserver, PoolState
from app.lanes import LaneSpec, lane_names
from app.observability.pool_metrics import PoolMetrics


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_pool_metrics_without_events_have_every_series_at_zero() -> None:
    PoolMetrics("quiet")

    for name in ("timeouts", "rejections", "connect_errors", "leaks", "waits", "checkouts"):
        assert sample(f"db_pool_{name}_total", pool="quiet") == 0
    for reason in CLOSE_REASONS:
        assert sample("db_pool_closed_total", pool="quiet", reason=reason) == 0
    for kind in INVALIDATION_KINDS:
        for cause in INVALIDATION_CAUSES:
            assert sample("db_pool_invalidations_total", pool="quiet", kind=kind, cause=cause) == 0


@pytest.mark.parametrize(
    ("event", "arguments", "expected"),
    [
        ("acquired", (0.5,), {"db_pool_checkouts_total": 1, "db_pool_wait_seconds_sum": 0.5}),
        ("released", (0.5,), {"db_pool_use_seconds_sum": 0.5}),
        ("queued", (), {"db_pool_waits_total": 1}),
        ("dequeued", (0.5,), {"db_pool_wait_blocked_seconds_total": 0.5}),
        ("timed_out", (), {"db_pool_timeouts_total": 1}),
        ("rejected", (), {"db_pool_rejections_total": 1}),
        (
            "coalesced",
            (12, 0.5),
            {
                "db_pool_coalesced_statements_total": 1,
                "db_pool_coalesced_reads_total": 12,
                "db_pool_coalesce_wait_seconds_sum": 0.5,
            },
        ),
        ("opened", (0.5,), {"db_pool_create_seconds_sum": 0.5}),
        ("open_failed", (), {"db_pool_connect_errors_total": 1}),
        ("pinged", (0.5,), {"db_pool_ping_seconds_sum": 0.5}),
        ("leaked", (), {"db_pool_leaks_total": 1}),
    ],
)
def test_pool_event_updates_its_metrics(event: str, arguments: tuple[float, ...], expected: dict[str, float]) -> None:
    pool = f"event-{event}"
    observer: PoolObserver = PoolMetrics(pool)

    getattr(observer, event)(*arguments)

    assert {name: sample(name, pool=pool) for name in expected} == expected


def test_lane_of_the_application_has_its_series_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "OWN_LANES", (LaneSpec("reports", 0.5, 10, 5.0),))
    observer = PoolMetrics("own lanes")

    observer.lane_shed("reports", "full")

    shed = {
        reason: sample("db_lane_shed_total", pool="own lanes", lane="reports", reason=reason) for reason in SHED_REASONS
    }
    assert shed == {"full": 1, "overload": 0, "timeout": 0}


def test_lanes_are_published_and_counted() -> None:
    observer = PoolMetrics("lanes")
    for lane, reason in product(lane_names(), SHED_REASONS):
        assert sample("db_lane_shed_total", pool="lanes", lane=lane, reason=reason) == 0

    observer.lane_shed("expensive", "overload")
    observer.lane_moved("expensive")
    observer.publish_lanes([LaneState("expensive", 1, 7, 0.25)], moved=2)

    expensive = {"pool": "lanes", "lane": "expensive"}
    assert sample("db_lane_shed_total", **expensive, reason="overload") == 1
    assert sample("db_lane_moves_total", pool="lanes", to="expensive") == 1
    assert sample("db_lane_moves_total", pool="lanes", to="normal") == 0
    gauges = [sample(f"db_lane_{name}", **expensive) for name in ("running", "waiting", "limit")]
    assert gauges == [1, 7, 0.25]
    assert sample("db_lane_moved_statements", pool="lanes") == 2


def test_pool_event_with_a_cause_updates_the_series_of_that_cause() -> None:
    observer = PoolMetrics("causes")

    observer.closed("surplus")
    observer.invalidated("soft", "pool")

    assert sample("db_pool_closed_total", pool="causes", reason="surplus") == 1
    assert sample("db_pool_closed_total", pool="causes", reason="recycled") == 0
    assert sample("db_pool_invalidations_total", pool="causes", kind="soft", cause="pool") == 1
    assert sample("db_pool_invalidations_total", pool="causes", kind="hard", cause="pool") == 0


def test_publish_sets_the_gauges_of_the_pool() -> None:
    PoolMetrics("gauges").publish(PoolState(size=5, max_overflow=10, idle=1, used=6, waiting=3))

    assert sample("db_pool_connections", pool="gauges", state="idle") == 1
    assert sample("db_pool_connections", pool="gauges", state="used") == 6
    assert sample("db_pool_connections_max", pool="gauges") == 15
    assert sample("db_pool_connections_idle_max", pool="gauges") == 5
    assert sample("db_pool_connections_overflow", pool="gauges") == 2
    assert sample("db_pool_pending_requests", pool="gauges") == 3
