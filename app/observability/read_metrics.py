"""Metrics of the reads that may go to a standby. Create the object only if there is one, after the worker's fork."""

from app.database.standby import ROUTES, Route
from app.observability import catalogue
from app.observability.instruments import counter, gauge, incrementer


class ReadMetrics:
    """Counts where reads go, and publishes the state of the standby."""

    def __init__(self, max_lag: float) -> None:
        gauge(catalogue.READ_LAG_LIMIT).set(max_lag)
        # Every series exists from the start, at zero: `increase()` misses the event that creates one.
        self._count = {route: incrementer(counter(catalogue.READS).labels(route)) for route in ROUTES}

    def routed(self, route: Route) -> None:
        """Record a read."""
        self._count[route]()

    def publish(self, lag: float, *, is_up: bool) -> None:
        """Set the gauges of the lag, in seconds, and of whether the standby can be used."""
        gauge(catalogue.READ_LAG).set(lag)
        gauge(catalogue.READ_STANDBY_UP).set(is_up)
