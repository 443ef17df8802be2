"""Lanes: work that costs much waits for its own kind, not in the way of everything else.

- critical: what must not be refused. Waits in front of the others for a connection, and is never shed.
- normal: everything else, without a limit of its own.
- expensive: declared with `in_lane()`, or moved here by its measured cost (`costs.py`). Few statements run at a time.
- the lanes that an application declares in `app/lanes.py`.

docs/decisions/0037-lanes.md and 0046-declared-lanes.md tell why and what was measured.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy.util import await_only

from app.database.wait_queue import ControlledDelay, Shed, WaitQueue
from app.errors import PoolExhausted
from app.lanes import NORMAL, LaneName

ShedReason = Literal[
    "full",  # the queue was full
    "overload",  # CoDel: it waited too long in a queue that is overloaded
    "timeout",  # it waited until its deadline
]
SHED_REASONS: tuple[ShedReason, ...] = get_args(ShedReason)

# The longest rest of a lane, as a multiple of its timeout. Without a queue, a statement that arrives when the rest
# begins is still admitted in time. With a queue, demand exceeds the share, and some waiters are refused in any case.
MAX_REST = 0.75
MAX_REST_WITH_QUEUE = 3.0

# The lane that the code of this context declared.
current_lane: ContextVar[LaneName] = ContextVar("lane", default=NORMAL)
# The name under which the pool watches the cost of the checkout in progress; empty: it is not watched.
current_work: ContextVar[str] = ContextVar("work of a checkout", default="")


class LaneState(NamedTuple):
    """A snapshot of a lane. `limit` is in connections of this worker: a share less than 1 is a share of the time."""

    name: LaneName
    running: int
    waiting: int
    limit: float


@contextmanager
def in_lane(name: LaneName) -> Iterator[None]:
    """Check out connections in this lane, in a block of code. In a route, use `lane()` of `app/web/deps.py`."""
    outer = current_lane.get()
    current_lane.set(name)
    try:
        yield
    finally:
        current_lane.set(outer)  # no token: a dependency may end in another context than it began in


class Lane:
    """Admits at most `share` statements at a time, and keeps further ones in a bounded queue.

    With a share of 0.25, one statement runs at a time, and after it the lane rests for three times as long. So four
    workers together run one at a time on average. While no other lane is busy, the lane does not rest.
    """

    def __init__(
        self,
        name: LaneName,
        share: float,
        max_waiters: int,
        timeout: float,
        delay: ControlledDelay,
        shed: Callable[[LaneName, ShedReason], None],
        others_are_busy: Callable[[], bool],
    ) -> None:
        self.name = name
        self.is_limited = share < math.inf
        self.share = math.floor(share) if 1 <= share < math.inf else share
        self.timeout = timeout
        self.running = 0
        self._limit = max(1, self.share)
        self._rest = 1 / share - 1 if share < 1 else 0.0
        self._rests_until = 0.0
        self._max_waiters = max_waiters
        self._queue: WaitQueue[None] = WaitQueue(delay)
        self._shed = shed
        self._others_are_busy = others_are_busy
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Return the number of statements in the queue."""
        return len(self._queue)

    def enter_nowait(self, now: float) -> bool:
        """Enter the lane and return True, if the lane is below its limit and no statement waits."""
        if self.running >= self._limit or now < self._rests_until or self._queue:
            return False
        self.running += 1
        return True

    def enter(self, deadline: float) -> None:
        """Enter the lane, after waiting in its queue. Must be called in a greenlet of SQLAlchemy's.

        `deadline` is on the clock of time.monotonic(). Raise PoolExhausted.
        """
        now = time.monotonic()
        if self.enter_nowait(now):
            return
        if len(self._queue) >= self._max_waiters:
            raise self._exhausted("full", f"its queue is full ({self._max_waiters})")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._queue.add(waiter, now, deadline)
        self._serve(now)
        expiry = loop.call_later(max(0.0, deadline - now), expire, waiter)
        try:
            await_only(waiter)
        except asyncio.CancelledError:
            # Admitted and cancelled in the same event-loop iteration: admit the next waiter instead.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave(0.0)
            raise
        except Shed:
            raise self._exhausted("overload", "it is overloaded") from None
        except TimeoutError:
            raise self._exhausted("timeout", f"no room after {time.monotonic() - now:.1f} s") from None
        finally:
            expiry.cancel()
            self._queue.discard(waiter)

    def leave(self, seconds: float) -> None:
        """Leave the lane after `seconds`, and admit the next waiter, now or after a rest."""
        self.running -= 1
        now = time.monotonic()
        if self._rest and self._others_are_busy():
            most = MAX_REST_WITH_QUEUE if self._queue else MAX_REST
            self._rests_until = now + min(seconds * self._rest, self.timeout * most)
        self._serve(now)

    def _serve(self, now: float) -> None:
        """Admit waiters. If the lane rests, come back when that ends."""
        while self.running < self._limit and now >= self._rests_until:
            waiter = self._queue.pop(now)
            if waiter is None:
                return
            self.running += 1
            waiter.set_result(None)
        if now < self._rests_until and self._queue:
            if self._timer is not None:
                self._timer.cancel()
            with suppress(RuntimeError):  # no running loop: the garbage collector returned the connection
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._rests_until - now, self._end_rest)

    def _end_rest(self) -> None:
        self._timer = None
        # The event loop's clock is coarser than time.monotonic().
        self._serve(max(time.monotonic(), self._rests_until))

    def _exhausted(self, reason: ShedReason, text: str) -> PoolExhausted:
        self._shed(self.name, reason)
        return PoolExhausted(
            f"the lane {self.name} does not admit the statement: {text}; running={self.running} waiting={self.waiting}"
        )


def expire(waiter: asyncio.Future[Any]) -> None:
    """End a wait at its deadline."""
    if not waiter.done():
        waiter.set_exception(TimeoutError())
