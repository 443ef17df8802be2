"""The workers of pytest-xdist: which tests share a worker, and which run alone on the machine."""

import fcntl
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

VARIABLE = "TEST_RUN_DIRECTORY"
_directory: Path | None = None


def create_run_directory() -> Path:
    """Create a directory for all workers. They find it by the environment, which they inherit."""
    global _directory
    _directory = Path(tempfile.mkdtemp(prefix="headroom-tests-"))
    os.environ[VARIABLE] = str(_directory)
    return _directory


def enter_run_directory() -> None:
    """Use the directory in this worker, and take it out of the environment.

    A pytest that a test starts would wait for the locks: a test that waits to be alone holds that of the queue, and
    itself waits for the test that has started pytest.
    """
    global _directory
    if VARIABLE in os.environ:
        _directory = Path(os.environ.pop(VARIABLE))


def run_directory() -> Path | None:
    """Return the directory of all workers, or None if there is one process only."""
    return _directory


def is_worker(config: pytest.Config) -> bool:
    """Return True in a worker, False in the process that starts them or if there is one process only."""
    return hasattr(config, "workerinput")


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Run the tests of a group in one worker, one after the other, and every other test in any worker.

    The groups come from the workers, because the process that schedules collects no tests. (xdist_group and
    `--dist loadgroup` of pytest-xdist 3.8 have no effect with pytest 9.2.)
    """

    def schedule(self) -> None:
        if self.collection is None:
            self.config.option.loadscopereorder = False
            self._groups: dict[str, str] = json.loads(_groups_file().read_text())
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid, nodeid)


def publish_groups(groups: dict[str, str]) -> None:
    """Hand the groups of the tests, by node id, to the process that schedules."""
    _groups_file().write_text(json.dumps(groups))


def _groups_file() -> Path:
    directory = run_directory()
    assert directory is not None
    return directory / "groups.json"


@contextmanager
def locked(path: Path, mode: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock between processes. Wait for it as long as it takes."""
    with path.open("w") as file:
        fcntl.flock(file, mode)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing it would not do while a forked child has it open


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Let the block run next to those of other workers, or `alone`.

    A worker that waits to be alone holds the lock of the queue, so that no other block starts before it. The wait is
    not part of the time that pytest-timeout allows the test.
    """
    directory = run_directory()
    if directory is None:
        yield
        return
    with (directory / "machine.lock").open("w") as machine:
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        with locked(directory / "queue.lock"):
            fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)
