"""What the exporter hears from a real PostgreSQL and a real PgBouncer, as the role it has in production."""

from collections.abc import AsyncIterator
from time import monotonic

import psycopg
import pytest
from prometheus_client import Metric
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.database.conninfo import parameters
from app.errors import DatabaseUnavailable
from app.exporter.collectors.budget import BudgetCollector
from app.exporter.collectors.migrations import MigrationsCollector
from app.exporter.collectors.pgbouncer import PgBouncerCollector
from app.exporter.collectors.server import ServerCollector
from app.exporter.scraper import Incomplete
from app.settings import Settings
from tests.support.postgres import PgBouncer, Server, as_role, connect
from tests.support.proxy import Proxy

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(metrics: list[Metric]) -> Samples:
    return {(each.name, tuple(each.labels.items())): each.value for metric in metrics for each in metric.samples}


def value(metrics: list[Metric], name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    return sum(
        number
        for (sample, has), number in samples(metrics).items()
        if sample == name and labels.items() <= dict(has).items()
    )


@pytest.fixture
def monitor(database_url: URL) -> URL:
    return as_role(database_url, "headroom_monitor")


@pytest.fixture
async def server(monitor: URL) -> AsyncIterator[AdminConnection]:
    asker = AdminConnection(monitor, application_name="headroom:exporter")
    yield asker
    await asker.close()


@pytest.fixture
async def console(postgres: Server, pgbouncer: PgBouncer) -> AsyncIterator[AdminConnection]:
    asker = AdminConnection(
        as_role(pgbouncer.url(postgres.superuser), "headroom_monitor").set(database="pgbouncer"),
        application_name="headroom:exporter",
    )
    yield asker
    await asker.close()


async def test_the_server_says_who_is_connected_and_a_worker_is_no_label(
    server: AdminConnection, database_url: URL
) -> None:
    with (
        connect(database_url, application_name="headroom:api:web-1:3"),
        connect(database_url, application_name="psql") as beside,
    ):
        metrics = await ServerCollector(server).collect()

        assert value(metrics, "db_server_up") == 1
        row = beside.execute("SELECT current_setting('max_connections')::int").fetchone()
        assert row == (value(metrics, "db_server_max_connections"),)
        assert value(metrics, "db_server_connections", application="headroom:api", state="idle") >= 1
        assert value(metrics, "db_server_connections", application="psql", state="idle") == 1
        assert value(metrics, "db_server_connections", application="headroom:exporter", state="active") == 1
        assert not [labels for _, labels in samples(metrics) if "web-1" in str(labels)]


async def test_the_monitor_sees_which_revisions_there_are_and_no_data(
    server: AdminConnection, database_url: URL
) -> None:
    assert value(await MigrationsCollector(server).collect(), "db_migrations_pending") == 0

    with connect(database_url) as connection:
        connection.execute("DELETE FROM alembic_version")
    assert value(await MigrationsCollector(server).collect(), "db_migrations_pending") > 1

    with connect(database_url) as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('of a newer release')")
    assert value(await MigrationsCollector(server).collect(), "db_migrations_pending") == 0

    with pytest.raises(DatabaseUnavailable, match="permission denied"):
        await server.query("SELECT * FROM users")


async def test_every_revision_is_pending_before_the_first_migration(empty_database: URL) -> None:
    asker = AdminConnection(empty_database, application_name="headroom:exporter")
    pending = value(await MigrationsCollector(asker).collect(), "db_migrations_pending")
    await asker.close()

    assert pending > 1


async def test_the_connection_is_opened_again_after_the_server_has_closed_it(
    server: AdminConnection, database_url: URL
) -> None:
    collector = ServerCollector(server)
    await collector.collect()
    with connect(database_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headroom:exporter'"
        )

    assert value(await collector.collect(), "db_server_up") == 1


async def test_a_server_that_does_not_answer_is_an_error_in_time(monitor: URL) -> None:
    async with Proxy(monitor) as proxy:
        asker = AdminConnection(proxy.url, application_name="headroom:exporter")
        await asker.query("SELECT 1 AS one")
        proxy.pause()

        started = monotonic()
        with pytest.raises(DatabaseUnavailable):
            await asker.query("SELECT 1 AS one")
        assert monotonic() - started < 4

        proxy.resume()
        assert await asker.query("SELECT 1 AS one") == [{"one": 1}]
        await asker.close()


async def test_the_budget_has_the_servers_limits_and_what_is_open(
    server: AdminConnection, monitor: URL, database_url: URL
) -> None:
    settings = Settings(exporter_database_url=monitor, db_pool_size=2, db_max_overflow=1)
    with connect(database_url) as connection:
        row = connection.execute("SELECT current_setting('max_connections')::int").fetchone()
        assert row is not None

        metrics = await BudgetCollector(settings, server, None).collect()

    limit = {"limit": "server connections"}
    assert value(metrics, "db_budget_connections", term="max_connections", **limit) == row[0]
    assert value(metrics, "db_budget_demand", **limit) == 4 * 3 + 2 + 1 + 1
    supply, demand = (value(metrics, f"db_budget_{name}", **limit) for name in ("supply", "demand"))
    assert value(metrics, "db_budget_headroom", **limit) == supply - demand
    assert value(metrics, "db_budget_observed", **limit) >= 2


async def test_the_limit_of_the_apis_role_counts_and_the_monitors_own_does_not(
    server: AdminConnection, monitor: URL, database_url: URL, postgres: Server
) -> None:
    collector = BudgetCollector(Settings(exporter_database_url=monitor), server, None)
    with connect(postgres.superuser) as superuser:
        superuser.execute("ALTER ROLE headroom_app CONNECTION LIMIT 7")
        superuser.execute("ALTER ROLE headroom_monitor CONNECTION LIMIT 3")
        try:
            with psycopg.connect(**parameters(database_url), application_name="headroom:api:web:1"):
                metrics = await collector.collect()
        finally:
            superuser.execute("ALTER ROLE headroom_app CONNECTION LIMIT -1")
            superuser.execute("ALTER ROLE headroom_monitor CONNECTION LIMIT -1")

    assert value(metrics, "db_budget_supply", limit="connections of the role") == 7


async def test_a_budget_whose_server_is_gone_goes_by_what_it_heard_last(monitor: URL) -> None:
    async with Proxy(monitor) as proxy:
        asker = AdminConnection(proxy.url, application_name="headroom:exporter")
        collector = BudgetCollector(Settings(exporter_database_url=proxy.url), asker, None)
        before = await collector.collect()
        await proxy.close()

        with pytest.raises(Incomplete, match="the server was not queried") as incomplete:
            await collector.collect()
        await asker.close()

    after = incomplete.value.metrics
    assert value(after, "db_budget_supply") == value(before, "db_budget_supply") > 0
    assert not [name for name, _ in samples(after) if name == "db_budget_observed"]


async def test_pgbouncer_says_whom_it_serves_and_how_long_they_wait(
    console: AdminConnection, pgbouncer: PgBouncer, database_url: URL
) -> None:
    with psycopg.connect(**parameters(pgbouncer.url(database_url)), autocommit=True) as client:
        client.execute("SELECT 1")
        metrics = await PgBouncerCollector(console).collect()

    assert value(metrics, "pgbouncer_up") == 1
    pool = {"database": str(database_url.database), "user": "headroom_app"}
    assert value(metrics, "pgbouncer_pools_client_connections", state="active", **pool) == 1
    assert value(metrics, "pgbouncer_pools_server_connections", **pool) == 1
    assert value(metrics, "pgbouncer_pools_client_maxwait_seconds", **pool) == 0
    assert value(metrics, "pgbouncer_stats_queries_total", database=pool["database"]) >= 1
    assert value(metrics, "pgbouncer_stats_query_seconds_total", database=pool["database"]) < 1
    assert value(metrics, "pgbouncer_lists_items", list="used_clients") >= 1


async def test_behind_pgbouncer_there_is_a_limit_for_its_clients_too(
    server: AdminConnection, console: AdminConnection, monitor: URL
) -> None:
    settings = Settings(exporter_database_url=monitor, db_pooler="pgbouncer")
    metrics = await BudgetCollector(settings, server, console).collect()

    assert value(metrics, "db_budget_supply", limit="pooler clients") > 0
    assert value(metrics, "db_budget_observed", limit="pooler clients") >= 1
    assert value(metrics, "db_budget_connections", limit="server connections", term="pgbouncer") > 0
