"""The directory in which the workers of one replica leave their metrics for the exporter, and who lives in it.

prometheus_client keeps a memory-mapped file for each process. Two things about that are changed here. A file belongs to
a worker's *slot* (1 to WEB_CONCURRENCY), not to its pid: a replacement goes on where its predecessor stopped, so the
number of files, and with it the cost of a scrape, does not grow with the number of workers that ever lived. And each
worker touches a heartbeat file, because a killed container cannot take its gauges away: whoever reads the directory
ignores the gauges of a slot whose heart stopped.
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
# Long enough for a machine that swaps or a process that was paused; short enough for a dashboard.
STALE_AFTER_SECONDS = 10.0
# Long enough for everyone's last scrape of what a dead replica has counted.
LONG_DEAD_SECONDS = 600.0

_directory: Path | None = None
_worker = "0"  # the master, or a process that has no siblings


def open_directory(directory: Path) -> None:
    """Empty the replica's directory and send this process's metrics, and those of its forks, there.

    To be called before prometheus_client is imported: it decides at import where values live, and a file left by an
    earlier process would be continued as if it were this one's.
    """
    global _directory
    if directory == _directory:
        return  # Gunicorn reads its configuration again when it is told to reload
    if "prometheus_client" in sys.modules:
        raise RuntimeError("prometheus_client was imported before its directory was chosen")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    _remove_long_dead(directory.parent)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    _directory = directory

    from prometheus_client import values

    from app.observability.mmap_value import value_class

    values.ValueClass = value_class(current_worker)


def _remove_long_dead(directory: Path) -> None:
    """Remove the folders of replicas that are no more: a container's name is used once."""
    for folder in directory.iterdir():
        if time.time() - last_beat(folder) > LONG_DEAD_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def last_beat(directory: Path) -> float:
    """When a replica's directory last heard of a worker, in Unix time; when it was made, if it never has."""
    beats = []
    for path in (*directory.glob("*.alive"), directory):
        with suppress(FileNotFoundError):
            beats.append(path.stat().st_mtime)
    return max(beats, default=0.0)


def enter_worker(slot: int) -> None:
    """Name this process. Called in the worker, right after the fork."""
    global _worker
    _worker = str(slot)


def leave_worker(slot: int) -> None:
    """Take a dead worker's gauges away. Called in the master; its counters stay."""
    from prometheus_client import multiprocess

    if _directory is not None:
        multiprocess.mark_process_dead(slot, str(_directory))
        _heartbeat_file(_directory, str(slot)).unlink(missing_ok=True)


def current_worker() -> str:
    """The slot of this process, from "1"; "0" outside Gunicorn."""
    return _worker


def alive(directory: Path, worker: str) -> bool:
    """Whether the worker in this slot has shown a sign of life lately. For readers of the directory."""
    try:
        beat = _heartbeat_file(directory, worker).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - beat < STALE_AFTER_SECONDS


class Heartbeat:
    """A thread that publishes gauges and touches the heartbeat file, for as long as the `with` block lasts.

    A thread, not a task: it goes on while the event loop is stuck, which is when the gauges matter most.
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
            except OSError:  # a full disk: it may have room again
                if not failing:
                    logger.exception("cannot write metrics to %s", _directory)
                failing = True
            else:
                failing = False

    def _beat(self) -> None:
        self._publish()
        if _directory is not None:
            _heartbeat_file(_directory, _worker).touch()


def _heartbeat_file(directory: Path, worker: str) -> Path:
    return directory / f"{worker}.alive"
