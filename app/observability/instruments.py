"""From the catalogue's description of a metric to prometheus_client's, for the processes of one replica."""

from prometheus_client import Counter, Gauge, Histogram

from app.observability.catalogue import Described

# From tens of microseconds, which a warm pool takes, to the 10 s of the API's statement_timeout.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def gauge(described: Described) -> Gauge:
    """A sample for each worker, gone when the worker is."""
    return Gauge(described.name, described.help, described.labels, multiprocess_mode="liveall")


def counter(described: Described) -> Counter:
    """The sum over every worker there has been."""
    return Counter(described.name, described.help, described.labels)


def histogram(described: Described) -> Histogram:
    return Histogram(described.name, described.help, described.labels, buckets=SECONDS)
