"""What Gunicorn's master adds to its own handling of workers: a stop in two steps, and turns for recycling."""

import fcntl
import os
import signal
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from app.replica import replica

_MEMORY = Path("/dev/shm")  # noqa: S108
# Seconds within which two signals are one stop: a process manager may signal the process and its group, as `timeout`.
REPEATED_WITHIN_SECONDS = 1.0


def announce_stop_at_sigterm(arbiter: Any, seconds: float) -> None:
    """Make SIGTERM announce the stop, and stop the workers `seconds` later. A later SIGTERM stops them at once.

    In between `/readyz` answers 503 and the replica serves as usual, so that load balancers can take it out. Must be
    called in the master, after Gunicorn has set its own signal handlers. A SIGTERM that they have queued counts too:
    the socket listens already, and clients may have connected.
    """
    announced_at = 0.0

    def announce(number: int, frame: FrameType | None) -> None:
        if os.getpid() != arbiter.pid:
            # A worker that was forked a moment ago, and has not set its own handlers yet. Not sys.exit(): it may be in
            # a hook that Python runs after a fork, where exceptions are ignored.
            os._exit(0)
        nonlocal announced_at
        if not replica.is_stopping:
            announced_at, wait = time.monotonic(), seconds
        elif time.monotonic() - announced_at > REPEATED_WITHIN_SECONDS:
            wait = 0.0
        else:
            return
        replica.stop(after=wait)
        signal.setitimer(signal.ITIMER_REAL, wait)
        if not wait:
            stop(number, frame)

    def stop(number: int, frame: FrameType | None) -> None:
        arbiter.signal(signal.SIGTERM, frame)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, announce)
    queued = [arbiter.SIG_QUEUE.get_nowait() for _ in range(arbiter.SIG_QUEUE.qsize())]
    for number in queued:
        if number == signal.SIGTERM:
            announce(number, None)
        else:
            arbiter.signal(number, None)


class Turn:
    """A lock that one worker of the replica at a time can hold. The exit of the worker releases it.

    Must be created in the master, before the first fork. POSIX locks belong to a process: an inherited file does.
    """

    def __init__(self) -> None:
        self._descriptor, name = tempfile.mkstemp(dir=_MEMORY if _MEMORY.is_dir() else None)
        os.unlink(name)  # noqa: PTH108 - a file without a name, until the last process of the replica exits

    def take(self) -> bool:
        """Take the lock. Return False if another worker has it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def pass_on(self) -> None:
        """Release the lock."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
