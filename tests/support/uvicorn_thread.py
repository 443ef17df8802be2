"""Run an ASGI application under uvicorn in a thread of the test, so that clients may block."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from uvicorn import Config, Server

from app.server.protocol import ClientLimits, ClientProtocol
from tests.support.waiting import eventually

LIMITS = ClientLimits(header_bytes=8192, header_count=20, header_seconds=30, body_seconds=30, send_seconds=30)


class Serving:
    """A server that runs, and its port on 127.0.0.1."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port: int = server.servers[0].sockets[0].getsockname()[1]

    @property
    def protocols(self) -> list[ClientProtocol]:
        """Return the open connections."""
        return [each for each in self.server.server_state.connections if isinstance(each, ClientProtocol)]

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextmanager
def serving(
    app: Any, *, loop: str = "uvloop", lifespan: Literal["on", "off"] = "off", idle_seconds: float = 30, **limits: float
) -> Iterator[Serving]:
    """Serve the application with these limits of clients, which otherwise are long."""

    class Protocol(ClientProtocol):
        pass

    Protocol.limits = LIMITS._replace(**limits)  # type: ignore[arg-type]
    config = Config(
        app,
        port=0,
        http=Protocol,
        loop=loop,
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        timeout_keep_alive=idle_seconds,  # type: ignore[arg-type]  # the sweep accepts a fraction
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive(), within=60)
        yield Serving(server)
    finally:
        server.should_exit = True
        thread.join()
