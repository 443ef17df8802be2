"""Rows that wait at the same time are inserted by one statement, which commits them together.

The queue is that of reads (`coalescing.py`): a lone row is sent at once, as its own statement. A row that the shared
statement has not inserted is sent by itself. If the server refuses the statement, its rows are sent again in parts, so
that the row at fault fails alone (docs/decisions/0051-shared-inserts.md).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.checkout import Checkout, check_out
from app.database.coalescing import Queue, Waiting
from app.database.error_mapping import is_server_error, refuses_any_rows
from app.database.pool import BoundedPool
from app.database.pool_events import PoolObserver
from app.database.read_after import note_written, read_after
from app.errors import InvalidInput, OutcomeUnknown, PoolExhausted, StatementTimeout, TransactionConflict, first_line
from app.request_deadline import RequestDeadline, cancelled_write, is_overdue, request_deadline

logger = logging.getLogger(__name__)

# After a shared statement that the server refuses whatever its rows are.
PAUSE_SECONDS = 60.0

# The answer to a write that the shared statement has not stored: its caller sends it.
_SEND_ALONE = object()


@dataclass(slots=True, eq=False)
class _Write:
    """The values of a row, and the deadline of the request. `is_sent`: a statement with the row was begun."""

    values: Any
    deadline: RequestDeadline | None
    is_sent: bool = False


class _Inserted(NamedTuple):
    """A row of a shared statement, and the position of its commit in the log; 0 without a standby."""

    row: Any
    position: int


class InsertQueue(Queue):
    """The rows of one SharedInsert that wait in a worker."""

    what = "write"

    def __init__(
        self,
        engine: AsyncEngine,
        values_in: Callable[[Any], Any],
        run: Callable[[Checkout, list[Any]], Awaitable[Sequence[Any]]],
    ) -> None:
        """Begin an empty queue. `run` inserts rows of these values and returns the connection."""
        pool = engine.pool
        assert isinstance(pool, BoundedPool)
        # A write that is slow may wait for a lock or the disk: its cost is not watched.
        super().__init__(engine, "", pool.coalesce_max)
        self._values_in = values_in
        self._insert = run

    def _start_in(self, loop: asyncio.AbstractEventLoop) -> None:
        super()._start_in(loop)
        self._paused_until = 0.0  # on the clock of the loop

    @property
    def _is_paused(self) -> bool:
        return bool(self._paused_until) and asyncio.get_running_loop().time() < self._paused_until

    def insert(self, values: Any, alone: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """Return the inserted row, or None, to be awaited. `alone` inserts it with a statement of its own."""
        if self._is_paused:
            return alone()
        return self.ask(_Write(values, request_deadline.get()), alone)

    async def _wait_for(self, waiting: Waiting) -> Any:
        try:
            answer = await super()._wait_for(waiting)
        except asyncio.CancelledError as error:
            if waiting.key.is_sent and is_overdue():
                raise cancelled_write() from error
            raise
        if answer is _SEND_ALONE:
            return await waiting.alone()
        if isinstance(answer, _Inserted):
            if answer.position:
                note_written(answer.position)
            return answer.row
        return answer

    @property
    def _most_under_way(self) -> int:
        # A lone row may wait for a lock of its parent, for which no shared statement waits.
        return super()._most_under_way + self.lone

    def _observe(self, observer: PoolObserver, writes: int, seconds: float) -> None:
        observer.coalesced_writes(writes, seconds)

    async def _answer(self, checkout: Checkout, waiting: Sequence[Waiting]) -> None:
        if self._is_paused:
            await checkout.release()
            self._leave_to_callers(waiting)
            return
        for each in waiting:
            each.key.is_sent = True
        rows = await self._insert(checkout, [each.key.values for each in waiting])
        noted = read_after.get()  # this task has no other writes
        position = 0 if noted is None else noted.written
        inserted: dict[Any, list[Any]] = {}
        for row in rows:
            inserted.setdefault(self._values_in(row), []).append(row)
        sent = Counter(each.key.values for each in waiting)
        are_all_sent = all(len(found) <= sent[values] for values, found in inserted.items())
        missing = []
        for each in waiting:
            if each.future.done():
                continue
            write: _Write = each.key
            # Of equal rows, it does not matter which caller gets which.
            if found := inserted.get(write.values):
                if write.deadline is not None:
                    write.deadline.has_stored = True
                each.future.set_result(_Inserted(found.pop(), position))
            else:
                missing.append(each)
        if not are_all_sent:
            # One of these rows may be that of a caller which has found none.
            raise OutcomeUnknown("the server stored other values than those that were sent: a trigger has changed them")
        self._leave_to_callers(missing)

    async def _fail(self, waiting: Sequence[Waiting], error: Exception) -> None:
        """Send the rows again, in smaller statements, if the server refused the statement: one row may be at fault.

        It has stored nothing then. The rows of a statement that waited for too long are sent by their callers: another
        shared statement might wait as long. So are those of one that the server refuses whatever its rows are, for
        example because the role may not lock the parent.
        """
        if isinstance(error, (StatementTimeout, TransactionConflict)):
            self._leave_to_callers(waiting)
        elif refuses_any_rows(error):
            if not self._is_paused:
                logger.warning("for %g s, no rows share a statement that failed: %s", PAUSE_SECONDS, first_line(error))
                self._paused_until = asyncio.get_running_loop().time() + PAUSE_SECONDS
            self._leave_to_callers(waiting)
        elif _is_refusal(error):
            await self._send_in_parts(waiting)
        else:
            await super()._fail(waiting, error)

    def _leave_to_callers(self, waiting: Sequence[Waiting]) -> None:
        """Let each caller send its own row, which is not stored."""
        left = [each for each in waiting if not each.future.done()]
        for each in left:
            each.key.is_sent = False
            each.future.set_result(_SEND_ALONE)
        if left:
            self.pool.observer.sent_again(len(left))

    async def _send_in_parts(self, waiting: Sequence[Waiting]) -> None:
        """Send each half of the rows with a statement of its own, and halve it again if that one is refused.

        So a row that the server refuses costs a few statements, not one for each of its companions. Rows that are not
        sent again within the timeout of the pool get PoolExhausted.
        """
        loop = asyncio.get_running_loop()
        seconds = self.pool.timeout()
        deadline = loop.time() + seconds
        parts = _halves(waiting)
        while parts:
            part = [each for each in parts.pop() if not each.future.done()]
            if len(part) <= 1:
                self._leave_to_callers(part)
                continue
            if loop.time() >= deadline:
                for _ in part:
                    self.pool.observer.timed_out()
                await super()._fail(part, PoolExhausted(f"the write was not sent again within {seconds:g} s"))
                continue
            try:
                checkout = await check_out(self.engine)
                # A caller that has gone meanwhile was told that its row is not stored.
                part = [each for each in part if not each.future.done()]
                await (self._answer(checkout, part) if part else checkout.release())
            except Exception as error:  # noqa: BLE001 - the callers get it
                if _is_refusal(error):
                    parts += _halves(part)
                else:
                    await self._fail(part, error)


def _is_refusal(error: Exception) -> bool:
    """Return True if the server, or the driver in its place, refused the statement because of its rows."""
    return isinstance(error, InvalidInput) or (is_server_error(error) and not refuses_any_rows(error))


def _halves(waiting: Sequence[Waiting]) -> list[Sequence[Waiting]]:
    """Return both halves of rows that were refused: they are not stored."""
    for each in waiting:
        each.key.is_sent = False
    middle = len(waiting) // 2
    return [waiting[middle:], waiting[:middle]]
