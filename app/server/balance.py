"""Moves clients that keep their connections from a worker with clearly more than its share to the others.

The listener balances new connections only. Clients stay with their worker, so after a start, a reload or a replaced
worker the shares would stay uneven for as long as the clients do (docs/decisions/0016-moving-clients.md).
"""

import math
from typing import Any

from uvicorn.server import ServerState

from app.replica import Replica
from app.server import keep_alive
from app.server.fair_listener import WorkerCount

# A connection without a request for this long does not count: it uses nothing of the worker's share.
IDLE_AFTER_SECONDS = 10.0
# A worker moves clients if it has more than this times the connections of the worker with the fewest, and one more.
MAX_RATIO = 1.25
# The part of its connections that a worker moves in one step, at most.
MAX_STEP = 1 / 10


class Balancer:
    """Decides which connections of a worker are retired. Closes none itself: their next response does."""

    def __init__(
        self,
        replica: Replica,
        slot: int,
        count: WorkerCount,
        state: ServerState,
        closing_state: keep_alive.ClosingState,
    ) -> None:
        self._replica = replica
        self._slot = slot
        self._count = count
        self._state = state
        self._closing_state = closing_state
        # The last request of each connection, and when it was first seen, in seconds.
        self._seen: dict[Any, tuple[object, float]] = {}
        self._active: list[Any] = []
        self._moving: list[Any] = []

    def find_idle(self, now: float) -> None:
        """Find the connections that had requests lately, and stop counting those without. Called once a second."""
        seen: dict[Any, tuple[object, float]] = {}
        active = []
        for connection in self._state.connections:
            if not keep_alive.is_http(connection):
                continue
            request, since = keep_alive.last_request(connection), now
            if connection in self._seen and keep_alive.is_idle(connection) and self._seen[connection][0] is request:
                since = self._seen[connection][1]
            seen[connection] = request, since
            if now - since < IDLE_AFTER_SECONDS:
                active.append(connection)
        self._seen, self._active = seen, active
        self._count.idle = len(seen) - len(active)
        self._count.update(len(self._state.connections))

    def move(self) -> int:
        """Retire some connections if this worker is clearly ahead. Return how many. Called a few times a second."""
        connections = self._state.connections
        active = set(self._active)
        moving = [each for each in self._moving if each in connections]
        counts = [self._replica.connections[slot] for slot in self._replica.serving()]
        own = self._replica.connections[self._slot]
        share = math.ceil(sum(counts) / max(1, len(counts)))
        for connection in moving:
            if own <= share or connection not in active:
                keep_alive.restore(connection, self._state)
        self._moving = [] if own <= share else [each for each in moving if each in active]
        remaining = own - len(self._moving)
        if remaining <= min(counts, default=own) * MAX_RATIO + 1:
            return 0
        number = min(remaining - share, max(1, int(own * MAX_STEP)))
        candidates = active.difference(self._moving).intersection(connections)
        chosen = [each for each, _ in zip(candidates, range(number), strict=False)]
        for connection in chosen:
            keep_alive.retire(connection, self._closing_state)
        self._moving += chosen
        return len(chosen)
