"""Uvicorn's server, for one of several workers of a replica. Workers come and go without a lost request.

How a worker leaves (docs/decisions/0015-leaving-workers.md):
1. While its successors start, or until a stopping replica has drained, it goes on serving. A signal to the process
   group may reach it before the master has announced the stop, so it waits for that a moment.
2. It stops listening. The last workers of a replica first accept the connections in the socket's queue.
3. It answers what is in progress, and the next request of each connection, with `Connection: close`.
4. It closes the connections on which nothing arrives. What is not finished at the deadline is cancelled.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from uvicorn import Config, Server
from uvicorn.server import ServerState

from app.replica import Replica
from app.server import keep_alive
from app.server.balance import Balancer
from app.server.fair_listener import CountedConnections, FairListener, WorkerCount
from app.server.master import Turn

logger = logging.getLogger(__name__)

# Seconds that a worker goes on serving while other workers start, at most.
HANDOVER_SECONDS = 5.0
# Seconds that a worker waits for the master to announce that the replica stops.
ANNOUNCEMENT_SECONDS = 0.5
# Seconds without a byte after which a leaving worker closes an idle connection. A client that sends requests more often
# never meets the close: the response to its next request announces it.
IDLE_GRACE_SECONDS = 1.0
# Seconds that a leaving worker waits for the TLS handshakes of connections that it has accepted.
HANDSHAKE_SECONDS = 1.0
TICK_SECONDS = 0.1
TICKS_PER_SECOND = 10
TICKS_PER_MOVE = 3


class FairServer(Server):
    """Uvicorn's server with a fair listener, coordinated with the replica's other workers.

    `max_requests`: after this many requests the worker is recycled, when it is its turn. `parent`: the process id of
    Gunicorn's master; without it, the worker stops.
    """

    def __init__(
        self,
        config: Config,
        replica: Replica,
        slot: int,
        *,
        max_requests: int = sys.maxsize,
        turn: Turn | None = None,
        parent: int | None = None,
    ) -> None:
        super().__init__(config)
        self._replica = replica
        self._slot = slot
        self._max_requests = max_requests
        self._turn = turn
        self._parent = os.getppid() if parent is None else parent
        self._count = WorkerCount(replica, slot)
        self.server_state.connections = CountedConnections(self._count)
        self._closing_state = keep_alive.ClosingState(self.server_state)
        self._balancer = Balancer(replica, slot, self._count, self.server_state, self._closing_state)
        self._listeners: list[FairListener] = []
        self._is_leaving = False
        self._has_left = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen on the sockets."""
        await super().startup(sockets=[])  # without sockets, uvicorn starts only the application
        self._count.start()
        self._make_protocol = self._protocol_factory(self.server_state)
        self._connect_accepted = asyncio.get_running_loop().connect_accepted_socket
        self._listeners = [FairListener(each, self._open, self._count) for each in sockets or ()]

    async def on_tick(self, counter: int) -> bool:
        """Do what is due every TICK_SECONDS. Return True if the worker must leave."""
        # Uvicorn compares wall-clock times. After the clock was set back, it would give no sign of life until the clock
        # had caught up, and Gunicorn would kill every worker.
        self.last_notified = min(self.last_notified, time.time())
        leave = await super().on_tick(counter)
        self._replica.tick(self._slot)
        self._count.refresh()
        for listener in self._listeners:
            listener.finish()
        if counter % TICKS_PER_SECOND == 0:
            self._closing_state.copy_headers(self.server_state)
            leave = leave or self._is_orphaned()
            self._balancer.find_idle(asyncio.get_running_loop().time())
        if counter % TICKS_PER_MOVE == 0 and not self._is_leaving:
            self._balancer.move()
        return leave or self._is_leaving or self._must_be_recycled()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave the replica: see the module's docstring."""
        self._is_leaving = True
        loop = asyncio.get_running_loop()
        announcement_ends = loop.time() + ANNOUNCEMENT_SECONDS
        handover_ends = loop.time() + HANDOVER_SECONDS

        def is_still_needed() -> bool:
            if self._replica.is_stopping:
                return self._replica.seconds_to_stop > 0
            if loop.time() < announcement_ends:
                return True
            return self._replica.is_starting_workers and loop.time() < handover_ends

        await self._tick_while(is_still_needed)
        seconds = self.config.timeout_graceful_shutdown
        deadline = loop.time() + (sys.maxsize if seconds is None else seconds)
        self._stop_listening(sockets or [])
        # A connection is known to uvicorn after its handshake. A client may never finish its TLS handshake.
        handshakes_end = min(deadline, loop.time() + HANDSHAKE_SECONDS)
        await self._tick_while(lambda: any(each.finish() for each in self._listeners) and loop.time() < handshakes_end)
        await self._close_connections(deadline)
        if seconds is not None:
            self.config.timeout_graceful_shutdown = max(0, deadline - loop.time())  # type: ignore[assignment]
        # It waits for WebSockets and background tasks. Without ticks, Gunicorn would take the worker for stuck.
        remaining = asyncio.ensure_future(super().shutdown(sockets))
        counter = 0
        while not remaining.done():
            await asyncio.wait({remaining}, timeout=TICK_SECONDS)
            await self.on_tick(counter)
            counter += 1
        await remaining

    def _must_be_recycled(self) -> bool:
        """Return True if the worker has served `max_requests`, all others serve, and none of them is being recycled."""
        served = self.server_state.total_requests + self._closing_state.total_requests
        if served < self._max_requests or self._turn is None or not self._turn.take():
            return False
        if len(self._replica.serving()) < self._replica.workers:
            self._turn.pass_on()
            return False
        logger.info("worker %d is recycled after %d requests", self._slot, served)
        return True

    def _is_orphaned(self) -> bool:
        if os.getppid() == self._parent:
            return False
        logger.error("Gunicorn's master (pid %d) has exited; worker %d stops", self._parent, self._slot)
        self._replica.stop()
        return True

    async def _tick_while(self, condition: Callable[[], bool]) -> None:
        counter = 0
        while condition() and not self.force_exit:
            await asyncio.sleep(TICK_SECONDS)
            await self.on_tick(counter)
            counter += 1

    def _stop_listening(self, sockets: list[socket.socket]) -> None:
        self._make_protocol = self._protocol_factory(self._closing_state)
        for listener in self._listeners:
            listener.close()
            if self._replica.is_stopping:
                # No other process accepts the queued connections, and closing the socket would reset them.
                listener.accept_all()
        for each in sockets:
            each.close()
        self._count.stop()
        self._has_left = True

    async def _close_connections(self, deadline: float) -> None:
        """Retire every connection. Close those that stay idle, until none is left or the deadline has passed."""
        connections = self.server_state.connections
        for connection in list(connections):
            if keep_alive.is_http(connection):
                keep_alive.retire(connection, self._closing_state)
            else:
                connection.shutdown()  # a WebSocket
        loop = asyncio.get_running_loop()
        idle_since: dict[Any, float] = {}

        def requests_may_arrive() -> bool:
            now = loop.time()
            http = [each for each in connections if keep_alive.is_http(each)]
            for connection in http:
                if not keep_alive.is_idle(connection):
                    idle_since.pop(connection, None)
                elif now - idle_since.setdefault(connection, now) >= IDLE_GRACE_SECONDS:
                    keep_alive.close_if_unread_is_empty(connection)
            return bool(http) and now < deadline

        await self._tick_while(requests_may_arrive)

    def _protocol_factory(self, state: ServerState) -> Callable[[], asyncio.Protocol]:
        """Return a function that makes the protocol of a new connection."""
        protocol: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return partial(protocol, config=self.config, server_state=state, app_state=self.lifespan.state)

    def _open(self, connection: socket.socket) -> Coroutine[Any, Any, object]:
        """Give an accepted connection to uvicorn's HTTP protocol, after the TLS handshake if there is one."""
        return self._connect_accepted(self._make_protocol, connection, ssl=self.config.ssl)
