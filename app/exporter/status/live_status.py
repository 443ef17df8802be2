"""The document behind the live page, computed from the snapshots of the last minutes."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from app.budget.model import Inequality
from app.database.pool_events import IDLE, USED
from app.exporter.collectors.budget import BudgetCollector
from app.exporter.scraper import CollectorResult, Scraper
from app.exporter.status.conditions import CONDITIONS, disagreement, since
from app.exporter.status.snapshot import Snapshot, increase, quantiles
from app.lanes import lane_names
from app.observability import catalogue
from app.observability.catalogue import MetricSpec

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
KEEP_SECONDS = 900.0  # the longest window of a condition
HISTORY_SECONDS = 600.0
# The window for current rates and quantiles.
CURRENT_SECONDS = 30.0

_DURATIONS = {
    "wait": catalogue.POOL_WAIT,
    "use": catalogue.POOL_USE,
    "coalesce": catalogue.POOL_COALESCE_WAIT,
    "create": catalogue.POOL_CREATE,
    "ping": catalogue.POOL_PING,
}
# The metrics that a snapshot keeps. A scrape has hundreds of other series.
_KEPT = frozenset(
    spec.name.removesuffix("_total")
    for spec in (
        *_DURATIONS.values(),
        catalogue.POOL_CONNECTIONS,
        catalogue.POOL_CONNECTIONS_MAX,
        catalogue.POOL_CONNECTIONS_IDLE_MAX,
        catalogue.POOL_CONNECTIONS_OVERFLOW,
        catalogue.POOL_PENDING_REQUESTS,
        catalogue.POOL_CHECKOUTS,
        catalogue.LANE_RUNNING,
        catalogue.LANE_WAITING,
        catalogue.LANE_LIMIT,
        catalogue.LANE_SHED,
        catalogue.LANE_MOVED,
        catalogue.POOL_COALESCED_READS,
        catalogue.POOL_COALESCED_STATEMENTS,
        catalogue.POOL_COALESCED_WRITES,
        catalogue.POOL_COALESCED_WRITE_STATEMENTS,
        catalogue.POOL_TIMEOUTS,
        catalogue.POOL_REJECTIONS,
        catalogue.POOL_CONNECT_ERRORS,
        catalogue.POOL_LEAKS,
        catalogue.READ_STANDBY_UP,
        catalogue.READ_LAG,
        catalogue.READ_LAG_LIMIT,
        catalogue.HTTP_REQUESTS,
        catalogue.HTTP_IN_FLIGHT,
        catalogue.WORKER_STARTS,
        catalogue.WORKER_START_TIME,
        catalogue.WORKER_MEMORY,
        catalogue.BUDGET_SUPPLY,
        catalogue.BUDGET_OBSERVED,
        catalogue.BUDGET_HEADROOM,
        catalogue.SERVER_UP,
        catalogue.SERVER_CONNECTIONS,
        catalogue.MIGRATIONS_PENDING,
        catalogue.MIGRATIONS_AHEAD,
        catalogue.SCHEMA_COMPATIBLE,
        catalogue.WAL_ARCHIVE_WAITING,
        catalogue.BACKUP_REPOSITORY_READABLE,
        catalogue.BACKUP_STATUS_AGE,
        catalogue.BACKUPS,
        catalogue.BACKUPS_DAMAGED,
        catalogue.BACKUP_AGE,
        catalogue.BACKUP_INTERVAL,
        catalogue.BACKUP_WINDOW,
        catalogue.BACKUP_RETENTION,
        catalogue.BACKUP_DRILL_AGE,
        catalogue.BACKUP_DRILL_SUCCESS,
        catalogue.PGBOUNCER_UP,
        catalogue.PGBOUNCER_CLIENTS,
        catalogue.COLLECTOR_SUCCESS,
    )
)


class Point(NamedTuple):
    """One point of the charts. Rates and the quantile cover the time since the previous point."""

    time: float
    used: int
    open: int
    pending: int
    checkouts_per_second: float | None
    http_per_second: float | None
    wait_p99: float | None


class LiveStatus:
    """Scrapes every INTERVAL_SECONDS, independently of Prometheus, so that a newly opened page has a history."""

    def __init__(self, scraper: Scraper, budget: BudgetCollector) -> None:
        self._scraper = scraper
        self._budget = budget
        self._snapshots: deque[Snapshot] = deque(maxlen=int(KEEP_SECONDS / INTERVAL_SECONDS))
        self._history: deque[Point] = deque(maxlen=int(HISTORY_SECONDS / INTERVAL_SECONDS))
        self.document: dict[str, Any] = {"time": None, "interval": INTERVAL_SECONDS, "version": version("headroom")}

    async def run(self) -> None:
        """Update the document until cancelled. Go on after an error, which is logged once in a row."""
        failed = False
        while True:
            started = time.monotonic()
            try:
                await self.update()
            except Exception:
                if not failed:
                    logger.exception("cannot update the live page; next attempt in %g s", INTERVAL_SECONDS)
                failed = True
            else:
                failed = False
            await asyncio.sleep(max(0.0, INTERVAL_SECONDS - (time.monotonic() - started)))

    async def update(self) -> None:
        """Take a snapshot and compute the document, once for all pages that request it."""
        scrape = await self._scraper.scrape()
        snapshot = Snapshot.of(time.time(), (metric for metric in scrape.collect() if metric.name in _KEPT))
        self._history.append(_point(self._snapshots[-1] if self._snapshots else None, snapshot))
        self._snapshots.append(snapshot)
        self.document = self._document(list(self._snapshots), scrape.results)

    def _document(self, snapshots: Sequence[Snapshot], results: Sequence[CollectorResult]) -> dict[str, Any]:
        """Return the document. Unknown numbers are null."""
        now, recent = snapshots[-1], since(snapshots, CURRENT_SECONDS)
        report = self._budget.report
        return {
            "time": now.time,
            "interval": INTERVAL_SECONDS,
            "version": version("headroom"),
            "collectors": [
                {"name": result.collector, "success": result.failure is None, "seconds": result.seconds}
                for result in results
            ],
            "limits": [self._limit(now, limit) for limit in report.budget.inequalities],
            "remarks": [*report.remarks, *report.budget.warnings],
            "pools": _pools(now),
            "server": _server(now),
            "workers": _workers(now),
            "durations": [_duration(recent, key, spec) for key, spec in _DURATIONS.items()],
            "lanes": lane_rows(recent),
            "moved_statements": _total(now, catalogue.LANE_MOVED),
            "coalescing": {
                "reads_per_second": _rate(recent, catalogue.POOL_COALESCED_READS),
                "statements_per_second": _rate(recent, catalogue.POOL_COALESCED_STATEMENTS),
                "writes_per_second": _rate(recent, catalogue.POOL_COALESCED_WRITES),
                "write_statements_per_second": _rate(recent, catalogue.POOL_COALESCED_WRITE_STATEMENTS),
            },
            "history": {field: [getattr(point, field) for point in self._history] for field in Point._fields},
            "conditions": [
                {
                    "name": condition.name,
                    "summary": condition.summary,
                    "severity": condition.severity,
                    "state": evaluation.state,
                    "value": evaluation.value,
                    "next_step": condition.next_step,
                }
                for condition in CONDITIONS
                for evaluation in [condition.evaluate(snapshots)]
                if not (condition.optional and evaluation.state == "unknown")
            ],
        }

    def _limit(self, now: Snapshot, limit: Inequality) -> dict[str, Any]:
        observed = self._budget.observed.get(limit.name)
        return {
            "name": limit.name,
            "ok": limit.headroom >= 0,
            "demand": limit.demand,
            "supply": limit.supply,
            "headroom": limit.headroom,
            "observed": observed,
            "total": limit.supply + _reserved(limit),
            "segments": segments(now, limit, observed),
            "terms": [
                {"name": term.name, "connections": term.connections} for term in (*limit.demanded, *limit.supplied)
            ],
            "formula": "; ".join(term.formula for term in limit.demanded if term.formula),
        }


def _reserved(limit: Inequality) -> int:
    return -sum(term.connections for term in limit.supplied if term.connections < 0)


def segments(now: Snapshot, limit: Inequality, observed: int | None) -> list[dict[str, Any]]:
    """Return the parts of a limit's bar, in connections.

    Their sum is the supply and the reserved connections, or more if the demand or the open connections exceed them.
    """
    used = overflow = idle = 0
    for term, pool in (("api", catalogue.PRIMARY_POOL), ("reads", catalogue.READ_POOL)):
        if any(demanded.name == term for demanded in limit.demanded):  # the limit counts this pool's connections
            idle = _total(now, catalogue.POOL_CONNECTIONS, state=IDLE, pool=pool)
            overflow = _used_overflow(now, pool)
            used = _total(now, catalogue.POOL_CONNECTIONS, state=USED, pool=pool) - overflow
    in_pools = used + overflow + idle
    # At least 0: server and pools are not read at the same moment, so the pools may count more.
    other = max(0, (observed or 0) - in_pools)
    not_open = max(0, limit.demand - in_pools - other)
    free = max(0, limit.supply - in_pools - other - not_open)
    numbers = {
        "used": used,
        "overflow": overflow,
        "idle": idle,
        "other": other,
        "not_open": not_open,
        "free": free,
        "reserved": _reserved(limit),
    }
    return [{"key": key, "connections": number} for key, number in numbers.items()]


def _used_overflow(now: Snapshot, pool: str) -> int:
    """Return the number of used connections beyond the size of their pool. Idle ones beyond it count as idle."""
    overflow = 0
    for labels, used in now.select(catalogue.POOL_CONNECTIONS, state=USED, pool=pool):
        pool_labels = {name: value for name, value in labels.items() if name != "state"}
        size = now.value(catalogue.POOL_CONNECTIONS_IDLE_MAX, **pool_labels)
        overflow += max(0, round(used - size)) if size is not None else 0
    return overflow


def _total(now: Snapshot, spec: MetricSpec, **labels: str) -> int:
    return round(now.total(spec, **labels))


def _pools(now: Snapshot) -> dict[str, int]:
    return {
        "used": _total(now, catalogue.POOL_CONNECTIONS, state=USED),
        "idle": _total(now, catalogue.POOL_CONNECTIONS, state=IDLE),
        "overflow": _total(now, catalogue.POOL_CONNECTIONS_OVERFLOW),
        "pending": _total(now, catalogue.POOL_PENDING_REQUESTS),
        "max": _total(now, catalogue.POOL_CONNECTIONS_MAX),
        "size": _total(now, catalogue.POOL_CONNECTIONS_IDLE_MAX),
    }


def lane_rows(snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """Return what runs, waits and was refused in each lane, those of the application included."""
    return [_lane(snapshots, name) for name in lane_names()]


def _lane(snapshots: Sequence[Snapshot], name: str) -> dict[str, Any]:
    now = snapshots[-1]
    seconds = now.time - snapshots[0].time
    shed = increase(snapshots, catalogue.LANE_SHED, lane=name)
    return {
        "name": name,
        "running": _total(now, catalogue.LANE_RUNNING, lane=name),
        "waiting": _total(now, catalogue.LANE_WAITING, lane=name),
        "limit": round(now.total(catalogue.LANE_LIMIT, lane=name), 2),
        "shed_per_second": shed / seconds if seconds else 0.0,
    }


def _workers(now: Snapshot) -> list[dict[str, Any]]:
    """Return a row for each worker. Its connections are those of all its pools."""
    rows = []
    for pool_labels, _ in now.select(catalogue.POOL_CONNECTIONS_MAX, pool=catalogue.PRIMARY_POOL):
        labels = {name: pool_labels[name] for name in ("replica", "worker")}
        gauges = {
            "max": catalogue.POOL_CONNECTIONS_MAX,
            "size": catalogue.POOL_CONNECTIONS_IDLE_MAX,
            "overflow": catalogue.POOL_CONNECTIONS_OVERFLOW,
            "pending": catalogue.POOL_PENDING_REQUESTS,
            "in_flight": catalogue.HTTP_IN_FLIGHT,
            "memory_bytes": catalogue.WORKER_MEMORY,
        }
        rows.append(
            labels
            | {"started": now.value(catalogue.WORKER_START_TIME, **labels)}
            | {state: _total(now, catalogue.POOL_CONNECTIONS, state=state, **labels) for state in (USED, IDLE)}
            | {
                key: None if now.value(spec, **labels) is None else _total(now, spec, **labels)
                for key, spec in gauges.items()
            }
        )
    return sorted(rows, key=lambda row: (row["replica"], int(row["worker"])))


def _duration(snapshots: Sequence[Snapshot], key: str, spec: MetricSpec) -> dict[str, Any]:
    p50, p99 = quantiles(snapshots, spec, 0.5, 0.99)
    return {"key": key, "p50": p50, "p99": p99, "per_second": _rate(snapshots, spec, "_count")}


def _rate(snapshots: Sequence[Snapshot], spec: MetricSpec, suffix: str = "") -> float | None:
    """Return the increase per second; None if there was none."""
    seconds = snapshots[-1].time - snapshots[0].time
    count = increase(snapshots, spec, suffix)
    return count / seconds if seconds and count else None


def _server(now: Snapshot) -> dict[str, Any] | None:
    up = now.value(catalogue.SERVER_UP)
    if up is None:
        return None
    difference = disagreement(now)
    return {
        "up": bool(up),
        "connections": _total(now, catalogue.SERVER_CONNECTIONS) if up else None,
        "api": _total(now, catalogue.SERVER_CONNECTIONS, application="headroom:api") if up else None,
        "disagreement": None if difference is None else round(difference),
    }


def _point(before: Snapshot | None, now: Snapshot) -> Point:
    snapshots = (before, now) if before else (now,)
    seconds = now.time - before.time if before else 0.0
    [p99] = quantiles(snapshots, catalogue.POOL_WAIT, 0.99)
    return Point(
        time=now.time,
        used=_total(now, catalogue.POOL_CONNECTIONS, state=USED),
        open=_total(now, catalogue.POOL_CONNECTIONS),
        pending=_total(now, catalogue.POOL_PENDING_REQUESTS),
        checkouts_per_second=increase(snapshots, catalogue.POOL_CHECKOUTS) / seconds if seconds else None,
        http_per_second=increase(snapshots, catalogue.HTTP_REQUESTS) / seconds if seconds else None,
        wait_p99=p99,
    )
