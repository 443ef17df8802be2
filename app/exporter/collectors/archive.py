"""The archiving of the server's WAL."""

from prometheus_client import Metric

from app.database.admin_connection import AdminConnection
from app.exporter.scraper import single
from app.observability.catalogue import WAL_ARCHIVE_FAILURES, WAL_ARCHIVE_WAITING, WAL_ARCHIVED_AGE

# A finished segment waits as a file `.ready`. An idle server has none, although it archives nothing for hours.
_ARCHIVE = """
    SELECT current_setting('archive_mode') <> 'off' AS enabled,
           failed_count::float AS failures,
           extract(epoch FROM clock_timestamp() - last_archived_time)::float AS archived_age,
           (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(modification)), 0)::float
            FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS waiting
    FROM pg_stat_archiver
"""


class ArchiveCollector:
    """Collects `db_wal_*`, if the server archives its WAL."""

    name = "archive"

    def __init__(self, server: AdminConnection) -> None:
        self._server = server

    async def collect(self) -> list[Metric]:
        """Query the state of the archiver. Raise DatabaseUnavailable."""
        [row] = await self._server.query(_ARCHIVE)
        if not row["enabled"]:
            return []
        metrics = [
            single(WAL_ARCHIVE_WAITING, max(0.0, row["waiting"])),
            single(WAL_ARCHIVE_FAILURES, row["failures"]),
        ]
        if row["archived_age"] is not None:
            metrics.append(single(WAL_ARCHIVED_AGE, max(0.0, row["archived_age"])))
        return metrics

    def fallback(self) -> list[Metric]:
        """Return nothing: the state is unknown."""
        return []
