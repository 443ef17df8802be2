"""Share the machine between the workers of one pytest-xdist run."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def is_worker(config: pytest.Config) -> bool:
    """Return True in a worker, False in the process that reports or if there is one process only."""
    return hasattr(config, "workerinput")


def run_directory(config: pytest.Config) -> Path | None:
    """Return the directory that all workers of this run have in common, or None if there is one process only."""
    return Path(config.option.basetemp).parent if is_worker(config) else None


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
def turn(directory: Path | None, *, alone: bool) -> Iterator[None]:
    """Let the block run next to those of other workers, or `alone`.

    A worker that waits to be alone holds the lock of the queue, so that no other block starts before it.
    """
    if directory is None:
        yield
        return
    with (directory / "machine.lock").open("w") as machine:
        with locked(directory / "queue.lock"):
            fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(machine, fcntl.LOCK_UN)
