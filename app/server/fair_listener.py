"""A listener that spreads new connections evenly over the workers of a replica.

All workers listen on one socket, and the kernel lets whichever worker comes first accept everything. Clients that keep
their connections then exhaust one worker's pool while the pools of the others are idle. Here, a worker that has more
connections than another one defers. The measurements, and why not SO_REUSEPORT: docs/decisions/0004-fair-listener.md.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from app.replica import NOT_SERVING, Replica

logger = logging.getLogger(__name__)

# Seconds for which a worker with more connections leaves a new one to the other workers. They accept it within
# microseconds unless they are busy. Next to a stuck worker with few connections, this allows 500 accepts a second.
DEFER_SECONDS = 0.002
# How far accepting in one event-loop iteration may take a worker ahead of the worker with the fewest connections, as a
# part of those. With one accept in each iteration, 1,000 clients that connect at once wait too long (decision 0004).
MAX_EXCESS_RATIO = 1 / 8
# Seconds without accepting after the process ran out of file descriptors or memory.
EXHAUSTED_PAUSE_SECONDS = 1.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class WorkerCount:
    """The number of open connections of one worker, compared with the other workers."""

    def __init__(self, replica: Replica, slot: int) -> None:
        self._replica = replica
        self._connections = replica.connections
        self._slot = slot
        self._listening = False

    def start(self) -> None:
        """Record that the worker listens and has no connection."""
        self._listening = True
        self._replica.serve(self._slot)

    def stop(self) -> None:
        """Record that the worker no longer listens. Later updates have no effect."""
        self._listening = False
        self._replica.leave(self._slot)

    def update(self, connections: int) -> None:
        """Set the number of open connections."""
        if self._listening:
            self._connections[self._slot] = connections

    def increment(self) -> None:
        """Count a connection that was accepted, before uvicorn knows it."""
        if self._listening:
            self._connections[self._slot] += 1

    @property
    def excess(self) -> int:
        """Return how many more connections this worker has than the listening worker with the fewest."""
        return self._own - self._fewest_of_others

    @property
    def accept_limit(self) -> int:
        """Return how many connections to accept in one event-loop iteration; at least 1."""
        return max(1, int(self._fewest_of_others * MAX_EXCESS_RATIO) - self.excess)

    @property
    def _own(self) -> int:
        return self._connections[self._slot]

    @property
    def _fewest_of_others(self) -> int:
        connections, slots = self._connections, self._replica.highest_slot + 1
        others = (*connections[1 : self._slot], *connections[self._slot + 1 : slots])
        return min((count for count in others if count != NOT_SERVING), default=self._own)


class CountedConnections(set[Any]):
    """Uvicorn's set of open connections, which updates the worker's count."""

    def __init__(self, count: WorkerCount) -> None:
        super().__init__()
        self._count = count

    def add(self, connection: Any) -> None:
        """Add a connection."""
        super().add(connection)
        self._count.update(len(self))

    def discard(self, connection: Any) -> None:
        """Remove a connection, if it is there."""
        super().discard(connection)
        self._count.update(len(self))

    def remove(self, connection: Any) -> None:
        """Remove a connection. Uvicorn's WebSocket protocols call this."""
        super().remove(connection)
        self._count.update(len(self))


class FairListener:
    """Accepts connections from a socket, a few in each event-loop iteration.

    If another worker has fewer connections, it waits for DEFER_SECONDS first.
    """

    def __init__(
        self, sock: socket.socket, open_: Callable[[socket.socket], Coroutine[Any, Any, None]], count: WorkerCount
    ) -> None:
        self._socket = sock
        self._open = open_
        self._count = count
        self._loop = asyncio.get_running_loop()
        # Accepted connections whose handshake is in progress.
        self.opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more connections."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)

    def accept_all(self) -> None:
        """Accept every connection that waits in the socket's queue."""
        while self._accept():
            pass

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept_or_defer)

    def _pause_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, then)

    def _accept_or_defer(self) -> None:
        if self._count.excess > 0:
            self._pause_for(DEFER_SECONDS, self._listen_and_accept)
        else:
            self._accept_some()

    def _listen_and_accept(self) -> None:
        self._listen()
        self._accept_some()

    def _accept_some(self) -> None:
        for _ in range(self._count.accept_limit):
            if not self._accept():
                break

    def _accept(self) -> bool:
        """Accept a connection. Return False if there is none, or none can be accepted now."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker accepted it, or the client closed it
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            logger.error(  # noqa: TRY400 - the traceback says nothing more
                "cannot accept connections: %s; next attempt in %.0f s", error, EXHAUSTED_PAUSE_SECONDS
            )
            self._pause_for(EXHAUSTED_PAUSE_SECONDS, self._listen)
            return False
        self._count.increment()
        connection.setblocking(False)
        task = self._loop.create_task(self._open(connection))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)
        return True
