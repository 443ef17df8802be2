"""Every worker has its share of the clients within 10 s of a start, a killed worker and a reload."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import orjson
import pytest
import uvloop
from sqlalchemy import URL

from tests.support.load import Connection, connect, get
from tests.support.postgres import as_role
from tests.support.serving import gunicorn
from tests.support.waiting import eventually_async

CLIENTS = 200
WORKERS = 4
# Each client pauses, so that 200 of them are no load that makes a busy machine late.
PAUSE_SECONDS = 0.3
EVEN_WITHIN_SECONDS = 10.0


class Clients:
    """Clients that keep their connections. Each remembers the worker of its last response."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.worker: dict[int, str] = {}
        self.statuses: Counter[int] = Counter()
        self.moved = 0
        self.problems: Counter[str] = Counter()
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(CLIENTS)]

    async def _run(self, number: int) -> None:
        while True:
            try:
                connection = await connect(self.port)
            except OSError:
                self.statuses[0] += 1
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            try:
                await self._use(connection, number)
            except OSError:
                self.statuses[0] += 1
            finally:
                connection.close()

    async def _use(self, connection: Connection, number: int) -> None:
        """Send requests until the server closes the connection."""
        while not connection.is_closed:
            answer = await connection.ask(get("/hold?ms=1"))
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.worker[number] = orjson.loads(answer.body)["worker"]
            else:
                self.problems[orjson.loads(answer.body)["type"]] += 1
            if answer.is_last:
                self.moved += 1
                return
            await asyncio.sleep(PAUSE_SECONDS)

    @property
    def shares(self) -> list[int]:
        """Return the number of clients of each worker, in ascending order."""
        return sorted(Counter(self.worker.values()).values())

    async def even(self) -> bool:
        return (
            len(self.worker) == CLIENTS and len(self.shares) == WORKERS and max(self.shares) <= 1.5 * min(self.shares)
        )

    async def become_even(self) -> None:
        await eventually_async(self.even, within=EVEN_WITHIN_SECONDS, every=0.1)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.alone
def test_shares_are_even_after_a_start_a_killed_worker_and_a_reload(database: URL, tmp_path: Path) -> None:
    async def run(port: int, master: int) -> None:
        def workers() -> set[int]:
            return {int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()}

        clients = Clients(port)
        await clients.become_even()
        assert set(clients.statuses) == {200}, clients.problems
        assert clients.moved < CLIENTS / 2

        os.kill(min(workers()), signal.SIGKILL)
        before_kill = clients.statuses[200]
        clients.worker.clear()
        await clients.become_even()
        assert clients.statuses[0] <= CLIENTS / 2, "only clients of the killed worker meet an error"
        assert clients.statuses[200] > before_kill

        broken, old = clients.statuses[0], workers()
        os.kill(master, signal.SIGHUP)

        async def reloaded() -> bool:
            return len(workers()) == WORKERS and not workers() & old

        await eventually_async(reloaded, within=60)
        clients.worker.clear()
        await clients.become_even()
        assert clients.statuses[0] == broken, "moving clients cuts no request"
        assert not clients.problems
        await clients.stop()

    # A busy machine may take long to open connections to the database. A worker with all clients still refuses some.
    # Pools so small that old and new workers of a reload together do not exceed the server's max_connections.
    patient = {"DB_POOL_TIMEOUT": "30", "DB_POOL_SIZE": "3", "DB_MAX_OVERFLOW": "5"}
    url = as_role(database, "headroom_app")
    with gunicorn("tests.support.holding:create()", url, tmp_path, **patient) as served:
        uvloop.run(run(served.port, served.pid))
