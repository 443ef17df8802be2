"""The connection budget, as it is checked before a start, with the limits as they are now."""

import psycopg
from prometheus_client import Metric

from app import limits
from app.database.budget import Budget
from app.exporter.asker import Asker
from app.exporter.scrape import Incomplete, many
from app.limits import API_ROLES, Facts
from app.observability import catalogue
from app.settings import Settings

_LIMITS = limits.limits_query(API_ROLES)


class BudgetCollector:
    """`db_budget_*`. Goes by what it heard last, or else by the settings, for whom it cannot ask."""

    name = "budget"

    def __init__(self, settings: Settings, server: Asker | None, console: Asker | None) -> None:
        self._settings = settings
        self._server = server
        self._console = console
        self.facts = limits.declared(settings)
        self._clients: int | None = None

    async def collect(self) -> list[Metric]:
        facts = limits.declared(self._settings)
        failures = []
        try:
            facts = await self._ask_server(facts)
        except (psycopg.Error, OSError) as error:
            failures.append(f"the server was not asked: {limits.first_line(error)}")
        try:
            facts = await self._ask_console(facts)
        except (psycopg.Error, OSError) as error:
            failures.append(f"PgBouncer's console was not asked: {limits.first_line(error)}")
        if failures:
            # The limits have hardly changed; how many are open has.
            self.facts = self.facts._replace(observed=None, remarks=tuple(failures))
            self._clients = None
            raise Incomplete("; ".join(failures), self.absent())
        self.facts = facts
        return self.absent()

    def absent(self) -> list[Metric]:
        observed = {"server connections": self.facts.observed, "pooler clients": self._clients}
        return _metrics(self.facts.budget, {name: number for name, number in observed.items() if number is not None})

    @property
    def observed(self) -> dict[str, int | None]:
        """How many connections are open, by the limit that counts them."""
        return {"server connections": self.facts.observed, "pooler clients": self._clients}

    async def _ask_server(self, facts: Facts) -> Facts:
        if self._server is None:
            return facts
        [row] = await self._server.ask(_LIMITS)
        return limits.with_server(facts, row, self._settings.postgres_max_connections)

    async def _ask_console(self, facts: Facts) -> Facts:
        url = self._settings.known_exporter_database_url()
        if self._console is None or url is None:
            return facts
        config = await self._console.ask("SHOW CONFIG")
        databases = await self._console.ask("SHOW DATABASES")
        [self._clients] = [
            row["items"] for row in await self._console.ask("SHOW LISTS") if row["list"] == "used_clients"
        ]
        return limits.with_console(facts, config, databases, url.database)


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
