"""PgBouncer's pools and statistics, from its console: SHOW POOLS, SHOW STATS and SHOW LISTS."""

from typing import Any

from prometheus_client import Metric

from app.database.admin_connection import AdminConnection
from app.exporter.scraper import family, single
from app.observability import catalogue
from app.observability.catalogue import MetricSpec

MICROSECONDS = 1e-6

# Metric, column of SHOW STATS, and the column's unit.
_STATS: tuple[tuple[MetricSpec, str, float], ...] = (
    (catalogue.PGBOUNCER_TRANSACTIONS, "total_xact_count", 1),
    (catalogue.PGBOUNCER_QUERIES, "total_query_count", 1),
    (catalogue.PGBOUNCER_RECEIVED, "total_received", 1),
    (catalogue.PGBOUNCER_SENT, "total_sent", 1),
    (catalogue.PGBOUNCER_TRANSACTION_TIME, "total_xact_time", MICROSECONDS),
    (catalogue.PGBOUNCER_QUERY_TIME, "total_query_time", MICROSECONDS),
    (catalogue.PGBOUNCER_WAIT_TIME, "total_wait_time", MICROSECONDS),
)


class PgBouncerCollector:
    """Collects `pgbouncer_*`."""

    name = "pgbouncer"

    def __init__(self, console: AdminConnection) -> None:
        self._console = console

    async def collect(self) -> list[Metric]:
        """Query the console. Raise DatabaseUnavailable."""
        pools = await self._console.query("SHOW POOLS")
        stats = await self._console.query("SHOW STATS")
        lists = await self._console.query("SHOW LISTS")
        return [
            single(catalogue.PGBOUNCER_UP, 1),
            _by_state(catalogue.PGBOUNCER_CLIENTS, pools, "cl_"),
            _by_state(catalogue.PGBOUNCER_SERVERS, pools, "sv_"),
            family(
                catalogue.PGBOUNCER_MAX_WAIT,
                [(_pool_labels(row), row["maxwait"] + row["maxwait_us"] * MICROSECONDS) for row in pools],
            ),
            *(
                family(spec, [({"database": row["database"]}, float(row[column]) * unit) for row in stats])
                for spec, column, unit in _STATS
            ),
            family(catalogue.PGBOUNCER_LISTS, [({"list": row["list"]}, row["items"]) for row in lists]),
        ]

    def fallback(self) -> list[Metric]:
        """Report that PgBouncer does not answer."""
        return [single(catalogue.PGBOUNCER_UP, 0)]


def _pool_labels(row: dict[str, Any]) -> dict[str, str]:
    return {"database": row["database"], "user": row["user"]}


def _by_state(spec: MetricSpec, pools: list[dict[str, Any]], prefix: str) -> Metric:
    """Return a sample for each column with the prefix. The rest of its name is the state; versions differ in them."""
    return family(
        spec,
        [
            (_pool_labels(row) | {"state": column.removeprefix(prefix)}, value)
            for row in pools
            for column, value in row.items()
            if column.startswith(prefix)
        ],
    )
