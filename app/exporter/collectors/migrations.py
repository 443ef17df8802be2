"""How the database's schema compares with the exporter's own release."""

import logging

from prometheus_client import Metric

from app.database.admin_connection import AdminConnection
from app.database.schema_version import Comparison, State, compare, database_schema
from app.exporter.scraper import single
from app.observability.catalogue import MIGRATIONS_AHEAD, MIGRATIONS_PENDING, SCHEMA_COMPATIBLE

logger = logging.getLogger(__name__)


class MigrationsCollector:
    """Collects `db_migrations_*` and `db_schema_compatible`.

    The exporter runs on every schema, because it is the program that reports an incompatible one. It logs each change.
    """

    name = "migrations"

    def __init__(self, server: AdminConnection) -> None:
        self._server = server
        self._last: Comparison | None = None

    async def collect(self) -> list[Metric]:
        """Query the applied revisions. Raise DatabaseUnavailable."""
        result = compare(await database_schema(self._server))
        if result != self._last and (self._last is not None or result.state is not State.CURRENT):
            logger.log(logging.INFO if result.may_run else logging.WARNING, "%s", result)
        self._last = result
        return [
            single(MIGRATIONS_PENDING, len(result.pending)),
            single(MIGRATIONS_AHEAD, len(result.ahead)),
            single(SCHEMA_COMPATIBLE, result.may_run),
        ]

    def fallback(self) -> list[Metric]:
        """Return nothing: the numbers are unknown."""
        return []
