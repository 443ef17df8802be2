"""The metrics that the workers of every replica on this host have written."""

import asyncio
import struct
import time
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from app.exporter.scraper import PartialFailure
from app.observability import multiprocess
from app.observability.exemplars import read_exemplars, with_exemplars

# Raised for a damaged file, such as one that a crash of the machine left half written.
_DAMAGED = (ValueError, RuntimeError, struct.error)


class ReplicasCollector:
    """Reads METRICS_DIR, which has one directory per replica, and adds the labels `replica` and `worker`."""

    name = "replicas"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def collect(self) -> list[Metric]:
        """Read the files in a thread. Raise PartialFailure."""
        return await asyncio.to_thread(self.read)

    def fallback(self) -> list[Metric]:
        """Return nothing: old values would look current."""
        return []

    def read(self) -> list[Metric]:
        """Return the metrics of all replicas. Raise PartialFailure if files are damaged; it has the other metrics."""
        families: dict[str, Metric] = {}
        damaged: list[str] = []
        for directory in self._replicas():
            files = [str(path) for path in sorted(directory.glob("*.db")) if _is_current(path)]
            exemplars = read_exemplars(directory, damaged)
            for metric in _merge(files, damaged):
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in with_exemplars(metric.samples, exemplars) if exemplars else metric.samples:
                    labels = {"replica": directory.name} | sample.labels
                    if "pid" in labels:  # prometheus_client's label for the process, here the slot
                        labels["worker"] = labels.pop("pid")
                    family.samples.append(sample._replace(labels=labels))
        metrics = list(families.values())
        if damaged:
            raise PartialFailure(f"cannot read damaged files: {', '.join(damaged)}", metrics)
        return metrics

    def _replicas(self) -> list[Path]:
        now = time.time()
        try:
            return sorted(
                path
                for path in self._directory.iterdir()
                if path.is_dir() and now - multiprocess.last_heartbeat(path) < multiprocess.REMOVE_AFTER_SECONDS
            )
        except FileNotFoundError:
            return []  # no API has started yet


def _merge(files: list[str], damaged: list[str]) -> list[Metric]:
    """Return the merged metrics of the readable files, and add the names of the others to `damaged`."""
    try:
        return list(MultiProcessCollector.merge(files))
    except FileNotFoundError:
        return []  # the replica is restarting and has just emptied its directory
    except _DAMAGED:
        readable = [file for file in files if _is_readable(file)]
        if len(readable) == len(files):
            raise
        damaged.extend("/".join(Path(file).parts[-2:]) for file in files if file not in readable)
        return _merge(readable, damaged)


def _is_readable(file: str) -> bool:
    try:
        list(MultiProcessCollector.merge([file]))
    except _DAMAGED:
        return False
    return True


def _is_current(path: Path) -> bool:
    """Return False for a file that was just created and is still empty, and for the gauges of a dead worker."""
    try:
        if path.stat().st_size == 0:
            return False
    except FileNotFoundError:
        return False
    kind, _, slot = path.stem.rpartition("_")
    return not kind.startswith("gauge_live") or multiprocess.is_alive(path.parent, slot)
