"""What a queue of reads keeps when its event loop ends."""

import asyncio
from typing import Any, ClassVar

from app.database.coalescing import SameReads
from app.lanes import NORMAL


class _Pool:
    coalesce_in_flight = 2


class _Reads(SameReads):
    pool: ClassVar[Any] = _Pool()


def test_read_of_an_ended_loop_is_not_counted_in_the_next_one() -> None:
    async def new() -> _Reads:
        return _Reads(Any, "SELECT 1", NORMAL, Any, Any, lambda: None)  # type: ignore[arg-type]

    async def wait() -> Any:
        await asyncio.get_running_loop().create_future()

    async def answer() -> Any:
        return 1

    async def read() -> Any:
        return await reads.ask(None, answer)

    loop = asyncio.new_event_loop()
    reads = loop.run_until_complete(new())

    async def begin() -> Any:
        left: Any = reads.ask(None, wait)
        left.send(None)
        return left

    left = loop.run_until_complete(begin())
    loop.close()
    assert asyncio.run(read()) == 1
    left.close()
    assert reads._under_way == 0
