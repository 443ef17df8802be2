"""Create prometheus_client's metrics from the catalogue. Each function returns the same object for the same metric."""

from bisect import bisect_left
from collections.abc import Callable
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


# The library's own methods check their arguments and whether the metric has labels, search the buckets one by one, and
# pass exemplars on. A request makes five calls: these take half the time.


def incrementer(child: Counter) -> Callable[[], None]:
    """Return a function that adds 1 to the counter."""
    add = child._value.inc
    return lambda: add(1)


def observer(child: Histogram) -> Callable[[float], None]:
    """Return a function that adds a duration in seconds to the histogram."""
    add = child._sum.inc
    bounds = child._upper_bounds
    buckets = [bucket.inc for bucket in child._buckets]

    def observe(seconds: float) -> None:
        add(seconds)
        buckets[bisect_left(bounds, seconds)](1)

    return observe
