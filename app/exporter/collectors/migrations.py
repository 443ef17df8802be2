"""Revisions of this release that are not applied to the database."""

from prometheus_client import Metric

from app.database.admin_connection import AdminConnection
from app.database.schema_version import applied_revisions, pending_revisions
from app.exporter.scraper import single
from app.observability.catalogue import MIGRATIONS_PENDING


class MigrationsCollector:
    """Collects `db_migrations_pending`, from the revisions of the exporter's own release."""

    name = "migrations"

    def __init__(self, server: AdminConnection) -> None:
        self._server = server

    async def collect(self) -> list[Metric]:
        """Query the applied revisions. Raise DatabaseUnavailable."""
        return [single(MIGRATIONS_PENDING, pending_revisions(await applied_revisions(self._server)))]

    def fallback(self) -> list[Metric]:
        """Return nothing: the number is unknown."""
        return []
