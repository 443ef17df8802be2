from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.exporter.collectors.server import ServerCollector
from tests.integration.exporter.collectors.helpers import samples, total
from tests.support.postgres import connect


async def test_connections_are_counted_by_application(server: AdminConnection, database_url: URL) -> None:
    with (
        connect(database_url, application_name="headroom:api:web-1:3"),
        connect(database_url, application_name="psql") as psql,
    ):
        metrics = await ServerCollector(server).collect()

        assert total(metrics, "db_server_up") == 1
        row = psql.execute("SELECT current_setting('max_connections')::int").fetchone()
        assert row == (total(metrics, "db_server_max_connections"),)
        assert total(metrics, "db_server_connections", application="headroom:api", state="idle") >= 1
        assert total(metrics, "db_server_connections", application="psql", state="idle") == 1
        assert total(metrics, "db_server_connections", application="headroom:exporter", state="active") == 1


async def test_connections_are_not_counted_by_worker(server: AdminConnection, database_url: URL) -> None:
    """Replica and worker in the application name would be a new series for each worker."""
    with connect(database_url, application_name="headroom:api:web-1:3"):
        metrics = await ServerCollector(server).collect()

    assert not [labels for _, labels in samples(metrics) if "web-1" in str(labels)]
