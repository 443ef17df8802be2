from app.database.admin_connection import AdminConnection
from app.exporter.collectors.archive import ArchiveCollector


async def test_server_without_an_archive_has_no_wal_metrics(server: AdminConnection) -> None:
    """The query runs as the role of the exporter. `tests/stack/test_backups.py` has a server with an archive."""
    assert await ArchiveCollector(server).collect() == []
