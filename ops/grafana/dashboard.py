"""Grafana's dashboard as code: `make dashboard` writes dashboards/headroom.json, which a test holds against this file.

Each exporter reports the server and the budget, hence `max`; only one reports a pool or a worker, hence `sum`.
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

FILE = Path(__file__).parent / "dashboards/headroom.json"
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="prometheus")
PICKED = 'pool=~"$pool", replica=~"$replica"'
WIDTH, HALF, THIRD, QUARTER = 24, 12, 8, 6
HEIGHT = 8


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend)


def number(
    title: str, description: str, expression: str, *, unit: str = "short", red: float, below: bool = False
) -> stat.Panel:
    """One number, red from `red` on, or below it."""
    colours = ("red", "green") if below else ("green", "red")
    steps = [dashboard.Threshold(value=None, color=colours[0]), dashboard.Threshold(value=red, color=colours[1])]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(QUARTER)
        .height(5)
        .thresholds(build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(query(expression).instant())
    )


def lines(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    span: int = THIRD,
    stacked: bool = False,
) -> timeseries.Panel:
    """Lines over time: pairs of expression and legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(HEIGHT)
        .fill_opacity(20 if stacked else 0)
        .legend(VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True))
    )
    for reference, (expression, legend) in enumerate(queries):
        panel = panel.with_target(query(expression, legend).ref_id(chr(ord("A") + reference)))
    return panel


def quantile(share: float, metric: str, by: str = "le", picked: str = PICKED) -> str:
    return f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket{{{picked}}}[$__rate_interval])))"


def rate(metric: str, by: str, picked: str = PICKED) -> str:
    return f"sum by ({by}) (rate({metric}{{{picked}}}[$__rate_interval]))"


def time_taken(title: str, metric: str, description: str) -> timeseries.Panel:
    quantiles = [(quantile(share, metric), f"p{share * 100:.0f}") for share in (0.5, 0.9, 0.99)]
    return lines(title, description, *quantiles, unit="s", span=QUARTER)


def headroom() -> Iterator[stat.Panel | timeseries.Panel]:
    yield number(
        "Headroom", "Connections that may still be promised.", "min(db_budget_headroom)", red=0, below=True
    ).no_value("no exporter")
    yield number(
        "Not open",
        "What is admitted and not open: the tightest limit's share.",
        "min(limit:db_budget_free:ratio)",
        unit="percentunit",
        red=0.1,
        below=True,
    )
    yield number("Requests waiting", "For a connection, now.", f"sum(db_pool_pending_requests{{{PICKED}}})", red=1)
    yield number(
        "Server beside pools",
        "Connections that the server, or PgBouncer, counts beyond those of the pools. Lasting, it is a leak.",
        "stack:db_connections_beyond_pools:difference",
        red=1,
    )
    yield lines(
        "Budget",
        "What may be opened and what is open, beside what is admitted, for each limit.",
        ("max by (limit) (db_budget_supply)", "admitted: {{limit}}"),
        ("max by (limit) (db_budget_demand)", "promised: {{limit}}"),
        ("max by (limit) (db_budget_observed)", "open: {{limit}}"),
        span=HALF,
    )
    yield lines(
        "Promised to whom",
        "The terms of the demand.",
        ('max by (limit, term) (db_budget_connections{side="demand"})', "{{term}} ({{limit}})"),
        span=HALF,
        stacked=True,
    )


def pools() -> Iterator[timeseries.Panel]:
    yield lines(
        "Connections",
        "Of all pools picked, beside what they may open.",
        (f"sum by (state) (db_pool_connections{{{PICKED}}})", "{{state}}"),
        (f"sum(db_pool_connections_overflow{{{PICKED}}})", "overflow"),
        (f"sum(db_pool_connections_idle_max{{{PICKED}}})", "size"),
        (f"sum(db_pool_connections_max{{{PICKED}}})", "may open"),
    )
    yield lines(
        "In use, by replica",
        "Used connections per allowed one. PoolSaturated fires above 90 %.",
        ("replica_pool:db_pool_used:ratio{" + PICKED + "}", "{{replica}}"),
        unit="percentunit",
    )
    yield lines(
        "Checkouts, and those that had to wait",
        "Per second.",
        (rate("db_pool_checkouts_total", "pool"), "checkouts"),
        (rate("db_pool_waits_total", "pool"), "had to wait"),
        unit="reqps",
    )
    for title, metric, description in (
        ("Wait", "db_pool_wait_seconds", "From asking for a connection to having it."),
        ("Use", "db_pool_use_seconds", "From having a connection to giving it back."),
        ("Create", "db_pool_create_seconds", "To open a connection."),
        ("Ping", "db_pool_ping_seconds", "To ask the server whether an idle connection lives."),
    ):
        yield time_taken(title, metric, description)
    yield lines(
        "Refused",
        "Requests per second that got no connection: their clients got 503.",
        (rate("db_pool_timeouts_total", "replica"), "timed out: {{replica}}"),
        (rate("db_pool_rejections_total", "replica"), "queue full: {{replica}}"),
        (rate("db_pool_connect_errors_total", "replica"), "cannot connect: {{replica}}"),
        unit="reqps",
    )
    yield lines(
        "Closed",
        "Connections closed a second, and why.",
        (rate("db_pool_closed_total", "reason"), "{{reason}}"),
        (rate("db_pool_invalidations_total", "cause"), "given up: {{cause}}"),
        unit="cps",
    )
    yield lines(
        "Leak suspects",
        "Connections held too long or never given back; the API's log names the request.",
        (f"sum by (replica) (increase(db_pool_leaks_total{{{PICKED}}}[$__rate_interval]))", "{{replica}}"),
    )


def server() -> Iterator[timeseries.Panel]:
    yield lines(
        "The server's view beside the pools'",
        "The API's connections, as the server counts them and as the pools do. Behind PgBouncer the server sees fewer.",
        ('max(sum by (instance) (db_server_connections{application="headroom:api"}))', "the server counts"),
        ("sum(db_pool_connections)", "the pools count"),
        span=HALF,
    )
    yield lines(
        "Who is connected",
        "Client connections of the server.",
        (
            "max by (role, application) (sum by (instance, role, application) (db_server_connections))",
            "{{application}}",
        ),
        span=QUARTER,
        stacked=True,
    )
    yield lines(
        "What they do",
        "`idle in transaction` holds locks and does nothing.",
        ("max by (state) (sum by (instance, state) (db_server_connections))", "{{state}}"),
        span=QUARTER,
        stacked=True,
    )


def pgbouncer() -> Iterator[timeseries.Panel]:
    yield lines(
        "Clients",
        "SHOW POOLS.",
        ("max by (state) (sum by (instance, state) (pgbouncer_pools_client_connections))", "{{state}}"),
        ("max(pgbouncer_pools_client_maxwait_seconds)", "longest wait, s"),
    )
    yield lines(
        "Server connections",
        "SHOW POOLS.",
        ("max by (state) (sum by (instance, state) (pgbouncer_pools_server_connections))", "{{state}}"),
    )
    yield lines(
        "Mean time of a query, and mean wait for a server connection",
        "SHOW STATS.",
        (
            "max(sum by (instance) (rate(pgbouncer_stats_query_seconds_total[$__rate_interval]))"
            " / sum by (instance) (rate(pgbouncer_stats_queries_total[$__rate_interval])))",
            "query",
        ),
        (
            "max(sum by (instance) (rate(pgbouncer_stats_client_wait_seconds_total[$__rate_interval]))"
            " / sum by (instance) (rate(pgbouncer_stats_transactions_total[$__rate_interval])))",
            "wait",
        ),
        unit="s",
    )


def http() -> Iterator[timeseries.Panel]:
    replica = 'replica=~"$replica"'
    yield lines(
        "Requests",
        "Per second, by status.",
        (rate("http_requests_total", "status", replica), "{{status}}"),
        unit="reqps",
    )
    yield lines(
        "Duration, p99",
        "By route.",
        (quantile(0.99, "http_request_duration_seconds", "le, method, route", replica), "{{method}} {{route}}"),
        unit="s",
    )
    yield lines(
        "In flight", "Requests under way.", (f"sum by (replica) (http_requests_in_flight{{{replica}}})", "{{replica}}")
    )


def workers() -> Iterator[timeseries.Panel]:
    replica = 'replica=~"$replica"'
    yield lines(
        "Processor",
        "Cores in use, by replica.",
        (rate("headroom_worker_cpu_seconds_total", "replica", replica), "{{replica}}"),
    )
    yield lines(
        "Memory",
        "Of each worker, shared pages included.",
        (f"headroom_worker_resident_memory_bytes{{{replica}}}", "{{replica}} {{worker}}"),
        unit="bytes",
    )
    yield lines(
        "Starts of workers",
        "Within ten minutes. A reload starts each once.",
        (f"sum by (replica) (increase(headroom_worker_starts_total{{{replica}}}[10m]))", "{{replica}}"),
    )


ROWS = {
    "Headroom": headroom,
    "Pools": pools,
    "PostgreSQL": server,
    "PgBouncer": pgbouncer,
    "HTTP": http,
    "Workers": workers,
}


def variable(name: str, label: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(f"label_values(db_pool_connections_max, {name})")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )


def text() -> str:
    """The file's content."""
    result = (
        build.Dashboard("Headroom")
        .uid("headroom")
        .tags(["headroom", "postgresql"])
        .description("How many database connections are left, who has them, and what waiting for one takes.")
        .time("now-30m", "now")
        .refresh("5s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(variable("pool", "Pool"))
        .with_variable(variable("replica", "Replica"))
    )
    identities = count(1)
    for title, panels in ROWS.items():
        result = result.with_row(build.Row(title).id(next(identities)))
        for panel in panels():
            result = result.with_panel(panel.id(next(identities)))
    return JSONEncoder(sort_keys=True, indent=2).encode(result.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
