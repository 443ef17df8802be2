from time import monotonic

import pytest
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.errors import DatabaseUnavailable
from tests.support.postgres import connect
from tests.support.proxy import Proxy

ONE = "SELECT 1 AS one"


@pytest.fixture
def database_setup() -> str:
    """Return one setup: AdminConnection uses psycopg whatever the URL's driver."""
    return "asyncpg"


async def test_connection_closed_by_the_server_is_opened_again(database_url: URL) -> None:
    async with AdminConnection(database_url, application_name="headroom:exporter") as connection:
        await connection.query(ONE)
        with connect(database_url) as superuser:
            superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headroom:exporter'"
            )

        assert await connection.query(ONE) == [{"one": 1}]


async def test_query_of_a_silent_server_fails_within_its_deadline(database_url: URL) -> None:
    async with (
        Proxy(database_url) as proxy,
        AdminConnection(proxy.url, application_name="headroom:exporter") as connection,
    ):
        await connection.query(ONE)
        proxy.pause()

        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await connection.query(ONE)
        assert monotonic() - started < 4

        proxy.resume()
        assert await connection.query(ONE) == [{"one": 1}]
