"""Metrics of the reads that may go to a standby. Create the object only if there is one, after the worker's fork."""

from app.database.standby import ROUTES, Route
from app.observability import catalogue
from app.observability.instruments import counter, gauge, incrementer


class ReadMetrics:
    """Counts where reads go, and publishes the lag of the standby."""

    def __init__(self) -> None:
        # Every series exists from the start, at zero: `increase()` misses the event that creates one.
        self._count = {route: incrementer(counter(catalogue.READS).labels(route)) for route in ROUTES}

    def routed(self, route: Route) -> None:
        """Record a read."""
        self._count[route]()

    def publish(self, lag: float) -> None:
        """Set the gauge of the lag, in seconds."""
        gauge(catalogue.READ_LAG).set(lag)
