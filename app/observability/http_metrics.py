"""HTTP metrics of this process: requests by route and status, their duration, and requests in progress."""

from collections.abc import Callable
from functools import cache

from app.observability import catalogue
from app.observability.instruments import counter, gauge, histogram, incrementer, observer

REQUESTS = counter(catalogue.HTTP_REQUESTS)
DURATION = histogram(catalogue.HTTP_DURATION)
IN_FLIGHT = gauge(catalogue.HTTP_IN_FLIGHT)
REFUSED_CLIENTS = counter(catalogue.HTTP_REFUSED_CLIENTS)
# Every label set exists from the start, at zero: `increase()` misses the event that creates a series.
CANCELLED = {reason: counter(catalogue.HTTP_CANCELLED).labels(reason) for reason in catalogue.CANCELLATION_REASONS}

# A client may send any method, and each label value is a series of its own.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """Counts the requests of one application."""

    def __init__(self) -> None:
        self._in_flight = 0

    def started(self) -> None:
        """Record a request that has begun."""
        self._in_flight += 1

    def finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record a request that has ended. `route` is the route's template, not the path: paths are unbounded."""
        self._in_flight -= 1
        if method not in _METHODS:
            method = "other"
        count, observe = _recorders(method, route, status)
        count()
        observe(seconds)

    def publish(self) -> None:
        """Set the gauge of requests in progress."""
        IN_FLIGHT.set(self._in_flight)


# Cached: labels() converts its arguments to strings and takes a lock, which costs as much as the increment.
@cache
def _recorders(method: str, route: str, status: int) -> tuple[Callable[[], None], Callable[[float], None]]:
    return incrementer(REQUESTS.labels(method, route, status)), observer(DURATION.labels(method, route))


def count_cancelled_request(reason: str) -> None:
    """Record a request that ended before its response. `reason` is one of `CANCELLATION_REASONS`."""
    CANCELLED[reason].inc()


def count_refused_client(reason: str) -> None:
    """Record a connection that the server ends because of its client."""
    REFUSED_CLIENTS.labels(reason).inc()
