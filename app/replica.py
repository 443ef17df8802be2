"""State that the processes of one replica share: which workers serve, and whether the replica is stopping.

Gunicorn's master and its workers share it as memory, so it must be created in the master, before the first fork. Times
are of the system's monotonic clock, in milliseconds: all processes of a machine read the same clock.
"""

import mmap
import time

# A reload has twice WEB_CONCURRENCY workers. Shared memory that is never written takes no space.
MAX_SLOTS = 16_383
# The value in `connections` of a slot whose worker accepts no connection.
NOT_SERVING = -1
# A worker that has not ticked for this long is stuck or stopped. Workers tick every 100 ms.
STUCK_AFTER_SECONDS = 1.0
# Seconds after the first worker began to serve. Then the replica is ready even if a worker is missing, so that one
# broken worker does not keep out the others.
READY_WITHIN_SECONDS = 10.0

_HIGHEST_SLOT, _WORKERS, _FIRST_SERVED, _READY, _STOPS_AT = range(5)
_FREE, _STARTING, _SERVING, _LEAVING = range(4)


class Replica:
    """The workers of one replica, by slot (from 1).

    No lock: the master adds and clears slots and announces the stop, and a worker writes the cells of its own slot.
    """

    def __init__(self) -> None:
        self._header = _shared(8)
        # Connections in use, or NOT_SERVING. Read for each accepted connection, so it is a plain array.
        self.connections = _shared(MAX_SLOTS + 1)
        self._phases = _shared(MAX_SLOTS + 1)
        self._ticks = _shared(MAX_SLOTS + 1)

    def expect(self, workers: int) -> None:
        """Set how many workers make the replica ready. Must be called in the master."""
        self._header[_WORKERS] = workers

    def add_slot(self, slot: int) -> None:
        """Add a slot whose worker is starting. Must be called in the master, before the fork."""
        self._header[_HIGHEST_SLOT] = max(slot, self.highest_slot)
        self.connections[slot] = NOT_SERVING
        self._phases[slot] = _STARTING

    def clear_slot(self, slot: int) -> None:
        """Record that the slot's worker has exited. Must be called in the master."""
        self.connections[slot] = NOT_SERVING
        self._phases[slot] = _FREE

    def serve(self, slot: int) -> None:
        """Record that the slot's worker accepts connections, and has none."""
        self.tick(slot)
        self.connections[slot] = 0
        self._phases[slot] = _SERVING
        if not self._header[_FIRST_SERVED]:
            self._header[_FIRST_SERVED] = _now()

    def leave(self, slot: int) -> None:
        """Record that the slot's worker accepts no more connections."""
        self.connections[slot] = NOT_SERVING
        self._phases[slot] = _LEAVING

    def tick(self, slot: int) -> None:
        """Record that the event loop of the slot's worker runs."""
        self._ticks[slot] = _now()

    def stop(self, after: float = 0.0) -> None:
        """Announce that the replica stops accepting in `after` seconds. The earliest announcement counts."""
        stops_at = _now() + int(after * 1000)
        self._header[_STOPS_AT] = min(stops_at, self._header[_STOPS_AT] or stops_at)

    @property
    def highest_slot(self) -> int:
        """Return the highest slot that was ever added."""
        return self._header[_HIGHEST_SLOT]

    @property
    def workers(self) -> int:
        """Return how many workers the replica should have."""
        return self._header[_WORKERS]

    @property
    def is_starting_workers(self) -> bool:
        """Return True if a worker was forked and does not serve yet."""
        return any(self._phases[slot] == _STARTING for slot in self._slots())

    @property
    def is_stopping(self) -> bool:
        """Return True if the stop of the replica was announced."""
        return self._header[_STOPS_AT] != 0

    @property
    def seconds_to_stop(self) -> float:
        """Return for how long a stopping replica still accepts connections; 0 if that time is over."""
        return max(0, self._header[_STOPS_AT] - _now()) / 1000

    def serving(self) -> list[int]:
        """Return the slots whose workers accept connections and are not stuck."""
        since = _now() - int(STUCK_AFTER_SECONDS * 1000)
        return [slot for slot in self._slots() if self._phases[slot] == _SERVING and self._ticks[slot] >= since]

    def why_not_ready(self) -> str | None:
        """Return why no request should be sent to this replica, or None if it is ready.

        A replica that has been ready once stays ready until it stops, also while a worker is replaced.
        """
        header = self._header
        if self.is_stopping:
            return "the replica is stopping"
        if header[_READY]:
            return None
        serving = len(self.serving())
        waited = _now() - header[_FIRST_SERVED] if header[_FIRST_SERVED] else 0
        if serving < self.workers and waited < READY_WITHIN_SECONDS * 1000:
            return f"{serving} of {self.workers} workers serve"
        header[_READY] = 1
        return None

    def _slots(self) -> range:
        return range(1, self.highest_slot + 1)


def _shared(cells: int) -> "memoryview[int]":
    return memoryview(mmap.mmap(-1, 8 * cells)).cast("q")


def _now() -> int:
    return int(time.monotonic() * 1000)


# The replica of this process. Outside Gunicorn it expects no workers, so it is ready.
replica = Replica()
