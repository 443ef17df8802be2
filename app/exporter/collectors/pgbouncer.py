"""PgBouncer's view, from its console: SHOW POOLS, SHOW STATS and SHOW LISTS."""

from typing import Any

from prometheus_client import Metric

from app.database.admin_connection import AdminConnection
from app.exporter.scraper import many, one
from app.observability import catalogue
from app.observability.catalogue import Described

MICROSECONDS = 1e-6

# What SHOW STATS calls it, and in what it counts.
_STATS: tuple[tuple[Described, str, float], ...] = (
    (catalogue.PGBOUNCER_TRANSACTIONS, "total_xact_count", 1),
    (catalogue.PGBOUNCER_QUERIES, "total_query_count", 1),
    (catalogue.PGBOUNCER_RECEIVED, "total_received", 1),
    (catalogue.PGBOUNCER_SENT, "total_sent", 1),
    (catalogue.PGBOUNCER_TRANSACTION_TIME, "total_xact_time", MICROSECONDS),
    (catalogue.PGBOUNCER_QUERY_TIME, "total_query_time", MICROSECONDS),
    (catalogue.PGBOUNCER_WAIT_TIME, "total_wait_time", MICROSECONDS),
)


class PgBouncerCollector:
    """`pgbouncer_*`."""

    name = "pgbouncer"

    def __init__(self, console: AdminConnection) -> None:
        self._console = console

    async def collect(self) -> list[Metric]:
        pools = await self._console.query("SHOW POOLS")
        stats = await self._console.query("SHOW STATS")
        lists = await self._console.query("SHOW LISTS")
        return [
            one(catalogue.PGBOUNCER_UP, 1),
            _by_state(catalogue.PGBOUNCER_CLIENTS, pools, "cl_"),
            _by_state(catalogue.PGBOUNCER_SERVERS, pools, "sv_"),
            many(
                catalogue.PGBOUNCER_MAX_WAIT,
                [(_pool(row), row["maxwait"] + row["maxwait_us"] * MICROSECONDS) for row in pools],
            ),
            *(
                many(described, [({"database": row["database"]}, float(row[column]) * unit) for row in stats])
                for described, column, unit in _STATS
            ),
            many(catalogue.PGBOUNCER_LISTS, [({"list": row["list"]}, row["items"]) for row in lists]),
        ]

    def absent(self) -> list[Metric]:
        return [one(catalogue.PGBOUNCER_UP, 0)]


def _pool(row: dict[str, Any]) -> dict[str, str]:
    return {"database": row["database"], "user": row["user"]}


def _by_state(described: Described, pools: list[dict[str, Any]], prefix: str) -> Metric:
    """The columns of this prefix, which have the states in their names. They differ between PgBouncer's versions."""
    return many(
        described,
        [
            (_pool(row) | {"state": column.removeprefix(prefix)}, value)
            for row in pools
            for column, value in row.items()
            if column.startswith(prefix)
        ],
    )
