import pytest
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.database.schema_version import revisions
from app.errors import DatabaseUnavailable
from app.exporter.collectors.migrations import MigrationsCollector
from tests.integration.exporter.collectors.helpers import total
from tests.support import sample
from tests.support.postgres import connect


async def pending(server: AdminConnection) -> float:
    return total(await MigrationsCollector(server).collect(), "db_migrations_pending")


async def test_pending_migrations_follow_the_applied_revision(server: AdminConnection, database_url: URL) -> None:
    assert await pending(server) == 0

    with connect(database_url) as connection:
        connection.execute("DELETE FROM alembic_version")
    assert await pending(server) == len(revisions())

    with connect(database_url) as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('of a newer release')")
    assert await pending(server) == 0


async def test_all_migrations_are_pending_on_an_empty_database(empty_database: URL) -> None:
    async with AdminConnection(empty_database, application_name="headroom:exporter") as connection:
        assert await pending(connection) == len(revisions())


async def test_monitor_role_cannot_read_application_data(server: AdminConnection) -> None:
    with pytest.raises(DatabaseUnavailable, match="permission denied"):
        await server.query(f"SELECT * FROM {sample.TABLE}")
