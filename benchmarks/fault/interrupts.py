"""Signals that end a run. They wait while programs are started or ended, so that none is left behind."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_depth = 0
_is_pending = False


def _interrupt(*_: object) -> None:
    global _is_pending
    if _depth:
        _is_pending = True
    else:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals raise KeyboardInterrupt in the block."""
    saved = {number: signal.signal(number, _interrupt) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the signals wait until the block has ended."""
    global _depth, _is_pending
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth and _is_pending:
            _is_pending = False
            raise KeyboardInterrupt
