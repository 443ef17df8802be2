"""How many requests, which, how long, and how many at this moment."""

from functools import cache

from prometheus_client import Counter, Histogram

from app.observability import catalogue
from app.observability.instruments import counter, gauge, histogram

REQUESTS = counter(catalogue.HTTP_REQUESTS)
DURATION = histogram(catalogue.HTTP_DURATION)
IN_FLIGHT = gauge(catalogue.HTTP_IN_FLIGHT)

# Anybody can invent more of them, and each would be a series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """Counts the requests of one application."""

    def __init__(self) -> None:
        self._in_flight = 0

    def started(self) -> None:
        self._in_flight += 1

    def finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the template, never the path: a series for each user would be one too many."""
        self._in_flight -= 1
        if method not in _METHODS:
            method = "other"
        _requests(method, route, status).inc()
        _duration(method, route).observe(seconds)

    def publish(self) -> None:
        """Set the gauge."""
        IN_FLIGHT.set(self._in_flight)


# labels() makes strings of its arguments and takes a lock, which costs as much as the counting.


@cache
def _requests(method: str, route: str, status: int) -> Counter:
    return REQUESTS.labels(method, route, status)


@cache
def _duration(method: str, route: str) -> Histogram:
    return DURATION.labels(method, route)
