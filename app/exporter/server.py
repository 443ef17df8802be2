"""The server's own view: who is connected to it, how many it admits, and which revisions it has."""

import re
from collections import Counter

from prometheus_client import Metric

from app.exporter.asker import Asker
from app.exporter.scrape import many, one
from app.limits import CLIENTS
from app.observability.catalogue import (
    MIGRATIONS_PENDING,
    SERVER_CONNECTIONS,
    SERVER_MAX_CONNECTIONS,
    SERVER_UP,
)
from app.preflight import pending

_MAX_CONNECTIONS = "SELECT current_setting('max_connections')::int AS max_connections"
# Without pg_monitor, what others do has no state.
_ACTIVITY = f"""
    SELECT coalesce(usename, '') AS role, coalesce(application_name, '') AS application,
           coalesce(state, 'unknown') AS state, count(*)::int AS connections
    FROM pg_stat_activity WHERE {CLIENTS} GROUP BY 1, 2, 3
"""  # noqa: S608 - a constant of ours
_REVISIONS = "SELECT version_num FROM alembic_version"
_HAS_REVISIONS = "SELECT to_regclass('alembic_version') IS NOT NULL AS has"
# "headroom:api:<replica>:<worker>": by replica and worker it would be a series for each worker there ever was.
_PROGRAM = re.compile(r"headroom:[^:]+")


class ServerCollector:
    """`db_server_*`."""

    name = "server"

    def __init__(self, server: Asker) -> None:
        self._server = server

    async def collect(self) -> list[Metric]:
        [limits] = await self._server.ask(_MAX_CONNECTIONS)
        connections: Counter[tuple[str, str, str]] = Counter()
        for row in await self._server.ask(_ACTIVITY):
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


class MigrationsCollector:
    """`db_migrations_pending`: by the revisions of this release, which is the API's where they share an image."""

    name = "migrations"

    def __init__(self, server: Asker) -> None:
        self._server = server

    async def collect(self) -> list[Metric]:
        [table] = await self._server.ask(_HAS_REVISIONS)
        rows = await self._server.ask(_REVISIONS) if table["has"] else []
        return [one(MIGRATIONS_PENDING, pending({row["version_num"] for row in rows}))]

    def absent(self) -> list[Metric]:
        return []
