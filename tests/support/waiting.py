"""Waiting for a condition instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, within: float, every: float = 0.05) -> T:
    """What `look` returns as soon as it is truthy and does not raise; fails with its last word after `within` s."""
    deadline = time.monotonic() + within
    while True:
        last: object
        try:
            if found := look():
                return found
            last = found
        except Exception as error:  # noqa: BLE001 - reported below
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s; last: {last!r}")
        time.sleep(every)


async def eventually_async(look: Callable[[], Awaitable[T]], *, within: float, every: float = 0.05) -> T:
    """The same for a coroutine function."""
    deadline = time.monotonic() + within
    while not (found := await look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s; last: {found!r}")
        await asyncio.sleep(every)
    return found
