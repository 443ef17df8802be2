"""Generate Grafana's dashboard: `make dashboard` writes dashboards/headroom.json. A test compares the two.

Every exporter reports the server and the budget: the queries use `max`. Each pool and each worker is reported by one
exporter: the queries use `sum`.
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
SELECTED = 'pool=~"$pool", replica=~"$replica"'
SELECTED_REPLICAS = 'replica=~"$replica"'
WIDTH, HALF, THIRD, QUARTER = 24, 12, 8, 6
HEIGHT = 8


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    """Return a Prometheus query for a panel."""
    return prometheus.Dataquery().expr(expression).legend_format(legend)


def stat_panel(
    title: str, description: str, expression: str, *, unit: str = "short", red: float, below: bool = False
) -> stat.Panel:
    """Return a panel with one number. It is red from the threshold `red` upwards; with `below`, red below it."""
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


def timeseries_panel(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    span: int = THIRD,
    stacked: bool = False,
) -> timeseries.Panel:
    """Return a panel with one line per series. `queries` are pairs of expression and legend."""
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
    for index, (expression, legend) in enumerate(queries):
        panel = panel.with_target(query(expression, legend).ref_id(chr(ord("A") + index)))
    return panel


def quantile(fraction: float, metric: str, by: str = "le", selector: str = SELECTED) -> str:
    """Return the expression for a quantile of a histogram; `fraction` 0.99 is the 99th percentile."""
    return f"histogram_quantile({fraction}, sum by ({by}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


def rate(metric: str, by: str, selector: str = SELECTED) -> str:
    """Return the expression for the increase of a counter per second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantiles_panel(title: str, metric: str, description: str) -> timeseries.Panel:
    """Return a panel with the median, the 90th and the 99th percentile of a histogram in seconds."""
    quantiles = [(quantile(fraction, metric), f"p{fraction * 100:.0f}") for fraction in (0.5, 0.9, 0.99)]
    return timeseries_panel(title, description, *quantiles, unit="s", span=QUARTER)


def headroom() -> Iterator[stat.Panel | timeseries.Panel]:
    """Yield the panels of the connection budget."""
    yield stat_panel(
        "Headroom",
        "Budget left: connections admitted minus connections allowed by the settings.",
        "min(db_budget_headroom)",
        red=0,
        below=True,
    ).no_value("no exporter")
    yield stat_panel(
        "Free",
        "Share of admitted connections that are not open, for the tightest limit.",
        "min(limit:db_budget_free:ratio)",
        unit="percentunit",
        red=0.1,
        below=True,
    )
    yield stat_panel(
        "Requests waiting",
        "Requests in the queues of the pools.",
        f"sum(db_pool_pending_requests{{{SELECTED}}})",
        red=1,
    )
    yield stat_panel(
        "Server minus pools",
        "The API's connections: the server's (or PgBouncer's) count minus the pools'. A leak is a lasting value > 0.",
        "stack:db_connections_beyond_pools:difference",
        red=1,
    )
    yield timeseries_panel(
        "Budget",
        "Connections admitted (supply), allowed by the settings (demand), and open, for each limit.",
        ("max by (limit) (db_budget_supply)", "supply: {{limit}}"),
        ("max by (limit) (db_budget_demand)", "demand: {{limit}}"),
        ("max by (limit) (db_budget_observed)", "open: {{limit}}"),
        span=HALF,
    )
    yield timeseries_panel(
        "Demand",
        "The demand of the budget by term: the API's pools and each job.",
        ('max by (limit, term) (db_budget_connections{side="demand"})', "{{term}} ({{limit}})"),
        span=HALF,
        stacked=True,
    )


def pools() -> Iterator[timeseries.Panel]:
    """Yield the panels of the connection pools."""
    yield timeseries_panel(
        "Connections",
        "Connections of the selected pools by state, with the pools' size and maximum.",
        (f"sum by (state) (db_pool_connections{{{SELECTED}}})", "{{state}}"),
        (f"sum(db_pool_connections_overflow{{{SELECTED}}})", "overflow"),
        (f"sum(db_pool_connections_idle_max{{{SELECTED}}})", "size"),
        (f"sum(db_pool_connections_max{{{SELECTED}}})", "maximum"),
    )
    yield timeseries_panel(
        "Utilisation",
        "Used connections divided by the maximum, by replica. PoolSaturated fires above 90 %.",
        ("replica_pool:db_pool_used:ratio{" + SELECTED + "}", "{{replica}}"),
        unit="percentunit",
    )
    yield timeseries_panel(
        "Checkouts",
        "Checkouts per second, and how many of them had to queue.",
        (rate("db_pool_checkouts_total", "pool"), "checkouts"),
        (rate("db_pool_waits_total", "pool"), "queued"),
        unit="reqps",
    )
    for title, metric, description in (
        ("Wait", "db_pool_wait_seconds", "Time to get a connection: queue, ping and connect."),
        ("Use", "db_pool_use_seconds", "Time a connection is held: from checkout to return."),
        ("Create", "db_pool_create_seconds", "Time to open a connection."),
        ("Ping", "db_pool_ping_seconds", "Time to test an idle connection."),
    ):
        yield quantiles_panel(title, metric, description)
    yield timeseries_panel(
        "Shared statements",
        "Reads that waited and were answered by a shared statement, rows that one was to insert, and these statements,"
        " per second.",
        (rate("db_pool_coalesced_reads_total", "pool"), "reads"),
        (rate("db_pool_coalesced_statements_total", "pool"), "statements of reads"),
        (rate("db_pool_coalesced_writes_total", "pool"), "rows to insert"),
        (rate("db_pool_coalesced_write_statements_total", "pool"), "statements of inserts"),
        (rate("db_pool_coalesced_writes_sent_again_total", "pool"), "rows sent again by themselves"),
        unit="reqps",
    )
    yield timeseries_panel(
        "Reads by server",
        "With a standby: reads per second by where they went, or why they went to the primary.",
        (f"sum by (route) (rate(db_reads_total{{{SELECTED_REPLICAS}}}[$__rate_interval]))", "{{route}}"),
        unit="reqps",
    )
    yield quantiles_panel(
        "Wait to share",
        "db_pool_coalesce_wait_seconds",
        "Longest time that a read or write of a shared statement has waited, the time for a connection included.",
    )
    yield timeseries_panel(
        "Refused",
        "Failed checkouts and failed connects per second. The clients got 503.",
        (rate("db_pool_timeouts_total", "replica"), "timed out: {{replica}}"),
        (rate("db_pool_rejections_total", "replica"), "queue full: {{replica}}"),
        (rate("db_pool_connect_errors_total", "replica"), "connect failed: {{replica}}"),
        unit="reqps",
    )
    yield timeseries_panel(
        "Lanes",
        "Checkouts that run and wait, by lane. Statements of the lane expensive wait for their own kind.",
        (f"sum by (lane) (db_lane_running{{{SELECTED}}})", "running: {{lane}}"),
        (f"sum by (lane) (db_lane_waiting{{{SELECTED}}})", "waiting: {{lane}}"),
    )
    yield timeseries_panel(
        "Lanes: refused",
        "Refused checkouts per second, by lane and reason. The clients got 503.",
        (rate("db_lane_shed_total", "lane, reason"), "{{lane}}: {{reason}}"),
        unit="reqps",
    )
    yield timeseries_panel(
        "Closed",
        "Connections closed or invalidated per second, by reason.",
        (rate("db_pool_closed_total", "reason"), "{{reason}}"),
        (rate("db_pool_invalidations_total", "cause"), "invalidated: {{cause}}"),
        unit="cps",
    )
    yield timeseries_panel(
        "Leak suspects",
        "Connections held too long or never returned. The API's log names the request.",
        (f"sum by (replica) (increase(db_pool_leaks_total{{{SELECTED}}}[$__rate_interval]))", "{{replica}}"),
    )


def server() -> Iterator[timeseries.Panel]:
    """Yield the panels of PostgreSQL's own view."""
    yield timeseries_panel(
        "Server and pools",
        "The API's connections as counted by the server and by the pools. Behind PgBouncer the server counts fewer.",
        ('max(sum by (instance) (db_server_connections{application="headroom:api"}))', "server"),
        ('sum(db_pool_connections{pool!="read"})', "pools"),
        span=HALF,
    )
    yield timeseries_panel(
        "Connections by application",
        "Client connections of the server.",
        (
            "max by (role, application) (sum by (instance, role, application) (db_server_connections))",
            "{{application}}",
        ),
        span=QUARTER,
        stacked=True,
    )
    yield timeseries_panel(
        "Connections by state",
        "Client connections of the server. A session `idle in transaction` holds its locks and does no work.",
        ("max by (state) (sum by (instance, state) (db_server_connections))", "{{state}}"),
        span=QUARTER,
        stacked=True,
    )


def pgbouncer() -> Iterator[timeseries.Panel]:
    """Yield the panels of PgBouncer's console."""
    yield timeseries_panel(
        "Clients",
        "Client connections by state, and the longest wait of a client (SHOW POOLS).",
        ("max by (state) (sum by (instance, state) (pgbouncer_pools_client_connections))", "{{state}}"),
        ("max(pgbouncer_pools_client_maxwait_seconds)", "longest wait (s)"),
    )
    yield timeseries_panel(
        "Server connections",
        "Connections to PostgreSQL by state (SHOW POOLS).",
        ("max by (state) (sum by (instance, state) (pgbouncer_pools_server_connections))", "{{state}}"),
    )
    yield timeseries_panel(
        "Query and wait",
        "Mean duration of a query, and mean wait for a server connection (SHOW STATS).",
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
    """Yield the panels of HTTP requests."""
    yield timeseries_panel(
        "Requests",
        "Requests per second, by status.",
        (rate("http_requests_total", "status", SELECTED_REPLICAS), "{{status}}"),
        unit="reqps",
        span=QUARTER,
    )
    yield timeseries_panel(
        "Duration, p99",
        "99th percentile of the request duration, by route.",
        (
            quantile(0.99, "http_request_duration_seconds", "le, method, route", SELECTED_REPLICAS),
            "{{method}} {{route}}",
        ),
        unit="s",
        span=QUARTER,
    )
    yield timeseries_panel(
        "In flight",
        "Requests being processed.",
        (f"sum by (replica) (http_requests_in_flight{{{SELECTED_REPLICAS}}})", "{{replica}}"),
        span=QUARTER,
    )
    yield timeseries_panel(
        "Cancelled",
        "Requests per second that ended before their response: the client has left, or its deadline has passed.",
        (rate("http_cancelled_requests_total", "reason", SELECTED_REPLICAS), "{{reason}}"),
        unit="reqps",
        span=QUARTER,
    )


def proxy() -> Iterator[timeseries.Panel]:
    """Yield the panels of the proxy, which only production has."""
    yield timeseries_panel(
        "Responses to clients",
        "Responses of the proxy per second, by class of status. It answers itself when no replica can.",
        (
            'sum by (code) (rate(haproxy_frontend_http_responses_total{proxy="https"}[$__rate_interval]))',
            "{{code}}",
        ),
        unit="reqps",
        span=QUARTER,
    )
    yield timeseries_panel(
        "Replicas in the proxy",
        "Replicas that get requests, and those that are found but not ready.",
        ('max(haproxy_backend_active_servers{proxy="writes"})', "ready"),
        ('max(haproxy_backend_agg_server_status{proxy="writes", state="DOWN"})', "not ready"),
        span=QUARTER,
    )
    yield timeseries_panel(
        "Connections of the proxy",
        "Open connections, and the maximum. ProxyNearlyFull fires above 80 %.",
        ("sum(haproxy_process_current_connections)", "open"),
        ("sum(haproxy_process_max_connections)", "maximum"),
        span=QUARTER,
    )
    yield timeseries_panel(
        "Certificates",
        "Time until a certificate of the proxy ends. CertificateRenewalDue fires below 21 days.",
        ("min by (certificate) (proxy_certificate_expiry_timestamp_seconds) - time()", "{{certificate}}"),
        unit="s",
        span=QUARTER,
    )


def workers() -> Iterator[timeseries.Panel]:
    """Yield the panels of the worker processes."""
    yield timeseries_panel(
        "CPU",
        "CPU cores in use, by replica.",
        (rate("headroom_worker_cpu_seconds_total", "replica", SELECTED_REPLICAS), "{{replica}}"),
    )
    yield timeseries_panel(
        "Memory",
        "Resident memory of each worker, shared pages included.",
        (f"headroom_worker_resident_memory_bytes{{{SELECTED_REPLICAS}}}", "{{replica}} {{worker}}"),
        unit="bytes",
    )
    yield timeseries_panel(
        "Worker starts",
        "Starts within ten minutes, by replica. A reload starts every worker once.",
        (f"sum by (replica) (increase(headroom_worker_starts_total{{{SELECTED_REPLICAS}}}[10m]))", "{{replica}}"),
    )


ROWS = {
    "Headroom": headroom,
    "Pools": pools,
    "PostgreSQL": server,
    "PgBouncer": pgbouncer,
    "Proxy": proxy,
    "HTTP": http,
    "Workers": workers,
}


def variable(name: str, label: str) -> build.QueryVariable:
    """Return a dashboard variable with the values of a label of the pools; any number can be selected."""
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


def render() -> str:
    """Return the dashboard as JSON text."""
    result = (
        build.Dashboard("Headroom")
        .uid("headroom")
        .tags(["headroom", "postgresql"])
        .description(
            "Database connections: how many are left, which process holds them, and how long requests wait for one."
        )
        .time("now-30m", "now")
        .refresh("5s")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(variable("pool", "Pool"))
        .with_variable(variable("replica", "Replica"))
    )
    panel_ids = count(1)
    for title, panels in ROWS.items():
        result = result.with_row(build.Row(title).id(next(panel_ids)))
        for panel in panels():
            result = result.with_panel(panel.id(next(panel_ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(result.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
