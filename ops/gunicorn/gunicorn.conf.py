"""Gunicorn for the API: `gunicorn -c ops/gunicorn/gunicorn.conf.py`. What is not Gunicorn's default says why."""

import asyncio
import gc
import logging
import sys
from itertools import count
from pathlib import Path
from typing import Any

from app import preflight
from app.errors import ConfigurationError, HeadroomError
from app.listener import FairServer, Share, Shares
from app.observability import replica
from app.observability.logging import logging_config
from app.settings import load_settings

try:
    settings = load_settings()
    settings.require_database_url()
    settings.require_secret_key()
except ConfigurationError as error:
    sys.exit(f"headroom: {error}")

# Before anything imports prometheus_client, which is why the worker class below is imported so late.
if "--check-config" not in sys.argv:
    try:
        replica.open_directory(settings.metrics_dir.absolute() / settings.api_replica)
    except OSError as error:
        sys.exit(f"headroom: METRICS_DIR: {error}")

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

shares = Shares()


class Worker(UvicornWorker):  # type: ignore[misc]  # Gunicorn has no types
    """Stops by itself, in time. UvicornWorker would wait for its clients until Gunicorn kills it at graceful_timeout,
    and a killed worker closes no connection and runs no lifespan shutdown."""

    CONFIG_KWARGS = {  # noqa: RUF012 - the name and the type are uvicorn_worker's
        **UvicornWorker.CONFIG_KWARGS,
        "timeout_graceful_shutdown": max(1, settings.graceful_timeout - 2),
        "server_header": False,
        # Whoever is believed can claim any address, and addresses are what failed sign-ins are counted by.
        "proxy_headers": bool(settings.forwarded_allow_ips),
        "forwarded_allow_ips": list(settings.forwarded_allow_ips),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # UvicornWorker copies the handlers of gunicorn.error and stops there; ours are on the root logger.
        logging.getLogger("uvicorn.error").propagate = True
        # Uvicorn closes the listener first, and Gunicorn logs an "error" about that at every stop.
        self.log.error_log.addFilter(lambda record: "Error while closing socket" not in record.getMessage())

    async def _serve(self) -> None:
        """UvicornWorker's, with a server that takes its share of the connections, and not what it can get."""
        self.config.app = self.wsgi
        server = FairServer(self.config, Share(shares, self.slot))
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


wsgi_app = "app.main:create_app()"
worker_class = Worker
workers = settings.web_concurrency
bind = f"{settings.api_host}:{settings.api_port}"

# Imported once, before the fork: workers share the memory and start at once. The application opens nothing until its
# lifespan starts, in the worker.
preload_app = True

graceful_timeout = settings.graceful_timeout
# A load balancer keeps idle connections for 60 s. If we closed them first, it would now and then send a request into a
# connection that is just being closed.
keepalive = 65
# A tenth of jitter, so that workers are not replaced all at once.
max_requests = settings.max_requests
max_requests_jitter = settings.max_requests // 10

# The heartbeat is a file that each worker touches; on a disk that is busy, touching it can block for seconds.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
# A control socket in $HOME and a thread in the master, for a command that this stack does not use.
control_socket_disable = True

logconfig_dict = logging_config(format=settings.log_format, level=settings.log_level)


def on_starting(server: Any) -> None:
    """In the master, before its first fork. What is opened here is closed here."""
    try:
        asyncio.run(preflight.before_start(settings))
    except HeadroomError as error:
        sys.exit(f"headroom: {error}")


def when_ready(server: Any) -> None:
    """In the master, the application imported, just before its first fork."""
    # What is there now stays: a worker's garbage collector need not look at it each time, and writes nothing to the
    # pages that the workers share.
    gc.collect()
    gc.freeze()


def pre_fork(server: Any, worker: Any) -> None:
    """Give the worker the lowest free slot: its name in metrics, in pg_stat_activity and among those that listen."""
    taken = {sibling.slot for sibling in server.WORKERS.values()}
    worker.slot = next(slot for slot in count(1) if slot not in taken)
    shares.enter(worker.slot)


def post_fork(server: Any, worker: Any) -> None:
    replica.enter_worker(worker.slot)


def child_exit(server: Any, worker: Any) -> None:
    # Runs in the master, also for a worker that was killed.
    replica.leave_worker(worker.slot)
    shares.leave(worker.slot)
