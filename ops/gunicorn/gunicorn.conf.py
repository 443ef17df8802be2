"""Gunicorn's configuration for the API: `gunicorn -c ops/gunicorn/gunicorn.conf.py`. Each non-default says why."""

import asyncio
import gc
import sys
from itertools import count
from pathlib import Path
from typing import Any

from app.errors import ConfigurationError, HeadroomError
from app.observability import multiprocess
from app.observability.logging import logging_config
from app.replica import replica
from app.server.master import announce_stop_at_sigterm
from app.server.startup import check_before_start, read_settings

try:
    settings = read_settings()
except ConfigurationError as error:
    sys.exit(f"headroom: {error}")

# Before anything imports prometheus_client, which reads the directory at import.
if "--check-config" not in sys.argv:
    try:
        multiprocess.open_directory(settings.metrics_dir.absolute() / settings.api_replica)
    except OSError as error:
        sys.exit(f"headroom: METRICS_DIR: {error}")

from app.server import worker as api_worker

wsgi_app = "app.main:create_app()"
worker_class = api_worker.worker_class(settings)
workers = settings.web_concurrency
bind = f"{settings.api_host}:{settings.api_port}"

# Import the application once, before the fork: workers share the memory and start at once. The application opens
# nothing until its lifespan starts in the worker.
preload_app = True

graceful_timeout = settings.graceful_timeout
# Seconds without a sign of life after which a worker is killed and replaced. Workers give one every second.
timeout = settings.worker_timeout
keepalive = settings.keep_alive_timeout
# 10 % jitter: otherwise all workers would reach it at once, and wait for each other.
max_requests = settings.max_requests
max_requests_jitter = settings.max_requests // 10

# Each worker touches a heartbeat file; on a busy disk that can block for seconds.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
# It would open a socket in $HOME and run a thread in the master, for a command that this stack does not use.
control_socket_disable = True

logconfig_dict = logging_config(format=settings.log_format, level=settings.log_level)


def on_starting(server: Any) -> None:
    """Check schema and budget in the master, before its first fork. Close every connection that this opens."""
    try:
        asyncio.run(check_before_start(settings))
    except HeadroomError as error:
        sys.exit(f"headroom: {error}")


def when_ready(server: Any) -> None:
    """Handle SIGTERM. Freeze the heap in the master, after the application's import and before the first fork."""
    announce_stop_at_sigterm(server, settings.drain_seconds)
    # Frozen objects are not scanned by the workers' garbage collections, so the pages they share stay shared.
    gc.collect()
    gc.freeze()


def nworkers_changed(server: Any, new_value: int, old_value: int | None) -> None:
    """Set how many workers make the replica ready, at the start and after SIGTTIN or SIGTTOU."""
    replica.expect(new_value)


def pre_fork(server: Any, worker: Any) -> None:
    """Assign the lowest free slot: the worker's name in metrics, in pg_stat_activity and in the connection counts."""
    taken = {sibling.slot for sibling in server.WORKERS.values()}
    worker.slot = next(slot for slot in count(1) if slot not in taken)
    replica.add_slot(worker.slot)


def post_fork(server: Any, worker: Any) -> None:
    """Name the worker's metrics files after its slot."""
    multiprocess.assign_slot(worker.slot)


def child_exit(server: Any, worker: Any) -> None:
    """Free the slot. Runs in the master, also for a killed worker."""
    multiprocess.release_slot(worker.slot)
    replica.clear_slot(worker.slot)
