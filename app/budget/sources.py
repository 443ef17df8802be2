"""Where the budget's numbers come from: the settings, the server's own limits, and PgBouncer's configuration."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import monotonic
from typing import NamedTuple

from sqlalchemy import URL

from app import lanes
from app.budget.model import ApiPools, Budget, Pooler, Server
from app.database.admin_connection import AdminConnection, AdminRow
from app.errors import DatabaseUnavailable
from app.polling import poll
from app.settings import Settings

APPLICATION_NAME = "headroom:check"

# The variables that say whether there is a standby.
READ_URLS = ("DATABASE_READ_URL", "DATABASE_READ_URL_FILE")

_SERVER_LIMITS = ("max_connections", "superuser_reserved_connections", "reserved_connections")
_POOLER_LIMITS = ("max_client_conn", "default_pool_size", "reserve_pool_size", "max_db_connections")

# The role whose CONNECTION LIMIT is read: the querying role, or the role of the API's connections.
OWN_ROLE = "rolname = current_user"
API_ROLES = "rolname IN (SELECT usename FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%')"

_LIMITS = """
    SELECT current_setting('max_connections')::int AS max_connections,
           current_setting('superuser_reserved_connections')::int AS superuser_reserved_connections,
           coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved_connections,
           (SELECT min(rolconnlimit) FROM pg_roles WHERE rolconnlimit >= 0 AND {role}) AS role_limit,
           (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()) AS database_limit,
           (SELECT count(*)::int FROM pg_stat_activity WHERE {client}) AS observed
"""
# Background processes (autovacuum and so on) have slots of their own. A role without pg_monitor sees no backend_type.
CLIENTS = "(backend_type = 'client backend' OR backend_type IS NULL AND datname IS NOT NULL)"


def limits_query(role: str) -> str:
    """Return a query for the one row that `with_server()` takes. `role` is OWN_ROLE or API_ROLES."""
    return _LIMITS.replace("{role}", role).replace("{client}", CLIENTS)


class BudgetReport(NamedTuple):
    """A budget and where its numbers come from.

    `observed` is the number of connections that are open on the server; None if unknown. `remarks` say what could not
    be queried, and why.
    """

    budget: Budget
    sources: dict[str, str]
    observed: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Return the lines that belong below the budget's table."""
        notes = [f"limits of the {name}: from {source}" for name, source in self.sources.items()]
        if self.observed is not None:
            notes.append(f"open on the server now, all clients: {self.observed}")
        return [*notes, *self.remarks, *(f"warning: {warning}" for warning in self.budget.warnings)]


def from_settings(settings: Settings) -> BudgetReport:
    """Return the budget according to the settings alone."""
    api = ApiPools(
        replicas=settings.api_replicas,
        surge=settings.api_surge,
        workers=settings.web_concurrency,
        pool_size=settings.db_pool_size,
        max_overflow=settings.db_max_overflow,
        expensive_share=settings.db_expensive_share,
        own_lanes=lanes.OWN_LANES,
        read_pool_size=settings.db_read_pool_size if settings.database_read_url else 0,
    )
    server = replace(Server(cores=settings.postgres_cores), **_given(settings, "postgres_", _SERVER_LIMITS))
    pooler = None
    if settings.db_pooler == "pgbouncer":
        pooler = replace(
            Pooler(instances=settings.pgbouncer_instances), **_given(settings, "pgbouncer_", _POOLER_LIMITS)
        )
    return BudgetReport(
        Budget(api, server, pooler), {"server": "settings"} | ({"pooler": "settings"} if pooler else {})
    )


async def from_server(settings: Settings, *, deadline: float | None = None) -> BudgetReport:
    """Return the budget with the limits that the server, and PgBouncer's console, report.

    A lower limit in the settings still counts: it is our share of a server that others use too. A limit that
    cannot be queried until `deadline` (on the clock of time.monotonic(); None: one attempt) keeps the value of the
    settings, with a remark.
    """
    url = settings.known_database_url()
    if url is None or url.get_backend_name() != "postgresql":
        report = from_settings(settings)
        return report._replace(remarks=("the server was not queried: DATABASE_URL does not name one",))

    async def attempt() -> BudgetReport:
        report = await _query_server(from_settings(settings), url, share=settings.postgres_max_connections)
        has_console = report.budget.pooler and settings.pgbouncer_console == "on"
        return await _query_pooler(report, url) if has_console else report

    report = await poll(
        attempt,
        until=lambda report: not report.remarks,
        deadline=monotonic() if deadline is None else deadline,
    )
    if settings.database_read_url is None:
        return report
    # Once: the API starts without its standby.
    return await _query_read_server(report, settings.database_read_url, share=settings.postgres_max_connections)


async def _query_limits(url: URL) -> AdminRow:
    async with AdminConnection(url, application_name=APPLICATION_NAME) as connection:
        [row] = await connection.query(limits_query(OWN_ROLE))
    return row


async def _query_server(report: BudgetReport, url: URL, share: int | None) -> BudgetReport:
    try:
        row = await _query_limits(url)
    except DatabaseUnavailable as error:
        return report._replace(remarks=(*report.remarks, f"the server was not queried: {error}"))
    return with_server(report, row, share)


async def _query_read_server(report: BudgetReport, url: URL, share: int | None) -> BudgetReport:
    try:
        row = await _query_limits(url)
    except DatabaseUnavailable as error:
        return report._replace(remarks=(*report.remarks, f"the read server was not queried: {error}"))
    budget = replace(report.budget, read_server=_limited(report.budget.server, row, share))
    return report._replace(budget=budget, sources=report.sources | {"read server": "the read server"})


def with_server(report: BudgetReport, row: AdminRow, share: int | None) -> BudgetReport:
    """Return the report with the row of `limits_query()`. `share` is our part of the server's connections, if set."""
    budget = replace(report.budget, server=_limited(report.budget.server, row, share))
    return report._replace(budget=budget, sources=report.sources | {"server": "the server"}, observed=row["observed"])


def _limited(server: Server, row: AdminRow, share: int | None) -> Server:
    limits = {name: row[name] for name in (*_SERVER_LIMITS, "role_limit", "database_limit")}
    limits["max_connections"] = min(limits["max_connections"], share or limits["max_connections"])
    return replace(server, **limits)


async def _query_pooler(report: BudgetReport, url: URL) -> BudgetReport:
    async with AdminConnection(url.set(database="pgbouncer"), application_name=APPLICATION_NAME) as console:
        try:
            config = await console.query("SHOW CONFIG")
            databases = await console.query("SHOW DATABASES")
        except DatabaseUnavailable as error:
            return report._replace(remarks=(*report.remarks, f"PgBouncer's console was not queried: {error}"))
    return with_pooler(report, config, databases, url.database)


def with_pooler(
    report: BudgetReport, config: Sequence[AdminRow], databases: Sequence[AdminRow], database: str | None
) -> BudgetReport:
    """Return the report with the rows of PgBouncer's SHOW CONFIG and SHOW DATABASES.

    A database's own limits override the general ones.
    """
    settings = {row["key"]: row["value"] for row in config}
    limits = {name: int(settings[name]) for name in _POOLER_LIMITS}
    for row in databases:
        if row["name"] == database:
            own = {"default_pool_size": row["pool_size"], "max_db_connections": row["max_connections"]}
            limits |= own | {"reserve_pool_size": row.get("reserve_pool_size", row.get("reserve_pool"))}
    assert report.budget.pooler is not None
    budget = replace(report.budget, pooler=replace(report.budget.pooler, **limits))
    return report._replace(budget=budget, sources=report.sources | {"pooler": "its console"})


def _given(settings: Settings, prefix: str, names: Iterable[str]) -> dict[str, int]:
    """Return the settings `prefix + name` that are set, by name."""
    return {name: value for name in names if (value := getattr(settings, prefix + name)) is not None}
