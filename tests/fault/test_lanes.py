"""Noisy clients with an expensive read get their own lane, and everything else goes on. `make bench-lanes` times it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import uvloop
from sqlalchemy import URL

from tests.support import sample
from tests.support.load import Answers, load
from tests.support.postgres import as_role, connect
from tests.support.serving import gunicorn
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.alone

WORKERS, CONNECTIONS = 2, 3  # connections of each worker
NOISY_CLIENTS = 20


class Server:
    """Counts the noisy statements that run on the server."""

    def __init__(self, database: URL) -> None:
        self._connection = connect(database)
        self.counts: list[int] = []

    def count(self) -> int:
        row = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE state = 'active' AND query LIKE '%pg_sleep%' AND application_name LIKE 'headroom:api:%'"
        ).fetchone()
        assert row is not None
        self.counts.append(int(row[0]))
        return self.counts[-1]

    async def watch(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.count()
            await asyncio.sleep(0.02)

    def close(self) -> None:
        self._connection.close()


async def disturb(api: str, row: str, server: Server) -> tuple[Answers, Answers, list[int]]:
    """Return the answers of the noisy clients and of readers next to them, and the statuses of critical reads.

    The readers' answers, and the server's counts, are those after every worker has moved the noisy statement.
    """
    stop = asyncio.Event()
    noisy = asyncio.create_task(
        load([f"{api}/hold?ms=200"], clients=NOISY_CLIENTS, until=stop, patient=False, pause=0.02)
    )
    learning = asyncio.create_task(load([f"{api}{row}"], clients=8, until=stop, pause=0.01))

    async def is_moved() -> bool:
        counts = []
        for _ in range(20):
            counts.append(server.count())
            await asyncio.sleep(0.02)
        return max(counts) <= WORKERS

    await eventually_async(is_moved, within=60, jobs=(noisy, learning))
    server.counts.clear()
    watched = asyncio.Event()
    watching = asyncio.create_task(server.watch(watched))
    readers = await load([f"{api}{row}"], clients=8, seconds=2, pause=0.01)
    async with httpx.AsyncClient(timeout=30) as client:
        critical = [(await client.get(f"{api}/critical")).status_code for _ in range(5)]
    watched.set()
    await watching
    stop.set()
    await learning
    return await noisy, readers, critical


def test_noisy_clients_leave_connections_to_readers_and_critical(
    database: URL, new_directory: Callable[[], Path]
) -> None:
    limits = {
        "WEB_CONCURRENCY": str(WORKERS),
        "DB_POOL_SIZE": str(CONNECTIONS),
        "DB_MAX_OVERFLOW": "0",
        "DB_EXPENSIVE_SHARE": "1",
    }
    url = as_role(database, "headroom_app")
    server = Server(database)
    try:
        with gunicorn("tests.support.holding:create()", url, new_directory(), **limits) as served:
            created = httpx.post(f"{served.address}{sample.PATH}", json=sample.new("ann"), timeout=30)
            row = created.headers["location"]
            noisy, readers, critical = uvloop.run(disturb(served.address, row, server))
    finally:
        server.close()

    assert set(readers.statuses) == {200}
    assert critical == [200] * 5
    assert set(noisy.statuses) <= {200, 503}
    assert noisy.statuses[200] > 0, "the lane goes on serving"
    assert 1 <= max(server.counts) <= WORKERS, "of 6 connections"
