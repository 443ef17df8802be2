"""What the workers of every replica on this host have written, put together."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.observability import replica


class ReplicaCollector(Collector):
    """Reads METRICS_DIR: a folder a replica, a file a worker and kind. Adds the labels `replica` and `worker`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for folder in self._replicas():
            for metric in _merge(_readable_files(folder)):
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    labels = {"replica": folder.name} | sample.labels
                    if "pid" in labels:  # prometheus_client's word for what names the file
                        labels["worker"] = labels.pop("pid")
                    family.samples.append(sample._replace(labels=labels))
        yield from families.values()

    def _replicas(self) -> list[Path]:
        try:
            return sorted(path for path in self._directory.iterdir() if path.is_dir())
        except FileNotFoundError:
            return []  # no API has started yet


def _merge(files: list[str]) -> Iterable[Metric]:
    try:
        return list(MultiProcessCollector.merge(files))
    except FileNotFoundError:
        return []  # the replica has just been started anew, and its directory emptied


def _readable_files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.db")) if _is_readable(path)]


def _is_readable(path: Path) -> bool:
    """Neither empty, as a file is for a moment after its creation, nor gauges of a worker that is no more."""
    try:
        if path.stat().st_size == 0:
            return False
    except FileNotFoundError:
        return False
    kind, _, worker = path.stem.rpartition("_")
    return not kind.startswith("gauge_live") or replica.alive(path.parent, worker)
