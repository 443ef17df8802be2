import psycopg
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.database.conninfo import parameters
from app.exporter.collectors.pgbouncer import PgBouncerCollector
from tests.integration.exporter.collectors.helpers import total
from tests.support.postgres import PgBouncer


async def test_pgbouncer_metrics_describe_an_active_client(
    console: AdminConnection, pgbouncer: PgBouncer, database_url: URL
) -> None:
    with psycopg.connect(**parameters(pgbouncer.url(database_url)), autocommit=True) as client:
        client.execute("SELECT 1")
        metrics = await PgBouncerCollector(console).collect()

    assert total(metrics, "pgbouncer_up") == 1
    pool = {"database": str(database_url.database), "user": "headroom_app"}
    assert total(metrics, "pgbouncer_pools_client_connections", state="active", **pool) == 1
    assert total(metrics, "pgbouncer_pools_server_connections", **pool) == 1
    assert total(metrics, "pgbouncer_pools_client_maxwait_seconds", **pool) == 0
    assert total(metrics, "pgbouncer_stats_queries_total", database=pool["database"]) >= 1
    assert total(metrics, "pgbouncer_stats_query_seconds_total", database=pool["database"]) < 1
    assert total(metrics, "pgbouncer_lists_items", list="used_clients") >= 1
