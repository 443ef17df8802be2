"""The connection budget, as it is checked before a start, with the limits as they are now."""

from prometheus_client import Metric

from app.budget import sources
from app.budget.model import Budget
from app.budget.sources import API_ROLES, BudgetReport
from app.database.admin_connection import AdminConnection
from app.errors import DatabaseUnavailable
from app.exporter.scraper import Incomplete, many
from app.observability import catalogue
from app.settings import Settings

_LIMITS = sources.limits_query(API_ROLES)


class BudgetCollector:
    """`db_budget_*`. Goes by what it heard last, or else by the settings, for whom it cannot ask."""

    name = "budget"

    def __init__(self, settings: Settings, server: AdminConnection | None, console: AdminConnection | None) -> None:
        self._settings = settings
        self._server = server
        self._console = console
        self.report = sources.from_settings(settings)
        self._clients: int | None = None

    async def collect(self) -> list[Metric]:
        report = sources.from_settings(self._settings)
        failures = []
        try:
            report = await self._ask_server(report)
        except DatabaseUnavailable as error:
            failures.append(f"the server was not queried: {error}")
        try:
            report = await self._ask_console(report)
        except DatabaseUnavailable as error:
            failures.append(f"PgBouncer's console was not queried: {error}")
        if failures:
            # The limits have hardly changed; how many are open has.
            self.report = self.report._replace(observed=None, remarks=tuple(failures))
            self._clients = None
            raise Incomplete("; ".join(failures), self.absent())
        self.report = report
        return self.absent()

    def absent(self) -> list[Metric]:
        observed = {"server connections": self.report.observed, "pooler clients": self._clients}
        return _metrics(self.report.budget, {name: number for name, number in observed.items() if number is not None})

    @property
    def observed(self) -> dict[str, int | None]:
        """How many connections are open, by the limit that counts them."""
        return {"server connections": self.report.observed, "pooler clients": self._clients}

    async def _ask_server(self, report: BudgetReport) -> BudgetReport:
        if self._server is None:
            return report
        [row] = await self._server.query(_LIMITS)
        return sources.with_server(report, row, self._settings.postgres_max_connections)

    async def _ask_console(self, report: BudgetReport) -> BudgetReport:
        url = self._settings.known_exporter_database_url()
        if self._console is None or url is None:
            return report
        config = await self._console.query("SHOW CONFIG")
        databases = await self._console.query("SHOW DATABASES")
        [self._clients] = [
            row["items"] for row in await self._console.query("SHOW LISTS") if row["list"] == "used_clients"
        ]
        return sources.with_pooler(report, config, databases, url.database)


def _metrics(budget: Budget, observed: dict[str, int]) -> list[Metric]:
    sums = [({"limit": each.name}, each) for each in budget.inequalities]
    return [
        many(
            catalogue.BUDGET_CONNECTIONS,
            [
                (labels | {"side": side, "term": term.name}, term.connections)
                for labels, each in sums
                for side, terms in (("demand", each.demanded), ("supply", each.supplied))
                for term in terms
            ],
        ),
        many(catalogue.BUDGET_DEMAND, [(labels, each.demand) for labels, each in sums]),
        many(catalogue.BUDGET_SUPPLY, [(labels, each.supply) for labels, each in sums]),
        many(catalogue.BUDGET_HEADROOM, [(labels, each.headroom) for labels, each in sums]),
        many(catalogue.BUDGET_OBSERVED, [({"limit": name}, number) for name, number in observed.items()]),
    ]
