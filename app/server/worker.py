"""The Gunicorn worker: UvicornWorker with FairServer."""

import faulthandler
import logging
import sys
from typing import Any

from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from app.replica import replica
from app.server.fair_server import FairServer
from app.server.master import Turn
from app.settings import Settings

# Created when Gunicorn's master reads its configuration, so every forked worker inherits it.
recycling_turn = Turn()

# Seconds between the server's deadline for a graceful stop and Gunicorn's SIGKILL: time to close connections.
KILL_MARGIN_SECONDS = 2
# Seconds between two signs of life for Gunicorn's master.
NOTIFY_SECONDS = 1


def worker_class(settings: Settings) -> type["Worker"]:
    """Return the worker's class for these settings.

    Gunicorn's master creates workers for as long as it runs: it must not read the settings again each time.
    """
    # It loads prometheus_client, which reads its directory when it is imported: not before the directory is open.
    from app.server.protocol import http_protocol

    class ConfiguredWorker(Worker):
        # UvicornWorker's name for the options of uvicorn.Config.
        CONFIG_KWARGS = {  # noqa: RUF012
            **UvicornWorker.CONFIG_KWARGS,
            "http": http_protocol(settings),
            "timeout_graceful_shutdown": max(1, settings.graceful_timeout - KILL_MARGIN_SECONDS),
            "timeout_notify": NOTIFY_SECONDS,
            "limit_max_requests": None,  # FairServer recycles one worker at a time
            "server_header": False,
            # A trusted proxy can claim any client address, which limits and logs count by.
            "proxy_headers": bool(settings.forwarded_allow_ips),
            "forwarded_allow_ips": list(settings.forwarded_allow_ips),
        }

    return ConfiguredWorker


class Worker(UvicornWorker):  # type: ignore[misc]  # Gunicorn has no types
    """One process of the API."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # UvicornWorker copies the handlers of gunicorn.error and disables propagation; ours are on the root logger.
        logging.getLogger("uvicorn.error").propagate = True
        # Uvicorn closes the listener first, and Gunicorn then logs an error at every stop.
        self.log.error_log.addFilter(lambda record: "Error while closing socket" not in record.getMessage())

    def init_signals(self) -> None:
        """Set the signal handlers. At SIGABRT, with which Gunicorn ends a stuck worker, print where it is stuck."""
        super().init_signals()
        faulthandler.enable()

    async def _serve(self) -> None:
        """Serve until the worker is told to stop. As in UvicornWorker, with FairServer instead of uvicorn's Server."""
        self.config.app = self.wsgi
        server = FairServer(
            self.config, replica, self.slot, max_requests=self.max_requests, turn=recycling_turn, parent=self.ppid
        )
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
