"""What the workers of every replica on this host have written, put together."""

import asyncio
import struct
import time
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from app.exporter.scraper import Incomplete
from app.observability import multiprocess

# What comes of reading a file that a crash of the machine has left half written.
_SENSELESS = (ValueError, RuntimeError, struct.error)


class ReplicasCollector:
    """Reads METRICS_DIR: a folder a replica, a file a worker and kind. Adds the labels `replica` and `worker`."""

    name = "replicas"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def collect(self) -> list[Metric]:
        return await asyncio.to_thread(self.read)

    def absent(self) -> list[Metric]:
        return []

    def read(self) -> list[Metric]:
        """Raises Incomplete where a file makes no sense; the others count all the same."""
        families: dict[str, Metric] = {}
        damaged: list[str] = []
        for folder in self._replicas():
            files = [str(path) for path in sorted(folder.glob("*.db")) if _counts(path)]
            for metric in _merge(files, damaged):
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    labels = {"replica": folder.name} | sample.labels
                    if "pid" in labels:  # prometheus_client's word for what names the file
                        labels["worker"] = labels.pop("pid")
                    family.samples.append(sample._replace(labels=labels))
        metrics = list(families.values())
        if damaged:
            raise Incomplete(f"cannot make sense of {', '.join(damaged)}", metrics)
        return metrics

    def _replicas(self) -> list[Path]:
        now = time.time()
        try:
            return sorted(
                path
                for path in self._directory.iterdir()
                if path.is_dir() and now - multiprocess.last_beat(path) < multiprocess.LONG_DEAD_SECONDS
            )
        except FileNotFoundError:
            return []  # no API has started yet


def _merge(files: list[str], damaged: list[str]) -> list[Metric]:
    try:
        return list(MultiProcessCollector.merge(files))
    except FileNotFoundError:
        return []  # the replica has just been started anew, and its directory emptied
    except _SENSELESS:
        readable = [file for file in files if _makes_sense(file)]
        if len(readable) == len(files):
            raise
        damaged.extend("/".join(Path(file).parts[-2:]) for file in files if file not in readable)
        return _merge(readable, damaged)


def _makes_sense(file: str) -> bool:
    try:
        list(MultiProcessCollector.merge([file]))
    except _SENSELESS:
        return False
    return True


def _counts(path: Path) -> bool:
    """Not a file that is empty, as it is for a moment after its creation, nor gauges of a worker that is no more."""
    try:
        if path.stat().st_size == 0:
            return False
    except FileNotFoundError:
        return False
    kind, _, worker = path.stem.rpartition("_")
    return not kind.startswith("gauge_live") or multiprocess.alive(path.parent, worker)
