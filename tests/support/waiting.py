"""Wait for a condition instead of sleeping for a fixed time."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Job = Future[Any] | asyncio.Future[Any]


class ProcessExited(Exception):
    """Raised instead of waiting any longer for a process that has ended; has its status and its output."""

    def __init__(self, process: "subprocess.Popen[Any]", log: Path) -> None:
        super().__init__(
            f"{process.args!r} exited with status {process.returncode}:\n{log.read_text(errors='replace')}"
        )


def check_running(process: "subprocess.Popen[Any]", log: Path) -> None:
    """Raise ProcessExited if the process, whose output goes to `log`, has ended."""
    if process.poll() is not None:
        raise ProcessExited(process, log)


def check_jobs(jobs: Iterable[Job]) -> None:
    """Raise the error of a background job that has failed."""
    for job in jobs:
        if job.done() and not job.cancelled() and (error := job.exception()) is not None:
            raise error


def eventually(condition: Callable[[], T], *, within: float, every: float = 0.05, jobs: Iterable[Job] = ()) -> T:
    """Return the condition's result as soon as it is true.

    An exception from the condition counts as "not yet", except ProcessExited. After `within` seconds raise an
    AssertionError with the last result or exception. The error of a failed job is raised at once.
    """
    deadline = time.monotonic() + within
    while True:
        last: object
        error: Exception | None = None
        check_jobs(jobs)
        try:
            if result := condition():
                return result
            last = result
        except ProcessExited:
            raise
        except Exception as raised:  # noqa: BLE001 - raised again below
            last = error = raised
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s; last: {last!r}") from error
        time.sleep(every)


async def eventually_async(
    condition: Callable[[], Awaitable[T]], *, within: float, every: float = 0.05, jobs: Iterable[Job] = ()
) -> T:
    """Do the same with a coroutine function, whose exceptions are raised."""
    deadline = time.monotonic() + within
    while not (result := await condition()):
        check_jobs(jobs)
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s; last: {result!r}")
        await asyncio.sleep(every)
    return result
