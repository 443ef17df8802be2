"""A scrape as numbers to calculate with, and what changed between two of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from prometheus_client import Metric

from app.observability.catalogue import Described

Labels = tuple[tuple[str, str], ...]


@lru_cache(maxsize=100_000)
def _shared(labels: Labels) -> Labels:
    """The same object for the same labels: hundreds of views are kept, which differ in their numbers only."""
    return labels


@dataclass(frozen=True)
class View:
    """What one scrape found, at a moment in Unix time: by a sample's name, its labels and its value."""

    time: float
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, time: float, metrics: Iterable[Metric]) -> "View":
        samples: dict[str, dict[Labels, float]] = {}
        for metric in metrics:
            for sample in metric.samples:
                labels = _shared(tuple(sorted(sample.labels.items())))
                samples.setdefault(sample.name, {})[labels] = sample.value
        return cls(time, samples)

    def each(self, described: Described, suffix: str = "", **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples that have these labels; `suffix` is a histogram's `_bucket`, `_sum` or `_count`."""
        for has, value in self.samples.get(described.name + suffix, {}).items():
            if labels.items() <= dict(has).items():
                yield dict(has), value

    def total(self, described: Described, suffix: str = "", **labels: str) -> float:
        """Their sum; 0 where there is none."""
        return sum(value for _, value in self.each(described, suffix, **labels))

    def value(self, described: Described, **labels: str) -> float | None:
        """The first of them, if there is one."""
        return next((value for _, value in self.each(described, **labels)), None)


def increase(views: Iterable[View], described: Described, suffix: str = "", **labels: str) -> float:
    """How much a counter grew over these views. One that shrank was started anew, as a replica is: it counts from 0."""
    wanted = labels.items()
    return sum(
        grown
        for before, after in pairwise(views)
        for has, grown in _grown(before, after, described.name + suffix)
        if not wanted or wanted <= dict(has).items()
    )


def quantiles(views: Iterable[View], described: Described, *shares: float) -> list[float | None]:
    """Quantiles of what a histogram observed over these views, in its unit, as Prometheus estimates them: linear within
    a bucket. None where it observed nothing."""
    buckets: dict[float, float] = {}
    for before, after in pairwise(views):
        for labels, grown in _grown(before, after, described.name + "_bucket"):
            bound = float(dict(labels)["le"])
            buckets[bound] = buckets.get(bound, 0.0) + grown
    cumulative = sorted(buckets.items())
    return [_quantile(cumulative, share) for share in shares]


def _quantile(cumulative: list[tuple[float, float]], share: float) -> float | None:
    if not cumulative or cumulative[-1][1] == 0:
        return None
    rank = share * cumulative[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in cumulative:
        if count >= rank:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * ((rank - below) / (count - below) if count > below else 1.0)
        lower, below = bound, count
    return lower


def _grown(before: View, after: View, name: str) -> Iterator[tuple[Labels, float]]:
    then = before.samples.get(name, {})
    for labels, value in after.samples.get(name, {}).items():
        was = then.get(labels, 0.0)  # a series that was not there yet began at 0
        yield labels, value - was if value >= was else value
