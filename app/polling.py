"""The one loop that polls until a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")

# Between two queries of a server that is not available, or not migrated, yet.
POLL_SECONDS = 0.5


async def poll(
    attempt: Callable[[], Awaitable[Result]],
    *,
    until: Callable[[Result], bool],
    deadline: float,
    every: float = POLL_SECONDS,
) -> Result:
    """Await `attempt()` every `every` seconds until `until(result)` is true, and return the last result.

    Makes at least one attempt. The last one starts at `deadline` (on the clock of time.monotonic()), not later.
    """
    while True:
        result = await attempt()
        seconds = deadline - time.monotonic()
        if until(result) or seconds <= 0:
            return result
        await asyncio.sleep(min(every, seconds))
