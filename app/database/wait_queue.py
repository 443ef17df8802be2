"""Queues of callers that wait for a connection or for a lane, and CoDel, which sheds waiters under sustained overload.

The published reference is K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10 (5), 2012. As in
Elixir's DBConnection, the queue is of requests, and a request that has waited too long is answered with an error.
"""

import asyncio
import math
from collections.abc import Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")

# Under overload, a waiter is shed after this multiple of the target.
SHED_AFTER_TARGETS = 2


class Shed(Exception):
    """The waiter was removed from an overloaded queue."""


class ControlledDelay:
    """Decides whether a queue is overloaded. All times are seconds on one monotonic clock.

    A burst makes a queue that empties again. Overload makes a queue in which every waiter of a whole `interval` waits
    longer than `target`. It ends with an interval in which no waiter was shed: shedding empties the queue for a moment,
    so a short wait says nothing.
    """

    def __init__(self, target: float, interval: float) -> None:
        self._target = target
        self._interval = interval
        self._ends = -math.inf
        self._least = 0.0
        self._has_shed = False
        self.is_overloaded = False

    @property
    def longest(self) -> float:
        """Return the time after which a waiter is shed; infinite unless the queue is overloaded."""
        return SHED_AFTER_TARGETS * self._target if self.is_overloaded else math.inf

    def note(self, waited: float, now: float) -> None:
        """Note the time of the waiter that has waited longest; 0 if the queue is empty."""
        if now >= self._ends:
            # Times from long before say nothing about the present.
            goes_on = self._least > self._target or (self.is_overloaded and self._has_shed)
            self.is_overloaded = goes_on and now < self._ends + self._interval
            self._ends = now + self._interval
            self._least = waited
            self._has_shed = False
        elif waited < self._least:
            self._least = waited

    def shed(self) -> None:
        """Note that a waiter was shed."""
        self._has_shed = True


class WaitQueue(Generic[Result]):
    """Waiters in their order of arrival; those of the critical lane first. Only others are shed.

    A waiter is a future. It gets its result from the caller of `pop()`, or the error Shed.
    """

    def __init__(self, delay: ControlledDelay) -> None:
        self._delay = delay
        # The time of arrival and the deadline of each waiter.
        self._critical: dict[asyncio.Future[Result], tuple[float, float]] = {}
        self._others: dict[asyncio.Future[Result], tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._critical) + len(self._others)

    def __iter__(self) -> Iterator[asyncio.Future[Result]]:
        yield from self._critical
        yield from self._others

    @property
    def critical(self) -> int:
        """Return the number of waiters of the critical lane."""
        return len(self._critical)

    def deadlines(self) -> dict[asyncio.Future[Result], float]:
        """Return the waiters with their deadlines, in order."""
        return {waiter: deadline for waiter, (_, deadline) in (*self._critical.items(), *self._others.items())}

    def add(
        self, waiter: asyncio.Future[Result], now: float, deadline: float = math.inf, *, is_critical: bool = False
    ) -> None:
        """Append a waiter."""
        if is_critical:
            self._critical[waiter] = (now, deadline)
            return
        self._note(now)
        self._others[waiter] = (now, deadline)

    def discard(self, waiter: asyncio.Future[Result]) -> None:
        """Remove a waiter, if it is in the queue."""
        if self._critical.pop(waiter, None) is None:
            self._others.pop(waiter, None)

    def pop(self, now: float, *, may_shed: bool = True) -> "asyncio.Future[Result] | None":
        """Remove the first waiter that still waits, and return it. If the queue is overloaded, shed old waiters first.

        The last waiter is never shed: what it waits for is free.
        """
        while self._critical:
            waiter = next(iter(self._critical))
            del self._critical[waiter]
            if not waiter.done():
                return waiter
        self._note(now)
        if may_shed and self._delay.is_overloaded:
            self._shed(now - self._delay.longest)
        while self._others:
            waiter = next(iter(self._others))
            del self._others[waiter]
            if not waiter.done():
                return waiter
        return None

    def _note(self, now: float) -> None:
        for waiter, (since, _) in self._others.items():
            if not waiter.done():
                self._delay.note(now - since, now)
                return
        self._delay.note(0.0, now)

    def _shed(self, before: float) -> None:
        """Shed the waiters that arrived before this time, except the last waiter."""
        waiting = [(waiter, since) for waiter, (since, _) in self._others.items() if not waiter.done()]
        for waiter, since in waiting[:-1]:
            if since >= before:
                break
            del self._others[waiter]
            self._delay.shed()
            waiter.set_exception(Shed())
