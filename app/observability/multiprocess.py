"""The directory in which the workers of one replica keep their metrics for the exporter.

prometheus_client maps one file per process and metric type. Two things differ here (docs/decisions/0005-slot-files.md):
- A file belongs to a worker's slot (1 to WEB_CONCURRENCY), not to its process id. A replacement worker continues the
  file of its predecessor, so the number of files and the cost of a scrape stay constant.
- Each worker touches a heartbeat file, because a killed container cannot remove its gauges. Readers ignore the gauges
  of a slot without a recent heartbeat.
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.25
# Tolerates a machine that swaps and a process that was paused.
STALE_AFTER_SECONDS = 10.0
# Every scraper has read the final counters of a dead replica by then.
REMOVE_AFTER_SECONDS = 600.0
# The files of a replica's directory: values, heartbeats, exemplars, and exemplars that are being written.
_SUFFIXES = frozenset({".db", ".alive", ".exemplars", ".tmp"})

_directory: Path | None = None
_slot = "0"  # Gunicorn's master, or a process outside Gunicorn


def open_directory(directory: Path) -> None:
    """Empty the replica's directory, and make this process and its forks write their metrics there.

    Call this before prometheus_client is imported: at import, the library decides where values live. Old files are
    removed because the library would continue them. Raise RuntimeError if it was already imported, FileExistsError if
    the directory has files that are no metrics.
    """
    global _directory
    if directory == _directory:
        return  # Gunicorn runs its configuration file again at a reload
    if "prometheus_client" in sys.modules:
        raise RuntimeError("prometheus_client was imported before its directory was set")
    if directory.exists() and any(directory.iterdir()) and not _has_only_metrics(directory):
        raise FileExistsError(f"{directory} has other files than metrics: choose an empty directory")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    _remove_dead_replicas(directory.parent)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    _directory = directory

    from prometheus_client import values

    from app.observability.mmap_value import value_class

    values.ValueClass = value_class(current_slot)


def _remove_dead_replicas(parent: Path) -> None:
    for directory in parent.iterdir():
        # METRICS_DIR may be a directory that other programs use as well.
        if time.time() - last_heartbeat(directory) > REMOVE_AFTER_SECONDS and _has_only_metrics(directory):
            shutil.rmtree(directory, ignore_errors=True)


def _has_only_metrics(directory: Path) -> bool:
    """Return True if the directory has files, and each one is a file of a replica."""
    try:
        paths = list(directory.iterdir())
    except OSError:  # not a directory, or removed by another replica
        return False
    return bool(paths) and all(path.suffix in _SUFFIXES and not path.is_dir() for path in paths)


def last_heartbeat(directory: Path) -> float:
    """Return the Unix time of the last heartbeat in a replica's directory, or of its last change if that is later."""
    heartbeats = []
    for path in (*directory.glob("*.alive"), directory):
        with suppress(FileNotFoundError):
            heartbeats.append(path.stat().st_mtime)
    return max(heartbeats, default=0.0)


def assign_slot(slot: int) -> None:
    """Name this process's metrics files after its slot. Call this in the worker, right after the fork."""
    global _slot
    _slot = str(slot)


def release_slot(slot: int) -> None:
    """Remove the gauges of a dead worker and keep its counters. Call this in the master."""
    from prometheus_client import multiprocess

    if _directory is not None:
        multiprocess.mark_process_dead(slot, str(_directory))
        _heartbeat_file(_directory, str(slot)).unlink(missing_ok=True)


def metrics_directory() -> Path | None:
    """Return the replica's directory, None if there is none: outside a service, for example."""
    return _directory


def current_slot() -> str:
    """Return the slot of this process, counted from "1"; "0" outside Gunicorn."""
    return _slot


def is_alive(directory: Path, slot: str) -> bool:
    """Return True if the worker in this slot of a replica's directory has a recent heartbeat."""
    try:
        heartbeat = _heartbeat_file(directory, slot).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - heartbeat < STALE_AFTER_SECONDS


class Heartbeat:
    """Publishes gauges and touches the heartbeat file every HEARTBEAT_SECONDS while the `with` block runs.

    This runs in a thread, not in a task: gauges matter most when the event loop is blocked.
    """

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._stop = Event()
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._beat()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._beat()
            except OSError:  # a full disk may have free space later
                if not failing:
                    logger.exception("cannot write metrics to %s", _directory)
                failing = True
            else:
                failing = False

    def _beat(self) -> None:
        self._publish()
        if _directory is not None:
            _heartbeat_file(_directory, _slot).touch()


def _heartbeat_file(directory: Path, slot: str) -> Path:
    return directory / f"{slot}.alive"
