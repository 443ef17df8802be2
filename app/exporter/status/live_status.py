"""What the live page shows: the document that it asks for once a second, made of the views of the last minutes."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from app.budget.model import Inequality
from app.exporter.collectors.budget import BudgetCollector
from app.exporter.scraper import Part, Scraper
from app.exporter.status.conditions import CONDITIONS, disagreement, last
from app.exporter.status.snapshot import View, increase, quantiles
from app.observability import catalogue
from app.observability.catalogue import Described

INTERVAL_SECONDS = 2.0
KEEP_SECONDS = 900.0  # as far back as a condition looks
HISTORY_SECONDS = 600.0
# What "now" means for what has to be counted over some time.
NOW_SECONDS = 30.0

_DURATIONS = {
    "wait": catalogue.POOL_WAIT,
    "use": catalogue.POOL_USE,
    "create": catalogue.POOL_CREATE,
    "ping": catalogue.POOL_PING,
}
# A view keeps these of a scrape, and not the hundreds of other series.
_KEPT = frozenset(
    described.name.removesuffix("_total")
    for described in (
        *_DURATIONS.values(),
        catalogue.POOL_CONNECTIONS,
        catalogue.POOL_CONNECTIONS_MAX,
        catalogue.POOL_CONNECTIONS_IDLE_MAX,
        catalogue.POOL_CONNECTIONS_OVERFLOW,
        catalogue.POOL_PENDING_REQUESTS,
        catalogue.POOL_CHECKOUTS,
        catalogue.POOL_TIMEOUTS,
        catalogue.POOL_REJECTIONS,
        catalogue.POOL_CONNECT_ERRORS,
        catalogue.POOL_LEAKS,
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
        catalogue.PGBOUNCER_UP,
        catalogue.PGBOUNCER_CLIENTS,
        catalogue.COLLECTOR_SUCCESS,
    )
)


class Point(NamedTuple):
    """A moment of the charts. Rates and the quantile are over the time since the one before."""

    time: float
    used: int
    open: int
    pending: int
    checkouts_per_second: float | None
    http_per_second: float | None
    wait_p99: float | None


class Live:
    """Scrapes on its own account, all the time, so that a page that is opened has a history to show."""

    def __init__(self, scraper: Scraper, budget: BudgetCollector) -> None:
        self._scraper = scraper
        self._budget = budget
        self._views: deque[View] = deque(maxlen=int(KEEP_SECONDS / INTERVAL_SECONDS))
        self._history: deque[Point] = deque(maxlen=int(HISTORY_SECONDS / INTERVAL_SECONDS))
        self.document: dict[str, Any] = {"time": None, "interval": INTERVAL_SECONDS, "version": version("headroom")}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            started = time.monotonic()
            await self.look()
            await asyncio.sleep(max(0.0, INTERVAL_SECONDS - (time.monotonic() - started)))

    async def look(self) -> None:
        """Take one view, and make the document of it: once, however many pages ask for it."""
        scrape = await self._scraper.scrape()
        view = View.of(time.time(), (metric for metric in scrape.collect() if metric.name in _KEPT))
        self._history.append(_point(self._views[-1] if self._views else None, view))
        self._views.append(view)
        self.document = self._document(list(self._views), scrape.parts)

    def _document(self, views: Sequence[View], parts: Sequence[Part]) -> dict[str, Any]:
        """What the page wants to know; numbers are null where nothing is known."""
        now, recent = views[-1], last(views, NOW_SECONDS)
        report = self._budget.report
        return {
            "time": now.time,
            "interval": INTERVAL_SECONDS,
            "version": version("headroom"),
            "collectors": [
                {"name": part.collector, "success": part.failure is None, "seconds": part.seconds} for part in parts
            ],
            "limits": [self._limit(now, each) for each in report.budget.inequalities],
            "remarks": [*report.remarks, *report.budget.warnings],
            "pools": _pools(now),
            "server": _server(now),
            "workers": _workers(now),
            "durations": [_duration(recent, key, described) for key, described in _DURATIONS.items()],
            "history": {field: [getattr(point, field) for point in self._history] for field in Point._fields},
            "conditions": [
                {
                    "name": condition.name,
                    "summary": condition.summary,
                    "severity": condition.severity,
                    "state": state,
                    "value": value,
                    "runbook": condition.runbook,
                }
                for condition in CONDITIONS
                for state, value in [condition.look(views)]
            ],
        }

    def _limit(self, now: View, limit: Inequality) -> dict[str, Any]:
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


def segments(now: View, limit: Inequality, observed: int | None) -> list[dict[str, Any]]:
    """What a limit admits, in parts, and what is reserved; what is promised or open beyond it is there, too."""
    used = overflow = idle = 0
    if any(term.name == "api" for term in limit.demanded):  # the pools' connections are what it counts
        idle = _number(now.total(catalogue.POOL_CONNECTIONS, state="idle"))
        overflow = _used_overflow(now)
        used = _number(now.total(catalogue.POOL_CONNECTIONS, state="used")) - overflow
    ours = used + overflow + idle
    # The views are taken one after the other: what the pools have just closed can still be on the server.
    other = max(0, (observed or 0) - ours)
    promised = max(0, limit.demand - ours - other)
    free = max(0, limit.supply - ours - other - promised)
    numbers = {
        "used": used,
        "overflow": overflow,
        "idle": idle,
        "other": other,
        "promised": promised,
        "free": free,
        "reserved": _reserved(limit),
    }
    return [{"key": key, "connections": number} for key, number in numbers.items()]


def _used_overflow(now: View) -> int:
    """Connections in use beyond the size of their pool; an idle one beyond it is idle in the first place."""
    beyond = 0
    for labels, used in now.each(catalogue.POOL_CONNECTIONS, state="used"):
        whose = {name: value for name, value in labels.items() if name != "state"}
        size = now.value(catalogue.POOL_CONNECTIONS_IDLE_MAX, **whose)
        beyond += max(0, _number(used - size)) if size is not None else 0
    return beyond


def _pools(now: View) -> dict[str, int]:
    return {
        "used": _number(now.total(catalogue.POOL_CONNECTIONS, state="used")),
        "idle": _number(now.total(catalogue.POOL_CONNECTIONS, state="idle")),
        "overflow": _number(now.total(catalogue.POOL_CONNECTIONS_OVERFLOW)),
        "pending": _number(now.total(catalogue.POOL_PENDING_REQUESTS)),
        "max": _number(now.total(catalogue.POOL_CONNECTIONS_MAX)),
        "size": _number(now.total(catalogue.POOL_CONNECTIONS_IDLE_MAX)),
    }


def _workers(now: View) -> list[dict[str, Any]]:
    rows = []
    for has, most in now.each(catalogue.POOL_CONNECTIONS_MAX):
        labels = {name: has[name] for name in ("replica", "worker")}
        gauges = {
            "size": catalogue.POOL_CONNECTIONS_IDLE_MAX,
            "overflow": catalogue.POOL_CONNECTIONS_OVERFLOW,
            "pending": catalogue.POOL_PENDING_REQUESTS,
            "in_flight": catalogue.HTTP_IN_FLIGHT,
            "memory_bytes": catalogue.WORKER_MEMORY,
        }
        rows.append(
            labels
            | {"max": _number(most), "started": now.value(catalogue.WORKER_START_TIME, **labels)}
            | {
                state: _number(now.total(catalogue.POOL_CONNECTIONS, state=state, **labels))
                for state in ("used", "idle")
            }
            | {
                key: None if (value := now.value(each, **labels)) is None else _number(value)
                for key, each in gauges.items()
            }
        )
    return sorted(rows, key=lambda row: (row["replica"], int(row["worker"])))


def _duration(views: Sequence[View], key: str, described: Described) -> dict[str, Any]:
    p50, p99 = quantiles(views, described, 0.5, 0.99)
    seconds = views[-1].time - views[0].time
    count = increase(views, described, "_count")
    return {"key": key, "p50": p50, "p99": p99, "per_second": count / seconds if seconds and count else None}


def _server(now: View) -> dict[str, Any] | None:
    up = now.value(catalogue.SERVER_UP)
    if up is None:
        return None
    difference = disagreement(now)
    return {
        "up": bool(up),
        "connections": _number(now.total(catalogue.SERVER_CONNECTIONS)) if up else None,
        "api": _number(now.total(catalogue.SERVER_CONNECTIONS, application="headroom:api")) if up else None,
        "disagreement": None if difference is None else _number(difference),
    }


def _point(before: View | None, now: View) -> Point:
    pair = (before, now) if before else (now,)
    seconds = now.time - before.time if before else 0.0
    [p99] = quantiles(pair, catalogue.POOL_WAIT, 0.99)
    return Point(
        time=now.time,
        used=_number(now.total(catalogue.POOL_CONNECTIONS, state="used")),
        open=_number(now.total(catalogue.POOL_CONNECTIONS)),
        pending=_number(now.total(catalogue.POOL_PENDING_REQUESTS)),
        checkouts_per_second=increase(pair, catalogue.POOL_CHECKOUTS) / seconds if seconds else None,
        http_per_second=increase(pair, catalogue.HTTP_REQUESTS) / seconds if seconds else None,
        wait_p99=p99,
    )


def _number(value: float) -> int:
    return round(value)
