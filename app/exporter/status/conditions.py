"""The alerts' conditions, for the page: what each of ops/prometheus/rules/alerts.yml would say of this moment.

Prometheus also waits for how long a condition holds; here it is told at once. A test holds names and thresholds against
the rules.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from app.exporter.status.snapshot import View, increase, quantiles
from app.observability import catalogue

State = Literal["ok", "firing", "unknown"]
Finding = tuple[State, str]
# What is judged: the views of the last minutes, the oldest first, none of them empty of time.
Look = Callable[[Sequence[View]], Finding]
UNKNOWN: Finding = ("unknown", "not known")

LOW_HEADROOM = 0.1
SATURATED = 0.9
SLOW_WAIT_SECONDS = 0.5
DISAGREEMENT_SECONDS = 120.0
RECENT_SECONDS = 300.0
LEAKS_SECONDS = 900.0
FLAPPING_SECONDS = 600.0
FLAPPING_STARTS = 2


class Condition(NamedTuple):
    """An alert's name, what it is about, how bad it is, what to do first, and how to find out."""

    name: str
    summary: str
    severity: Literal["critical", "warning"]
    runbook: str
    look: Look


def last(views: Sequence[View], seconds: float) -> Sequence[View]:
    """The views of the last so many seconds."""
    return [view for view in views if view.time >= views[-1].time - seconds]


def free_share(view: View) -> float | None:
    """What share of the tightest limit is not open yet."""
    shares = []
    for labels, supply in view.each(catalogue.BUDGET_SUPPLY):
        observed = view.value(catalogue.BUDGET_OBSERVED, **labels)
        if observed is not None and supply:
            shares.append((supply - observed) / supply)
    return min(shares, default=None)


def disagreement(view: View) -> float | None:
    """Connections that the other side counts as the API's, minus those that its pools count. None: cannot be told."""
    pools = view.total(catalogue.POOL_CONNECTIONS)
    if view.value(catalogue.PGBOUNCER_UP) is not None:
        if not view.value(catalogue.PGBOUNCER_UP):
            return None
        return view.total(catalogue.PGBOUNCER_CLIENTS, user=_api_user(view)) - pools
    if not view.value(catalogue.SERVER_UP):
        return None
    return view.total(catalogue.SERVER_CONNECTIONS, application="headroom:api") - pools


def _api_user(view: View) -> str:
    """Whom the API's connections belong to, as the server sees them."""
    for labels, _ in view.each(catalogue.SERVER_CONNECTIONS, application="headroom:api"):
        return labels["role"]
    return "headroom_app"


def _headroom_low(views: Sequence[View]) -> Finding:
    share = free_share(views[-1])
    if share is None:
        return UNKNOWN
    return _over(share < LOW_HEADROOM, f"{share:.0%} not open")


def _over_budget(views: Sequence[View]) -> Finding:
    rooms = [headroom for _, headroom in views[-1].each(catalogue.BUDGET_HEADROOM)]
    if not rooms:
        return UNKNOWN
    return _over(min(rooms) < 0, f"{min(rooms):.0f} connections left")


def _saturated(views: Sequence[View]) -> Finding:
    shares = []
    now = views[-1]
    for replica in {labels["replica"] for labels, _ in now.each(catalogue.POOL_CONNECTIONS_MAX)}:
        most = now.total(catalogue.POOL_CONNECTIONS_MAX, replica=replica)
        shares.append(now.total(catalogue.POOL_CONNECTIONS, replica=replica, state="used") / most)
    if not shares:
        return UNKNOWN
    return _over(max(shares) > SATURATED, f"{max(shares):.0%} in use")


def _slow_wait(views: Sequence[View]) -> Finding:
    [p99] = quantiles(last(views, RECENT_SECONDS), catalogue.POOL_WAIT, 0.99)
    if p99 is None:
        return "ok", "nobody asked for one"
    return _over(p99 > SLOW_WAIT_SECONDS, f"p99 {p99 * 1000:.0f} ms")


def _counted(described: catalogue.Described, seconds: float, what: str) -> Look:
    def look(views: Sequence[View]) -> Finding:
        number = increase(last(views, seconds), described)
        return _over(number > 0, f"{number:.0f} {what}")

    return look


def _flapping(views: Sequence[View]) -> Finding:
    recent = last(views, FLAPPING_SECONDS)
    worst = (0.0, 0.0)
    for labels, _ in views[-1].each(catalogue.WORKER_STARTS):
        replica = labels["replica"]
        workers = len(list(views[-1].each(catalogue.WORKER_START_TIME, replica=replica)))
        # One that has just come is in none of the views before: its first workers are no replacements.
        known = [view for view in recent if view.value(catalogue.WORKER_STARTS, replica=replica) is not None]
        starts = increase(known, catalogue.WORKER_STARTS, replica=replica)
        worst = max(worst, (starts - FLAPPING_STARTS * workers, starts))
    excess, starts = worst
    return _over(excess > 0, f"{starts:.0f} workers started")


def _disagree(views: Sequence[View]) -> Finding:
    found = [disagreement(view) for view in last(views, DISAGREEMENT_SECONDS)]
    known = [each for each in found if each is not None]
    if not known or found[-1] is None:
        return UNKNOWN
    # Churn shows up on either side of zero, a leak on one side only.
    lasting = min(known) > 0 or max(known) < 0
    covered = views[-1].time - views[0].time >= DISAGREEMENT_SECONDS
    return _over(lasting and covered, f"{known[-1]:+.0f} connections")


def _server_down(views: Sequence[View]) -> Finding:
    up = views[-1].value(catalogue.SERVER_UP)
    return UNKNOWN if up is None else _over(not up, "answers" if up else "does not answer")


def _collector_failing(views: Sequence[View]) -> Finding:
    failing = [labels["collector"] for labels, success in views[-1].each(catalogue.COLLECTOR_SUCCESS) if not success]
    return _over(bool(failing), ", ".join(failing) or "all work")


def _migration_pending(views: Sequence[View]) -> Finding:
    number = views[-1].value(catalogue.MIGRATIONS_PENDING)
    return UNKNOWN if number is None else _over(number > 0, f"{number:.0f} pending")


def _over(firing: bool, value: str) -> Finding:
    return ("firing" if firing else "ok"), value


CONDITIONS = (
    Condition(
        "HeadroomLow",
        "Open connections come near what is admitted",
        "critical",
        "See who has them: headroom's own programs, or somebody else's.",
        _headroom_low,
    ),
    Condition(
        "OverBudget",
        "More may be opened than is admitted",
        "warning",
        "Run `headroom budget --suggest` and set the pool it names.",
        _over_budget,
    ),
    Condition(
        "PoolSaturated",
        "A replica's pools are nearly all in use",
        "warning",
        "Look at how long connections are held before making pools larger.",
        _saturated,
    ),
    Condition(
        "PoolWaitSlow",
        "Requests wait long for a connection",
        "warning",
        "Look at how long connections are held, and for slow statements.",
        _slow_wait,
    ),
    Condition(
        "PoolTimeouts",
        "Requests gave up waiting for a connection",
        "critical",
        "Clients get 503. Shed load, or find what holds the connections.",
        _counted(catalogue.POOL_TIMEOUTS, RECENT_SECONDS, "in 5 minutes"),
    ),
    Condition(
        "PoolRejections",
        "Requests found the queue full",
        "critical",
        "Clients get 503 at once. Shed load, or find what holds the connections.",
        _counted(catalogue.POOL_REJECTIONS, RECENT_SECONDS, "in 5 minutes"),
    ),
    Condition(
        "PoolConnectErrors",
        "Connections cannot be opened",
        "critical",
        "Is the server up, and does it have connections left?",
        _counted(catalogue.POOL_CONNECT_ERRORS, RECENT_SECONDS, "in 5 minutes"),
    ),
    Condition(
        "PoolLeakSuspects",
        "Connections are held for too long, or were never given back",
        "warning",
        "The API's log names the request and its route.",
        _counted(catalogue.POOL_LEAKS, LEAKS_SECONDS, "in 15 minutes"),
    ),
    Condition(
        "WorkerFlapping",
        "Workers are replaced again and again",
        "critical",
        "The API's log says why they end; a kill for memory is in the kernel's.",
        _flapping,
    ),
    Condition(
        "ViewsDisagree",
        "The server counts other connections of the API than its pools do",
        "warning",
        "More on the server: a leak. Fewer: a pool believes in connections that are gone.",
        _disagree,
    ),
    Condition(
        "ServerDown",
        "The database does not answer the exporter",
        "critical",
        "Is PostgreSQL up? Are its reserved connections taken, too?",
        _server_down,
    ),
    Condition(
        "CollectorFailing",
        "A part of the metrics is missing",
        "warning",
        "The exporter's log says which part, and why.",
        _collector_failing,
    ),
    Condition(
        "MigrationPending",
        "The database is behind the release",
        "warning",
        "Run the migration job; its log says why it failed, if it did.",
        _migration_pending,
    ),
)
