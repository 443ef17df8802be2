import psycopg
import pytest
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.database.conninfo import parameters
from app.exporter.collectors.budget import BudgetCollector
from app.exporter.scraper import PartialFailure
from app.settings import Settings
from tests.integration.exporter.collectors.helpers import samples, total
from tests.support.postgres import Server, connect
from tests.support.proxy import Proxy


async def test_budget_has_the_servers_limits_and_open_connections(
    server: AdminConnection, monitor_url: URL, database_url: URL
) -> None:
    settings = Settings(exporter_database_url=monitor_url, db_pool_size=2, db_max_overflow=1)
    with connect(database_url) as connection:
        row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
        assert row is not None

        metrics = await BudgetCollector(settings, server, None).collect()

    limit = {"limit": "server connections"}
    assert total(metrics, "db_budget_connections", term="max_connections", **limit) == row[0]
    assert total(metrics, "db_budget_demand", **limit) == 4 * 3 + 2 + 1 + 1
    supply, demand = (total(metrics, f"db_budget_{name}", **limit) for name in ("supply", "demand"))
    assert total(metrics, "db_budget_headroom", **limit) == supply - demand
    assert total(metrics, "db_budget_observed", **limit) >= 2


async def test_connection_limit_of_the_apis_role_is_used_not_the_monitors(
    server: AdminConnection, monitor_url: URL, database_url: URL, postgres: Server
) -> None:
    collector = BudgetCollector(Settings(exporter_database_url=monitor_url), server, None)
    with connect(postgres.superuser) as superuser:
        superuser.execute("ALTER ROLE headroom_app CONNECTION LIMIT 7")
        superuser.execute("ALTER ROLE headroom_monitor CONNECTION LIMIT 3")
        try:
            with psycopg.connect(**parameters(database_url), application_name="headroom:api:web:1"):
                metrics = await collector.collect()
        finally:
            superuser.execute("ALTER ROLE headroom_app CONNECTION LIMIT -1")
            superuser.execute("ALTER ROLE headroom_monitor CONNECTION LIMIT -1")

    assert total(metrics, "db_budget_supply", limit="connections of the role") == 7


async def test_budget_without_its_server_keeps_the_last_known_limits(monitor_url: URL) -> None:
    async with (
        Proxy(monitor_url) as proxy,
        AdminConnection(proxy.url, application_name="headroom:exporter") as connection,
    ):
        collector = BudgetCollector(Settings(exporter_database_url=proxy.url), connection, None)
        before = await collector.collect()
        await proxy.close()

        with pytest.raises(PartialFailure, match="the server was not queried") as failure:
            await collector.collect()

    after = failure.value.metrics
    assert total(after, "db_budget_supply") == total(before, "db_budget_supply") > 0
    assert not [name for name, _ in samples(after) if name == "db_budget_observed"]


async def test_budget_behind_pgbouncer_has_a_limit_of_its_clients(
    server: AdminConnection, console: AdminConnection, monitor_url: URL
) -> None:
    settings = Settings(exporter_database_url=monitor_url, db_pooler="pgbouncer")
    metrics = await BudgetCollector(settings, server, console).collect()

    assert total(metrics, "db_budget_supply", limit="pooler clients") > 0
    assert total(metrics, "db_budget_observed", limit="pooler clients") >= 1
    assert total(metrics, "db_budget_connections", limit="server connections", term="pgbouncer") > 0
