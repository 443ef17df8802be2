"""Exemplars: for each bucket of a histogram, the trace of its latest observation.

The workers' metrics files hold numbers only. So each pool of a worker has a file of its own next to them, which the
heartbeat writes and the exporter reads. The exporter sends exemplars to scrapers that ask for OpenMetrics
(https://prometheus.io/docs/specs/om/open_metrics_spec/#exemplars).
"""

import json
import time
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from pathlib import Path

from prometheus_client.samples import Exemplar, Sample

from app.observability.catalogue import MetricSpec
from app.observability.instruments import BUCKET_SECONDS
from app.observability.multiprocess import current_slot, metrics_directory

_SUFFIX = ".exemplars"

BucketKey = tuple[str, frozenset[tuple[str, str]], float]
"""The name of a histogram, its labels without `le`, and the bucket's upper bound."""


class Exemplars:
    """The exemplars of one histogram with these labels, in this process."""

    def __init__(self, spec: MetricSpec, **labels: str) -> None:
        self._metric = spec.name
        self._labels = labels
        self._latest: dict[float, tuple[str, str, float, float]] = {}
        self._written: dict[float, tuple[str, str, float, float]] = {}

    def keep(self, seconds: float, trace_id: str, span_id: str) -> None:
        """Keep an observation of this duration as the exemplar of its bucket. The ids are in hexadecimal digits."""
        position = bisect_left(BUCKET_SECONDS, seconds)
        bound = BUCKET_SECONDS[position] if position < len(BUCKET_SECONDS) else inf
        self._latest[bound] = (trace_id, span_id, seconds, time.time())

    def publish(self) -> None:
        """Write the file if there are new ones. A full disk costs exemplars, and nothing else."""
        directory = metrics_directory()
        latest = self._latest.copy()
        if directory is None or latest == self._written:
            return
        name = "_".join([current_slot(), self._metric, *self._labels.values()])
        buckets = [[str(bound), *exemplar] for bound, exemplar in latest.items()]
        content = {"metric": self._metric, "labels": self._labels, "buckets": buckets}
        path = directory / f"{name}{_SUFFIX}"
        unfinished = path.with_suffix(".tmp")
        with suppress(OSError):
            unfinished.write_text(json.dumps(content), encoding="utf-8")
            unfinished.replace(path)
            self._written = latest


def read_exemplars(directory: Path, damaged: list[str]) -> dict[BucketKey, Exemplar]:
    """Return the latest exemplar of each bucket of a replica. Add the names of unreadable files to `damaged`."""
    found: dict[BucketKey, Exemplar] = {}
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labels = frozenset(content["labels"].items())
            for bound, trace_id, span_id, seconds, timestamp in content["buckets"]:
                key = (content["metric"], labels, float(bound))
                if key not in found or timestamp > (found[key].timestamp or 0):
                    found[key] = Exemplar({"trace_id": trace_id, "span_id": span_id}, seconds, timestamp)
        except FileNotFoundError:  # the replica is restarting
            continue
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged.append("/".join(path.parts[-2:]))
    return found


def with_exemplars(samples: Iterable[Sample], exemplars: dict[BucketKey, Exemplar]) -> list[Sample]:
    """Return the samples of a histogram. Add its exemplar to each bucket that has one."""
    result = []
    for sample in samples:
        if "le" in sample.labels:
            labels = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
            key = (sample.name.removesuffix("_bucket"), labels, float(sample.labels["le"]))
            sample = sample._replace(exemplar=exemplars.get(key))
        result.append(sample)
    return result
