"""The client connections of the PostgreSQL server, and its limit."""

import re
from collections import Counter

from prometheus_client import Metric

from app.budget.sources import CLIENTS
from app.database.admin_connection import AdminConnection
from app.exporter.scraper import family, single
from app.observability.catalogue import (
    SERVER_CONNECTIONS,
    SERVER_MAX_CONNECTIONS,
    SERVER_UP,
)

_MAX_CONNECTIONS = "SELECT current_setting('max_connections')::int AS max_connections"
# Without pg_monitor, the state of other roles' connections is hidden.
_ACTIVITY = f"""
    SELECT coalesce(usename, '') AS role, coalesce(application_name, '') AS application,
           coalesce(state, 'unknown') AS state, count(*)::int AS connections
    FROM pg_stat_activity WHERE {CLIENTS} GROUP BY 1, 2, 3
"""  # noqa: S608 - CLIENTS is a constant
# The first two parts of "headroom:api:<replica>:<worker>": the whole name would be a series per worker.
_PROGRAM = re.compile(r"headroom:[^:]+")


class ServerCollector:
    """Collects `db_server_*`."""

    name = "server"

    def __init__(self, server: AdminConnection) -> None:
        self._server = server

    async def collect(self) -> list[Metric]:
        """Query the server. Raise DatabaseUnavailable."""
        [limits] = await self._server.query(_MAX_CONNECTIONS)
        connections: Counter[tuple[str, str, str]] = Counter()
        for row in await self._server.query(_ACTIVITY):
            program = _PROGRAM.match(row["application"])
            application = program.group() if program else row["application"]
            connections[row["role"], application, row["state"]] += row["connections"]
        return [
            single(SERVER_UP, 1),
            single(SERVER_MAX_CONNECTIONS, limits["max_connections"]),
            family(
                SERVER_CONNECTIONS,
                [
                    ({"role": role, "application": application, "state": state}, number)
                    for (role, application, state), number in sorted(connections.items())
                ],
            ),
        ]

    def fallback(self) -> list[Metric]:
        """Report that the server does not answer."""
        return [single(SERVER_UP, 0)]
