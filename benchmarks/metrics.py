"""What the metrics cost: processor time of a request with and without the pool's, and how long a scrape takes.

`make bench-metrics`. A request is `GET /users/{id}` through the whole application, without a server around it, so the
share that metrics have is, if anything, overstated. Blocks with and without alternate in one process.
"""

# ruff: noqa: E402 - where metrics live is decided before they are imported
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvloop
from sqlalchemy import URL

from app.observability import multiprocess

# prometheus_client decides at import whether values live in mapped files, as a worker's do.
multiprocess.open_directory(Path(tempfile.mkdtemp()) / "replica")

from app import main as application
from app.database.pool_events import NullObserver
from app.exporter.collectors.replicas import ReplicasCollector
from app.observability.logging import configure_logging
from app.observability.pool_metrics import PoolMetrics
from app.paths import PROJECT_ROOT
from app.settings import Settings
from tests.support.asgi import ask
from tests.support.postgres import as_role, connect, run_postgres

BLOCKS, REQUESTS = 40, 400
DEATHS, REPLICAS = 2_000, 10
SCRAPES = 20


class NoPoolMetrics(NullObserver):
    """In the place of PoolMetrics."""

    def __init__(self, pool: str) -> None: ...
    def publish(self, state: object) -> None: ...


async def cost_of_a_request(url: URL) -> None:
    configure_logging(format="json", level="error")  # a line for each request would hide what is measured
    settings = Settings(
        database_url=url, secret_key="for tests only, for tests only, for tests only", log_level="error"
    )
    apps: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        for name, meter in (("with", PoolMetrics), ("without", NoPoolMetrics)):
            with patch.object(application, "PoolMetrics", meter):
                apps[name] = application.create_app(settings)
                await stack.enter_async_context(apps[name].router.lifespan_context(apps[name]))

        micros: dict[str, list[float]] = {name: [] for name in apps}
        for block in range(BLOCKS + 2):
            # Who goes first changes, too.
            for name in sorted(apps, reverse=bool(block % 2)):
                started = time.process_time()
                for number in range(REQUESTS):
                    status, _ = await ask(apps[name], "GET", f"/users/{number % 100 + 1}")
                    assert status == 200
                if block >= 2:  # the first two warm up
                    micros[name].append((time.process_time() - started) / REQUESTS * 1e6)
    pairs = [a / b for a, b in zip(micros["with"], micros["without"], strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    print("| | CPU us per request, median |\n| --- | --- |")
    for name in apps:
        print(f"| {name} pool metrics | {statistics.median(micros[name]):.0f} |")
    print(f"\nratio of pairs: {statistics.median(pairs):.3f} (quartiles {low:.3f} to {high:.3f})\n")


# A replica whose workers come and go: each takes a slot, counts what an API counts, and dies without a word.
REPLICA = """
import os, sys
from pathlib import Path
from app.observability import multiprocess
directory, deaths = Path(sys.argv[1]), int(sys.argv[2])
multiprocess.open_directory(directory)
from app.observability.http_metrics import HttpMetrics
from app.observability.pool_metrics import PoolMetrics
from app.observability.process_metrics import ProcessMetrics
from app.database.pool import PoolState

def work(slot):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)
    multiprocess.enter_worker(slot)
    pool, http, process = PoolMetrics("api"), HttpMetrics(), ProcessMetrics("0")
    for route in range(20):
        http.started()
        http.finished("GET", f"/route/{route}", 200, 0.01)
    pool.publish(PoolState(5, 10, 1, 2, 0))
    http.publish()
    process.publish()
    (directory / f"{slot}.alive").touch()
    os._exit(9)

for number in range(deaths):
    work(number % 4 + 1)
"""


def scrape_times() -> None:
    print("| | files | scrape ms, median | slowest |\n| --- | --- | --- | --- |")
    for label, replicas, deaths in (
        ("4 workers", 1, 4),
        (f"4 workers, after {DEATHS} deaths", 1, DEATHS),
        (f"{REPLICAS} replicas of 4", REPLICAS, 4),
    ):
        directory = Path(tempfile.mkdtemp())
        for number in range(replicas):
            subprocess.run(
                [sys.executable, "-c", REPLICA, directory / f"r{number}", str(deaths)], cwd=PROJECT_ROOT, check=True
            )
        for beat in directory.glob("*/*.alive"):
            os.utime(beat)
        collector = ReplicasCollector(directory)
        times = []
        for _ in range(SCRAPES):
            started = time.perf_counter()
            metrics = collector.read()
            times.append((time.perf_counter() - started) * 1000)
        assert sum(s.value for m in metrics for s in m.samples if s.name == "headroom_worker_starts_total") == (
            replicas * deaths
        )
        files = len(list(directory.glob("*/*.db")))
        print(f"| {label} | {files} | {statistics.median(times):.1f} | {max(times):.1f} |", flush=True)


def main() -> None:
    with run_postgres(Path(tempfile.mkdtemp())) as server, server.migrated() as url:
        with connect(url) as connection:
            connection.execute(
                "INSERT INTO users (email, name, password_hash)"
                " SELECT 'u' || n, 'U', 'x' FROM generate_series(1, 100) AS n"
            )
        uvloop.run(cost_of_a_request(as_role(url, "headroom_app")))
    scrape_times()


if __name__ == "__main__":
    main()
