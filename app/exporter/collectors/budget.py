"""The connection budget, with the limits that the server and PgBouncer have now."""

from prometheus_client import Metric

from app.budget import sources
from app.budget.model import Budget
from app.budget.sources import API_ROLES, BudgetReport
from app.database.admin_connection import AdminConnection
from app.errors import DatabaseUnavailable
from app.exporter.scraper import PartialFailure, family
from app.observability import catalogue
from app.settings import Settings

_LIMITS = sources.limits_query(API_ROLES)


class BudgetCollector:
    """Collects `db_budget_*`. Limits that cannot be queried keep their last known value, at first the settings'."""

    name = "budget"

    def __init__(self, settings: Settings, server: AdminConnection | None, console: AdminConnection | None) -> None:
        self._settings = settings
        self._server = server
        self._console = console
        self.report = sources.from_settings(settings)
        self._pooler_clients: int | None = None

    async def collect(self) -> list[Metric]:
        """Query the limits and the number of open connections. Raise PartialFailure."""
        report = sources.from_settings(self._settings)
        failures = []
        try:
            report = await self._query_server(report)
        except DatabaseUnavailable as error:
            failures.append(f"the server was not queried: {error}")
        try:
            report = await self._query_console(report)
        except DatabaseUnavailable as error:
            failures.append(f"PgBouncer's console was not queried: {error}")
        if failures:
            # The limits are probably unchanged. The number of open connections is not.
            self.report = self.report._replace(observed=None, remarks=tuple(failures))
            self._pooler_clients = None
            raise PartialFailure("; ".join(failures), self.fallback())
        self.report = report
        return self.fallback()

    def fallback(self) -> list[Metric]:
        """Return the metrics of the last known budget."""
        observed = {name: number for name, number in self.observed.items() if number is not None}
        return _metrics(self.report.budget, observed)

    @property
    def observed(self) -> dict[str, int | None]:
        """Return the number of open connections by the name of their limit; None if unknown."""
        return {"server connections": self.report.observed, "pooler clients": self._pooler_clients}

    async def _query_server(self, report: BudgetReport) -> BudgetReport:
        if self._server is None:
            return report
        [row] = await self._server.query(_LIMITS)
        return sources.with_server(report, row, self._settings.postgres_max_connections)

    async def _query_console(self, report: BudgetReport) -> BudgetReport:
        url = self._settings.known_exporter_database_url()
        if self._console is None or url is None:
            return report
        config = await self._console.query("SHOW CONFIG")
        databases = await self._console.query("SHOW DATABASES")
        [self._pooler_clients] = [
            row["items"] for row in await self._console.query("SHOW LISTS") if row["list"] == "used_clients"
        ]
        return sources.with_pooler(report, config, databases, url.database)


def _metrics(budget: Budget, observed: dict[str, int]) -> list[Metric]:
    limits = [({"limit": limit.name}, limit) for limit in budget.inequalities]
    return [
        family(
            catalogue.BUDGET_CONNECTIONS,
            [
                (labels | {"side": side, "term": term.name}, term.connections)
                for labels, limit in limits
                for side, terms in (("demand", limit.demanded), ("supply", limit.supplied))
                for term in terms
            ],
        ),
        family(catalogue.BUDGET_DEMAND, [(labels, limit.demand) for labels, limit in limits]),
        family(catalogue.BUDGET_SUPPLY, [(labels, limit.supply) for labels, limit in limits]),
        family(catalogue.BUDGET_HEADROOM, [(labels, limit.headroom) for labels, limit in limits]),
        family(catalogue.BUDGET_OBSERVED, [({"limit": name}, number) for name, number in observed.items()]),
    ]
