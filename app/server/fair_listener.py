"""Which worker takes a new connection: the one that has the fewest.

Workers share one listening socket, and the kernel wakes whom it likes: whoever gets there first takes all there is.
Measured with four idle workers and 32 clients that keep their connections: 1 + 31 + 0 + 0, 7 + 10 + 15 + 0. For as long
as those clients stay, one worker's pool is exhausted and refuses, while the connections of the others' pools are idle.
Here it is 8 + 8 + 8 + 8.

A socket for each worker (SO_REUSEPORT) would leave it to chance, and what waits in the socket of a worker that stops is
reset.
"""

import asyncio
import errno
import logging
import mmap
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn import Config, Server

logger = logging.getLogger(__name__)

# How long a worker that has more connections than another leaves a new one to the others, who were woken with it. They
# take it within microseconds, unless they are all busy: then it is for whoever is free first. (So next to a worker that
# is stuck with few connections, another takes 500 a second at the most, until Gunicorn ends the stuck one.)
STEP_ASIDE_SECONDS = 0.002
# How far a worker may get ahead of the other with the fewest by what it takes in one turn of the event loop, as a part
# of what that one has. When it always took one, the slowest hundredth of 1,000 clients that came at once waited for
# 1.9 to 3 s: a turn takes longer with each that has come.
AHEAD = 1 / 8
# What a worker that stops gives those that it has just accepted.
OPENING_SECONDS = 1.0
# Without a descriptor, or memory, for one more: until somebody has hung up.
PAUSE_SECONDS = 1.0
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

MOST_WORKERS = 65_535  # a reload has twice WEB_CONCURRENCY; memory that nobody touches is none
_NOBODY = -1


class Shares:
    """How many connections each worker has, by its slot (from 1). Made before the fork, in memory that they share."""

    def __init__(self) -> None:
        self.counts = memoryview(mmap.mmap(-1, 8 * (MOST_WORKERS + 1))).cast("q")
        self.counts[0] = 0  # the highest slot there has been

    def enter(self, slot: int) -> None:
        """In the master, before the fork."""
        self.counts[0] = max(slot, self.counts[0])
        self.leave(slot)

    def leave(self, slot: int) -> None:
        """There is no worker in this slot, or none that listens."""
        self.counts[slot] = _NOBODY


class Share:
    """What one worker has, and the others see."""

    def __init__(self, shares: Shares, slot: int) -> None:
        self._shares = shares
        self._slot = slot
        self._listens = False

    def listen(self) -> None:
        self._listens = True
        self.connections(0)

    def stop(self) -> None:
        self._listens = False
        self._shares.leave(self._slot)

    def connections(self, number: int) -> None:
        if self._listens:
            self._shares.counts[self._slot] = number

    def one_more(self) -> None:
        """It has been accepted; that it is open, the server knows a moment later."""
        if self._listens:
            self._shares.counts[self._slot] += 1

    @property
    def lead(self) -> int:
        """How many more it has than the other with the fewest."""
        return self._own - self._fewest_of_another

    @property
    def room(self) -> int:
        """How many it may take at once: at least one."""
        return max(1, int(self._fewest_of_another * AHEAD) - self.lead)

    @property
    def _own(self) -> int:
        return self._shares.counts[self._slot]

    @property
    def _fewest_of_another(self) -> int:
        counts = self._shares.counts
        others = (*counts[1 : self._slot], *counts[self._slot + 1 : counts[0] + 1])
        return min((each for each in others if each > _NOBODY), default=self._own)


class FairServer(Server):
    """Uvicorn's server, for one of several workers that listen on the same sockets."""

    def __init__(self, config: Config, share: Share) -> None:
        super().__init__(config)
        self.server_state.connections = _Connections(share)
        self._share = share
        self._listeners: list[_Listener] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # the application's; nothing listens yet
        self._share.listen()
        self._listeners = [_Listener(each, self._open, self._share) for each in sockets or ()]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._share.stop()
        for listener in self._listeners:
            listener.close()
        # What was accepted is open, and so known to who closes the rest; but nobody waits for a TLS handshake that a
        # client does not go on with.
        if opening := {task for listener in self._listeners for task in listener.opening}:
            await asyncio.wait(opening, timeout=OPENING_SECONDS)
        await super().shutdown(sockets)

    async def _open(self, connection: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
            return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=self.config.ssl)
        except OSError as error:  # it has hung up, or does not agree on TLS
            logger.debug("a connection ended before it began: %s", error)
            connection.close()
            self._share.connections(len(self.server_state.connections))


class _Connections(set[Any]):
    """Uvicorn's set of those that are open, and its number in the share."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share

    def add(self, connection: Any) -> None:
        super().add(connection)
        self._share.connections(len(self))

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._share.connections(len(self))

    def remove(self, connection: Any) -> None:  # what the protocols for WebSockets call
        super().remove(connection)
        self._share.connections(len(self))


class _Listener:
    """Accepts a few connections in each turn of the event loop, and lets another worker go first that has fewer."""

    def __init__(
        self, sock: socket.socket, open_: Callable[[socket.socket], Coroutine[Any, Any, None]], share: Share
    ) -> None:
        self._socket = sock
        self._open = open_
        self._share = share
        self._loop = asyncio.get_running_loop()
        self.opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._ready)

    def _pause_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, then)

    def _ready(self) -> None:
        if self._share.lead > 0:
            self._pause_for(STEP_ASIDE_SECONDS, self._after_the_others)
        else:
            self._accept_some()

    def _after_the_others(self) -> None:
        self._listen()
        self._accept_some()

    def _accept_some(self) -> None:
        for _ in range(self._share.room):
            if not self._accept():
                break

    def _accept(self) -> bool:
        """Whether there may be more."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker has it, or nobody any more
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            logger.error("no connection can be accepted for %.0f s: %s", PAUSE_SECONDS, error)  # noqa: TRY400
            self._pause_for(PAUSE_SECONDS, self._listen)
            return False
        self._share.one_more()
        connection.setblocking(False)
        task = self._loop.create_task(self._open(connection))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)
        return True
