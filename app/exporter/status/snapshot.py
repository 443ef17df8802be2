"""The samples of one scrape, and increases and quantiles between scrapes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from prometheus_client import Metric

from app.observability.catalogue import MetricSpec

Labels = tuple[tuple[str, str], ...]


@lru_cache(maxsize=100_000)
def _shared(labels: Labels) -> Labels:
    """Return one object for equal labels: the hundreds of snapshots in memory differ only in their values."""
    return labels


@dataclass(frozen=True)
class Snapshot:
    """The samples of one scrape by name and labels. `time` is in Unix time."""

    time: float
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, time: float, metrics: Iterable[Metric]) -> "Snapshot":
        """Return a snapshot of the metrics."""
        samples: dict[str, dict[Labels, float]] = {}
        for metric in metrics:
            for sample in metric.samples:
                labels = _shared(tuple(sorted(sample.labels.items())))
                samples.setdefault(sample.name, {})[labels] = sample.value
        return cls(time, samples)

    def select(self, spec: MetricSpec, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Return the samples of the metric that have at least these labels, as pairs of all labels and value."""
        for sample_labels, value in self.samples.get(spec.name, {}).items():
            if labels.items() <= dict(sample_labels).items():
                yield dict(sample_labels), value

    def total(self, spec: MetricSpec, **labels: str) -> float:
        """Return the sum of the selected samples; 0 if there is none."""
        return sum(value for _, value in self.select(spec, **labels))

    def value(self, spec: MetricSpec, **labels: str) -> float | None:
        """Return the first of the selected samples; None if there is none."""
        return next((value for _, value in self.select(spec, **labels)), None)


def increase(snapshots: Iterable[Snapshot], spec: MetricSpec, suffix: str = "", **labels: str) -> float:
    """Return the increase of a counter over the snapshots, summed over the series that have these labels.

    A counter that decreases was reset by a restart of its replica, and continues from 0. `suffix` selects a series of a
    histogram: `_bucket`, `_sum` or `_count`.
    """
    return sum(
        growth
        for before, after in pairwise(snapshots)
        for sample_labels, growth in _growth(before, after, spec.name + suffix)
        if not labels or labels.items() <= dict(sample_labels).items()
    )


def quantiles(snapshots: Iterable[Snapshot], spec: MetricSpec, *shares: float) -> list[float | None]:
    """Return quantiles of the observations of a histogram between the snapshots, in the histogram's unit.

    Values are interpolated linearly within a bucket, as Prometheus does. None if there was no observation.
    """
    buckets: dict[float, float] = {}
    for before, after in pairwise(snapshots):
        for labels, growth in _growth(before, after, spec.name + "_bucket"):
            bound = float(dict(labels)["le"])
            buckets[bound] = buckets.get(bound, 0.0) + growth
    cumulative = sorted(buckets.items())
    return [_quantile(cumulative, share) for share in shares]


def _quantile(cumulative: list[tuple[float, float]], share: float) -> float | None:
    if not cumulative or cumulative[-1][1] == 0:
        return None
    rank = share * cumulative[-1][1]
    lower_bound, lower_count = 0.0, 0.0
    for bound, count in cumulative:
        if count >= rank:
            if bound == float("inf"):
                return lower_bound
            position = (rank - lower_count) / (count - lower_count) if count > lower_count else 1.0
            return lower_bound + (bound - lower_bound) * position
        lower_bound, lower_count = bound, count
    return lower_bound


def _growth(before: Snapshot, after: Snapshot, name: str) -> Iterator[tuple[Labels, float]]:
    previous_values = before.samples.get(name, {})
    for labels, value in after.samples.get(name, {}).items():
        previous = previous_values.get(labels, 0.0)  # a new series began at 0
        yield labels, value - previous if value >= previous else value
