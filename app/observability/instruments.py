"""Create prometheus_client's metrics from the catalogue. Each function returns the same object for the same metric."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from app.observability.catalogue import MetricSpec

# From the tens of microseconds of a warm pool to the 10 s of the API's statement_timeout.
BUCKET_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@cache
def gauge(spec: MetricSpec) -> Gauge:
    """Return a gauge with one sample per live worker."""
    return Gauge(spec.name, spec.help, spec.labels, multiprocess_mode="liveall")


@cache
def counter(spec: MetricSpec) -> Counter:
    """Return a counter that is summed over all workers of the replica, dead ones included."""
    return Counter(spec.name, spec.help, spec.labels)


@cache
def histogram(spec: MetricSpec) -> Histogram:
    """Return a histogram of durations in seconds, summed like a counter."""
    return Histogram(spec.name, spec.help, spec.labels, buckets=BUCKET_SECONDS)
