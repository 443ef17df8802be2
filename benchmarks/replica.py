"""A replica whose workers start and die: `python -m benchmarks.replica DIRECTORY DEATHS WORKERS`.

Each worker takes a slot, records what an API records, and exits without clean-up. benchmarks/metrics.py measures how
long the exporter takes to read the files.
"""

# ruff: noqa: E402 - the metrics' directory is chosen before the modules that define metrics are imported
import os
import sys
from pathlib import Path

from app.observability import multiprocess

directory, deaths, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
multiprocess.open_directory(directory)

from app.database.pool_events import PoolState
from app.observability.http_metrics import HttpMetrics
from app.observability.pool_metrics import PoolMetrics
from app.observability.process_metrics import ProcessMetrics

ROUTES = 20


def run_worker(slot: int) -> None:
    """Fork a worker, and wait until it has died."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    multiprocess.assign_slot(slot)
    pool, http, process = PoolMetrics("api"), HttpMetrics(), ProcessMetrics("0")
    for route in range(ROUTES):
        http.started()
        http.finished("GET", f"/route/{route}", 200, 0.01)
    pool.publish(PoolState(size=5, max_overflow=10, idle=1, used=2, waiting=0))
    http.publish()
    process.publish()
    (directory / f"{slot}.alive").touch()
    os._exit(9)


if __name__ == "__main__":
    for number in range(deaths):
        run_worker(number % workers + 1)
