from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from tests.support.postgres import PgBouncer, Server, as_role


@pytest.fixture
def monitor_url(database_url: URL) -> URL:
    """Return the URL of the test's database with the role that the exporter has in production."""
    return as_role(database_url, "headroom_monitor")


@pytest.fixture
async def server(monitor_url: URL) -> AsyncIterator[AdminConnection]:
    async with AdminConnection(monitor_url, application_name="headroom:exporter") as connection:
        yield connection


@pytest.fixture
async def console(postgres: Server, pgbouncer: PgBouncer) -> AsyncIterator[AdminConnection]:
    url = as_role(pgbouncer.url(postgres.superuser), "headroom_monitor").set(database="pgbouncer")
    async with AdminConnection(url, application_name="headroom:exporter") as connection:
        yield connection
