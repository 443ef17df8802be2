"""The deadline of the request in progress, for code of every layer.

A COMMIT does not begin after the deadline. The deadline does not interrupt a COMMIT in progress, so that the client is
told whether its write is stored.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from app.errors import DeadlineExceeded, OutcomeUnknown


@dataclass(slots=True)
class RequestDeadline:
    """The deadline of a request, on the clock of time.monotonic(). The web layer calls `expire()` then.

    It no longer ends the request when something `is_stored`: the client must learn that. Nor does it end background
    tasks, which run after the response has begun. `cancel` cancels the request. `holds` counts the blocks of
    `held()`, `commits` the COMMITs in progress: a route may have several tasks. A write whose outcome
    `is_unknown` may have raised its error in a task that nothing awaits any more.
    """

    at: float
    response_has_begun: Callable[[], bool]
    cancel: Callable[[], object]
    is_over: bool = False
    has_refused_commit: bool = False
    has_stored: bool = False
    is_unknown: bool = False
    commits: int = 0
    holds: int = 0

    @property
    def is_stored(self) -> bool:
        """Return True if something is stored, or is being stored."""
        return self.has_stored or self.commits > 0

    def expire(self) -> None:
        """Cancel the request, unless its response has begun or it has stored something."""
        if not self.is_over and not self.is_stored and not self.response_has_begun():
            self.is_over = True
            if not self.holds:
                self.cancel()


# None without a deadline.
request_deadline: ContextVar[RequestDeadline | None] = ContextVar("request deadline", default=None)


@contextmanager
def committing() -> Iterator[None]:
    """Let COMMIT come to its end in the block. Raise DeadlineExceeded if the deadline of the request has passed.

    If COMMIT fails and its outcome is known, nothing is stored, and the deadline ends the request as before.
    """
    deadline = request_deadline.get()
    if deadline is None:
        yield
        return
    # The timer fires late if the event loop is busy.
    is_late = time.monotonic() >= deadline.at and not deadline.response_has_begun()
    if not deadline.is_stored and (deadline.is_over or is_late):
        deadline.has_refused_commit = True
        raise DeadlineExceeded("the deadline passed before COMMIT")
    deadline.commits += 1
    is_stored = True
    try:
        yield
    except OutcomeUnknown:
        raise
    except Exception:
        is_stored = False
        raise
    finally:
        deadline.commits -= 1
        deadline.has_stored = deadline.has_stored or is_stored
        if not is_stored and time.monotonic() >= deadline.at:  # the timer has fired, to no effect
            deadline.expire()


def note_stored() -> None:
    """Note that the server has answered a statement which commits itself."""
    deadline = request_deadline.get()
    if deadline is not None:
        deadline.has_stored = True


def cancelled_write() -> OutcomeUnknown:
    """Return the error of a write that was cancelled at the deadline of its request, and note it for the response."""
    deadline = request_deadline.get()
    if deadline is not None:
        deadline.is_unknown = True
    return OutcomeUnknown("a write was cancelled at the deadline of its request")


@contextmanager
def held() -> Iterator[None]:
    """Let the block come to its end, and let its result be the response, also after the deadline of the request.

    For a route that runs in a thread: a cancellation would not end the thread, and its effects would be unknown.
    """
    deadline = request_deadline.get()
    if deadline is None:
        yield
        return
    deadline.holds += 1
    try:
        yield
    finally:
        deadline.holds -= 1


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the block come to its end. Raise DeadlineExceeded after it if the deadline of the request has passed.

    For work in a thread, which a cancellation would not end: its caller would give up the limit that it holds.
    """
    with held():
        yield
    if is_overdue():
        raise DeadlineExceeded("the deadline passed during work that cannot be interrupted")


def is_overdue() -> bool:
    """Return True if the request in progress was cancelled at its deadline."""
    deadline = request_deadline.get()
    return deadline is not None and deadline.is_over
