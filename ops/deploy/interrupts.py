"""Signals that stop an operation: raised as Interrupted, but not in the middle of a change of replicas."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ops.deploy.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupts:
    deferred = 0
    pending = False


def install() -> None:
    """Raise Interrupted at the first of the signals. Later ones are ignored: going back is not interrupted."""
    _Interrupts.pending = False
    for number in _SIGNALS:
        signal.signal(number, _handle)


@contextmanager
def deferred() -> Iterator[None]:
    """Raise Interrupted at the end of the block instead of within it."""
    _Interrupts.deferred += 1
    try:
        yield
    finally:
        _Interrupts.deferred -= 1
    if _Interrupts.pending and not _Interrupts.deferred:
        _Interrupts.pending = False
        raise Interrupted


def _handle(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if _Interrupts.deferred:
        _Interrupts.pending = True
    else:
        raise Interrupted
