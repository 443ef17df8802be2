"""A listener that spreads new connections evenly over the workers of a replica.

All workers listen on one socket, and the kernel lets whichever worker comes first accept everything. Clients that keep
their connections then exhaust one worker's pool while the pools of the others are idle. Here, a worker defers if it
has more connections than another one. The measurements, and why not SO_REUSEPORT: docs/decisions/0004-fair-listener.md.
"""

import asyncio
import errno
import logging
import os
import select
import socket
import sys
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from app.replica import NOT_SERVING, Replica

logger = logging.getLogger(__name__)

# Seconds for which a worker that is clearly ahead leaves a new connection to the other workers. They accept it within
# microseconds unless they are busy. The deferral also ends when one of its own connections is closed.
DEFER_SECONDS = 0.002
# How far a worker may be ahead of the worker with the fewest connections, as a part of those. With one accept in each
# event-loop iteration, 1,000 clients that connect at once wait too long (decision 0004).
MAX_EXCESS_RATIO = 1 / 8
# Seconds without accepting after the process ran out of file descriptors or memory.
EXHAUSTED_PAUSE_SECONDS = 1.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class WorkerCount:
    """The number of connections of one worker that are in use, compared with the other workers."""

    def __init__(self, replica: Replica, slot: int) -> None:
        self._replica = replica
        self._connections = replica.connections
        self._slot = slot
        self._listening = False
        # Connections that do not count, because they have had no request lately.
        self.idle = 0
        # The slots of the other workers that serve.
        self._others: list[int] = []
        # Uvicorn's open connections.
        self.open: Collection[Any] = ()
        # Called when a connection was closed.
        self.on_close: set[Callable[[], None]] = set()

    def start(self) -> None:
        """Record that the worker listens and has no connection."""
        self._listening = True
        self._replica.serve(self._slot)
        self.refresh()

    def stop(self) -> None:
        """Record that the worker no longer listens. Later updates have no effect."""
        self._listening = False
        self._replica.leave(self._slot)

    def refresh(self) -> None:
        """Find the other workers that serve. Called at every tick: a stuck worker is no reason to defer."""
        self._others = [slot for slot in self._replica.serving() if slot != self._slot]

    def update(self, connections: int) -> None:
        """Set the number of open connections."""
        if self._listening:
            self._connections[self._slot] = max(0, connections - self.idle)

    def increment(self) -> None:
        """Count a connection that was accepted, before uvicorn knows it."""
        if self._listening:
            self._connections[self._slot] += 1

    def recount(self, opening: int) -> None:
        """Set the number after a connection could not be opened. `opening` others have a handshake in progress."""
        self.update(len(self.open) + opening)

    def closed(self, connections: int) -> None:
        """Set the number of open connections after one was closed."""
        if self._listening:
            self._connections[self._slot] = max(0, connections - self.idle)
        if self.on_close:
            for call in tuple(self.on_close):
                call()

    def is_zero(self) -> bool:
        """Return True if this worker has no connection in use."""
        return self._connections[self._slot] == 0

    def compare(self) -> tuple[int, int]:
        """Return the number of this worker, and that of the other worker with the fewest: without others, its own."""
        own = self._connections[self._slot]
        fewest = self._fewest(own)
        if fewest == NOT_SERVING:
            self.refresh()
            fewest = self._fewest(own)
        return own, fewest

    def _fewest(self, own: int) -> int:
        # A loop: min() over a list takes twice as long, and every accept waits for it.
        connections = self._connections
        fewest = sys.maxsize
        for slot in self._others:
            if (number := connections[slot]) < fewest:
                fewest = number
        return fewest if self._others else own


class CountedConnections(set[Any]):
    """Uvicorn's set of open connections. It updates the worker's count when one is closed; the listener counts accepts.

    Called for every connection, so without super(), which takes as long as the rest.
    """

    def __init__(self, count: WorkerCount) -> None:
        super().__init__()
        self._count = count
        count.open = self

    def discard(self, connection: Any) -> None:
        """Remove a connection, if it is there."""
        set.discard(self, connection)
        self._count.closed(len(self))

    def remove(self, connection: Any) -> None:
        """Remove a connection. Uvicorn's WebSocket protocols call this."""
        set.remove(self, connection)
        self._count.closed(len(self))


class _Accepted:
    """An accepted connection, as far as uvloop needs a socket. It takes over the file descriptor.

    An object of `socket.socket` costs a system call and 2 us more.
    """

    __slots__ = ("_descriptor", "family", "type")

    def __init__(self, family: int, type_: int, descriptor: int) -> None:
        self.family = family
        self.type = type_
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def detach(self) -> int:
        """Return the file descriptor, for a caller that closes it."""
        return self._descriptor

    def close(self) -> None:
        """Do nothing. Called by uvloop when it has closed the file descriptor."""


class FairListener:
    """Accepts connections from a socket, a few in each event-loop iteration.

    A worker that has at least two connections more than another one skips an iteration: an idle worker accepts the
    connection meanwhile. A worker that is clearly ahead then defers for DEFER_SECONDS. Both are short, because the
    other worker may be busy or stuck.
    """

    def __init__(
        self, sock: socket.socket, open_: Callable[[Any], Coroutine[Any, Any, object]], count: WorkerCount
    ) -> None:
        """Listen on the socket. `open_` returns the event loop's `connect_accepted_socket()` for a connection."""
        self._socket = sock
        self._family, self._type = int(sock.family), int(sock.type)
        self._open = open_
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._is_uvloop = type(self._loop).__module__.startswith("uvloop")
        # Accepted connections whose coroutine is not finished, each with the future that it awaits.
        self._opening: list[tuple[Coroutine[Any, Any, object], asyncio.Future[Any]]] = []
        self._waiting = select.poll()
        self._waiting.register(sock, select.POLLIN)
        self._pause: asyncio.TimerHandle | None = None
        self._has_skipped = False
        self._is_closed = False
        sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more connections, except with `accept_all()`."""
        self._is_closed = True
        self._count.on_close.discard(self.resume)
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)

    def accept_all(self) -> None:
        """Accept every connection that waits in the socket's queue."""
        while self._accept():
            pass

    def resume(self) -> None:
        """End a deferral if this worker is not clearly ahead any more. Called when a connection was closed."""
        if self._pause is not None:
            own, fewest = self._count.compare()
            if own <= _limit(fewest):
                self._pause.cancel()
                self._listen()

    def _listen(self) -> None:
        self._pause = None
        self._count.on_close.discard(self.resume)
        self._loop.add_reader(self._socket, self._accept_or_defer)

    def _pause_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, then)

    def _accept_or_defer(self) -> None:
        if self._count.is_zero():
            # Every idle worker is woken for each connection, and all but one are too late: they do nothing else.
            if self._accept():
                self._accept_more(*self._count.compare())
            return
        own, fewest = self._count.compare()
        # With a connection for each request, one more is chance: skipping then costs up to a tenth of the requests/s.
        if own > fewest + 1:
            if not self._has_skipped:
                # The socket stays readable, so the next iteration calls this again if no other worker was faster.
                self._has_skipped = True
                return
            if own > _limit(fewest):
                self._has_skipped = False
                self._count.on_close.add(self.resume)
                self._pause_for(DEFER_SECONDS, self._listen_and_accept)
                return
        self._has_skipped = False
        self._accept_some(own, fewest)

    def _listen_and_accept(self) -> None:
        self._listen()
        own, fewest = self._count.compare()
        self._accept_some(own, fewest)

    def _accept_some(self, own: int, fewest: int) -> None:
        """Accept a connection, and more until this worker has reached its limit."""
        if self._accept():
            self._accept_more(own + 1, fewest)

    def _accept_more(self, own: int, fewest: int) -> None:
        for _ in range(_limit(fewest) - own):
            if not self._accept():
                break

    def _accept(self) -> bool:
        """Accept a connection. Return False if there is none, or none can be accepted now."""
        # accept() creates a socket before it finds that there is no connection: 4 us, where poll() takes 0.3 us.
        if not self._waiting.poll(0):
            return False
        try:
            # `accept()` would convert what is known already. Private, but unchanged since Python 3.4.
            descriptor, _ = self._socket._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker accepted it, or the client closed it
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            logger.error(  # noqa: TRY400 - the traceback says nothing more
                "cannot accept connections: %s; next attempt in %.0f s", error, EXHAUSTED_PAUSE_SECONDS
            )
            if not self._is_closed:
                self._pause_for(EXHAUSTED_PAUSE_SECONDS, self._listen)
            return False
        self._count.increment()
        if self._is_uvloop:
            connection: Any = _Accepted(self._family, self._type, descriptor)
        else:
            connection = socket.socket(self._family, self._type, fileno=descriptor)
            connection.setblocking(False)
        opening = self._open(connection)
        try:
            # The first step at once: a task would begin at the next event-loop iteration.
            awaited = opening.send(None)
        except BaseException as error:  # noqa: BLE001 - reported below
            os.close(connection.detach())
            self._failed(error)
        else:
            self._opening.append((opening, awaited))
        return True

    def finish(self) -> int:
        """Finish the coroutines of connections that are open. Return how many handshakes are in progress.

        Called at every tick. The protocol has the connection already: a callback for each one would only cost time.
        """
        opening, self._opening = self._opening, []
        errors: list[BaseException] = []
        for coroutine, awaited in opening:
            if not awaited.done():
                self._opening.append((coroutine, awaited))
                continue
            try:
                self._opening.append((coroutine, coroutine.send(None)))
            except StopIteration:
                pass
            except BaseException as error:  # noqa: BLE001 - reported below
                errors.append(error)
        for failure in errors:
            self._failed(failure)
        return len(self._opening)

    def _failed(self, error: BaseException) -> None:
        """Uncount a connection that the client has closed, or whose TLS handshake has failed. Report other errors."""
        self._count.recount(sum(not awaited.done() for _, awaited in self._opening))
        if isinstance(error, OSError):
            logger.debug("an accepted connection could not be opened: %s", error)
        elif isinstance(error, Exception):
            self._loop.call_exception_handler(
                {"message": "an accepted connection could not be opened", "exception": error}
            )
        else:
            raise error


def _limit(fewest: int) -> int:
    """Return with how many connections a worker is not clearly ahead of the worker with `fewest`; at least one more."""
    return max(fewest + 1, int(fewest * (1 + MAX_EXCESS_RATIO)))
