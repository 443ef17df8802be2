"""What a pool reports while it works, to whoever counts. The database package knows no metrics library."""

from contextvars import Context
from dataclasses import dataclass
from typing import Literal, Protocol

# More than the pool keeps; older than DB_POOL_RECYCLE; given up (see below); the pool was closed; let go without being
# given back, by code that forgot it or detached it: the server may still have it.
CloseReason = Literal["surplus", "recycled", "invalidated", "disposed", "lost"]
# At once, or when somebody wants it next.
InvalidationKind = Literal["hard", "soft"]
# The server closed it while it was idle; it did not answer a ping; another one did not, so none of its age is trusted;
# its request was cancelled in the middle of a statement; the server closed it under a statement; anything else.
InvalidationCause = Literal["hung_up", "unanswered", "pool", "cancelled", "disconnect", "error"]


class PoolMeter(Protocol):
    """Told of every event when it happens. Times are seconds."""

    def handed_out(self, seconds: float) -> None:
        """A connection was handed out, so long after it was asked for."""

    def given_back(self, seconds: float) -> None:
        """A connection was given back, after so long in use."""

    def queued(self) -> None:
        """A request has to wait for somebody else's connection."""

    def left_queue(self, seconds: float) -> None:
        """It waits no more, whatever came of it."""

    def timed_out(self) -> None:
        """It left without a connection, because its time was up."""

    def rejected(self) -> None:
        """A request found the queue full."""

    def opened(self, seconds: float) -> None:
        """A connection was opened; it took so long."""

    def not_opened(self) -> None:
        """A connection could not be opened."""

    def pinged(self, seconds: float) -> None:
        """The server was asked whether a connection lives; the answer, or its absence, took so long."""

    def closed(self, reason: CloseReason) -> None:
        """A connection is no longer the pool's."""

    def invalidated(self, kind: InvalidationKind, cause: InvalidationCause) -> None:
        """A connection was given up."""

    def leaked(self) -> None:
        """A connection is held suspiciously long, or was never given back. May come from another thread."""


class NoMeter:
    """Keeps nothing."""

    def _ignore(self, *_: object) -> None: ...

    handed_out = given_back = queued = left_queue = timed_out = rejected = _ignore
    opened = not_opened = pinged = closed = invalidated = leaked = _ignore


@dataclass(slots=True, eq=False)
class Checkout:
    """Who holds a connection: since when, in the time of time.monotonic(), and the context it was taken in."""

    since: float
    context: Context
    reported: bool = False
