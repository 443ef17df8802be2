"""The server's own view: its client connections, and how many it admits."""

import re
from collections import Counter

from prometheus_client import Metric

from app.budget.sources import CLIENTS
from app.database.admin_connection import AdminConnection
from app.exporter.scraper import many, one
from app.observability.catalogue import (
    SERVER_CONNECTIONS,
    SERVER_MAX_CONNECTIONS,
    SERVER_UP,
)

_MAX_CONNECTIONS = "SELECT current_setting('max_connections')::int AS max_connections"
# Without pg_monitor, what others do has no state.
_ACTIVITY = f"""
    SELECT coalesce(usename, '') AS role, coalesce(application_name, '') AS application,
           coalesce(state, 'unknown') AS state, count(*)::int AS connections
    FROM pg_stat_activity WHERE {CLIENTS} GROUP BY 1, 2, 3
"""  # noqa: S608 - a constant of ours
# "headroom:api:<replica>:<worker>": by replica and worker it would be a series for each worker there ever was.
_PROGRAM = re.compile(r"headroom:[^:]+")


class ServerCollector:
    """`db_server_*`."""

    name = "server"

    def __init__(self, server: AdminConnection) -> None:
        self._server = server

    async def collect(self) -> list[Metric]:
        [limits] = await self._server.query(_MAX_CONNECTIONS)
        connections: Counter[tuple[str, str, str]] = Counter()
        for row in await self._server.query(_ACTIVITY):
            program = _PROGRAM.match(row["application"])
            application = program.group() if program else row["application"]
            connections[row["role"], application, row["state"]] += row["connections"]
        return [
            one(SERVER_UP, 1),
            one(SERVER_MAX_CONNECTIONS, limits["max_connections"]),
            many(
                SERVER_CONNECTIONS,
                [
                    ({"role": role, "application": application, "state": state}, number)
                    for (role, application, state), number in sorted(connections.items())
                ],
            ),
        ]

    def absent(self) -> list[Metric]:
        return [one(SERVER_UP, 0)]
