"""Deadlines: of a checkout, passed down to its ping and its connect, and of a statement's answer."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

Result = TypeVar("Result")

# Deadline of the checkout in progress, on the clock of time.monotonic(); infinite outside a checkout.
_deadline: ContextVar[float] = ContextVar("checkout deadline", default=float("inf"))
_waited: ContextVar[float] = ContextVar("seconds waited before the checkout", default=0.0)


@dataclass
class AnswerLimit:
    """The longest time in seconds until the server answers a statement. One for all pools of an engine."""

    seconds: float = math.inf


@contextmanager
def checkout_deadline(deadline: float) -> Iterator[None]:
    """Set the deadline of the checkout in this context, on the clock of time.monotonic()."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def after_waiting(seconds: float) -> Iterator[None]:
    """Shorten the deadlines of checkouts in the block by the time in which the caller may have waited already."""
    token = _waited.set(seconds)
    try:
        yield
    finally:
        _waited.reset(token)


def left_of(timeout: float) -> float:
    """Return what is left of a checkout's time in seconds: at least half of it, which the first wait left over."""
    return timeout - min(_waited.get(), timeout / 2)


def current_deadline() -> float:
    """Return the deadline of the checkout in progress, on the clock of time.monotonic(); infinite outside one."""
    return _deadline.get()


def seconds_left() -> float:
    """Return the seconds until the deadline of the checkout in progress, at least 0; infinite outside one."""
    return max(0.0, _deadline.get() - time.monotonic())


def call_within(seconds: float, call: Callable[[], Result]) -> Result:
    """Call a synchronous function of SQLAlchemy's in a greenlet of its own, and return its result.

    Cancel the call after `seconds` and raise TimeoutError. Must itself be called in a greenlet of SQLAlchemy's.
    """

    async def bounded() -> Result:
        async with asyncio.timeout(seconds):
            return await greenlet_spawn(call)

    run: Coroutine[Any, Any, Result] = bounded()
    return await_only(run)
