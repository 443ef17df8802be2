"""A real server in the test's event loop, as one worker of a replica. Its other workers are values of shared memory."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
from uvicorn import Config

from app.replica import Replica
from app.server.fair_server import FairServer
from tests.support.waiting import Job, eventually_async

OWN_SLOT, OTHER_SLOT = 1, 2


async def respond(scope: Any, receive: Any, send: Any) -> None:
    """Answer with 2 bytes. Wait for an event: /wait before the response, /stream in it, /background after it."""
    if scope["path"] == "/wait":
        await scope["state"]["go_on"].wait()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    if scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await scope["state"]["go_on"].wait()
        await send({"type": "http.response.body", "body": b"k"})
    else:
        await send({"type": "http.response.body", "body": b"ok"})
    if scope["path"] == "/background":
        await scope["state"]["go_on"].wait()


@pytest.fixture
def replica() -> Replica:
    """Return a replica of two workers: the server of the test, and one that does not serve."""
    replica = Replica()
    replica.expect(2)
    replica.add_slot(OWN_SLOT)
    replica.add_slot(OTHER_SLOT)
    replica.clear_slot(OTHER_SLOT)
    return replica


@pytest.fixture
def sock() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
def go_on() -> asyncio.Event:
    """Return the event for which the handlers of /wait, /stream and /background wait."""
    return asyncio.Event()


@pytest.fixture
async def server(replica: Replica, sock: socket.socket, go_on: asyncio.Event) -> AsyncIterator[FairServer]:
    config = Config(
        respond,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=60,  # a machine that pauses for seconds must not end the connections of the test
    )
    server = FairServer(config, replica, OWN_SLOT)
    serving = asyncio.create_task(server._serve([sock]))

    async def started() -> bool:
        return server.started or serving.done()

    await eventually_async(started, within=60)
    if serving.done():
        serving.result()  # raises the server's own error
    server.lifespan.state["go_on"] = go_on
    yield server
    server.should_exit = server.force_exit = True
    await serving


def serve_in_other_slot(server: FairServer, replica: Replica, connections: int) -> None:
    """Let the other worker serve, with this many connections, and never seem stuck."""
    replica.serve(OTHER_SLOT)
    replica._ticks[OTHER_SLOT] = sys.maxsize
    replica.connections[OTHER_SLOT] = connections
    server._count.refresh()


async def wait_until(condition: Callable[[], object], jobs: Iterable[Job] = ()) -> None:
    """Wait until the condition is true. The error of a failed job is raised at once."""

    async def check() -> bool:
        return bool(condition())

    await eventually_async(check, within=60, jobs=jobs)
