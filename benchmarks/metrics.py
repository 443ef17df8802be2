"""The cost of the metrics: CPU time per request with and without the pool's, and the time of a scrape.

`make bench-metrics`. A request is `GET /users/{id}` through the whole application, without an HTTP server. Its share of
the metrics is therefore higher than in production. Blocks with and without the metrics alternate in one process.
"""

# ruff: noqa: E402 - the metrics' directory is chosen before the modules that define metrics are imported
import argparse
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

# As in a worker: prometheus_client decides at import whether values are in memory-mapped files.
multiprocess.open_directory(Path(tempfile.mkdtemp()) / "replica")

from app import main as application
from app.database.pool_events import NullObserver
from app.exporter.collectors.replicas import ReplicasCollector
from app.observability.logging import configure_logging
from app.observability.pool_metrics import PoolMetrics
from app.paths import PROJECT_ROOT
from app.settings import Settings
from benchmarks.database import benchmark_database
from benchmarks.tables import print_header, print_row
from tests.support.asgi import send_request
from tests.support.postgres import as_role, connect
from tests.support.serving import SECRET_KEY

REQUESTS, WARM_UP_BLOCKS = 400, 2
REPLICAS, WORKERS = 10, 4
USERS = 100


class NoPoolMetrics(NullObserver):
    """Replaces PoolMetrics."""

    def __init__(self, pool: str) -> None: ...
    def publish(self, state: object) -> None: ...


async def measure_request(url: URL, blocks: int) -> None:
    """Print the CPU time of a request with and without the pool's metrics."""
    configure_logging(format="json", level="error")  # log lines would hide the difference
    settings = Settings(database_url=url, secret_key=SECRET_KEY, log_level="error")
    apps: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        for name, observer in (("with", PoolMetrics), ("without", NoPoolMetrics)):
            with patch.object(application, "PoolMetrics", observer):
                apps[name] = application.create_app(settings)
                await stack.enter_async_context(apps[name].router.lifespan_context(apps[name]))

        micros: dict[str, list[float]] = {name: [] for name in apps}
        for block in range(blocks + WARM_UP_BLOCKS):
            for name in sorted(apps, reverse=bool(block % 2)):  # the order alternates
                started = time.process_time()
                for number in range(REQUESTS):
                    status, _ = await send_request(apps[name], "GET", f"/users/{number % USERS + 1}")
                    assert status == 200
                if block >= WARM_UP_BLOCKS:
                    micros[name].append((time.process_time() - started) / REQUESTS * 1e6)
    pairs = [a / b for a, b in zip(micros["with"], micros["without"], strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    print_header(("", "CPU us per request, median"))
    for name in apps:
        print_row((f"{name} pool metrics", f"{statistics.median(micros[name]):.0f}"))
    print(f"\nRatio of pairs: {statistics.median(pairs):.3f} (quartiles {low:.3f} to {high:.3f})\n")


def measure_scrapes(deaths: int, scrapes: int) -> None:
    """Print how long the collector takes for one replica, after many worker deaths, and for many replicas."""
    print_header(("", "files", "scrape ms, median", "slowest"))
    for label, replicas, starts in (
        (f"{WORKERS} workers", 1, WORKERS),
        (f"{WORKERS} workers, after {deaths} deaths", 1, deaths),
        (f"{REPLICAS} replicas of {WORKERS}", REPLICAS, WORKERS),
    ):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for number in range(replicas):
                arguments = [str(directory / f"r{number}"), str(starts), str(WORKERS)]
                subprocess.run([sys.executable, "-m", "benchmarks.replica", *arguments], cwd=PROJECT_ROOT, check=True)
            for heartbeat in directory.glob("*/*.alive"):
                os.utime(heartbeat)
            collector = ReplicasCollector(directory)
            times = []
            for _ in range(scrapes):
                started = time.perf_counter()
                metrics = collector.read()
                times.append((time.perf_counter() - started) * 1000)
            counted = sum(
                sample.value
                for metric in metrics
                for sample in metric.samples
                if sample.name == "headroom_worker_starts_total"
            )
            assert counted == replicas * starts
            files = len(list(directory.glob("*/*.db")))
        print_row((label, files, f"{statistics.median(times):.1f}", f"{max(times):.1f}"))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help=f"blocks of {REQUESTS} requests (default: 40)")
    parser.add_argument("--deaths", type=int, default=2_000, help="worker deaths before a scrape (default: 2000)")
    parser.add_argument("--scrapes", type=int, default=20, help="scrapes per row (default: 20)")
    options = parser.parse_args()
    with benchmark_database() as database:
        with connect(database.url) as connection:
            connection.execute(
                "INSERT INTO users (email, name, password_hash)"
                " SELECT 'u' || n, 'U', 'x' FROM generate_series(1, %s) AS n",
                (USERS,),
            )
        uvloop.run(measure_request(as_role(database.url, "headroom_app"), options.blocks))
    measure_scrapes(options.deaths, options.scrapes)


if __name__ == "__main__":
    main()
