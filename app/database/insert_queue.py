"""Rows that wait at the same time are inserted by one statement, which commits them together.

The queue is that of reads (`coalescing.py`): a lone row is sent at once, as its own statement. A row that the shared
statement has not inserted is sent by itself, and so is each row of a statement that the server refused. So a caller
gets the row or the error that its own statement would give (docs/decisions/0051-shared-inserts.md).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.checkout import Checkout
from app.database.coalescing import Queue, Waiting
from app.database.error_mapping import is_server_error
from app.database.pool import BoundedPool
from app.database.pool_events import PoolObserver
from app.database.read_after import note_written, read_after
from app.errors import InvalidInput, OutcomeUnknown, StatementTimeout, TransactionConflict, TransientDatabaseError
from app.request_deadline import RequestDeadline, cancelled_write, is_overdue, request_deadline

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

    def insert(self, values: Any, alone: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """Return the inserted row, or None, to be awaited. `alone` inserts it with a statement of its own."""
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

    def _observe(self, observer: PoolObserver, writes: int, seconds: float) -> None:
        observer.coalesced_writes(writes, seconds)

    async def _answer(self, checkout: Checkout, waiting: Sequence[Waiting]) -> None:
        for each in waiting:
            each.key.is_sent = True
        rows = await self._insert(checkout, [each.key.values for each in waiting])
        noted = read_after.get()  # this task has no other writes
        position = 0 if noted is None else noted.written
        inserted: dict[Any, list[Any]] = {}
        for row in rows:
            inserted.setdefault(self._values_in(row), []).append(row)
        left = []
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
                left.append(each)
        if not inserted.keys() <= {each.key.values for each in waiting}:
            # One of these rows may be that of a caller which is left.
            raise OutcomeUnknown(
                "the server stored other values than those that were sent: does a trigger change them?"
            )
        for each in left:
            each.future.set_result(_SEND_ALONE)

    async def _fail(self, waiting: Sequence[Waiting], error: Exception) -> None:
        """Let each caller send its own row, if the server refused the statement and another one may succeed."""
        is_refused = isinstance(error, (InvalidInput, StatementTimeout, TransactionConflict)) or (
            is_server_error(error) and not isinstance(error, TransientDatabaseError)
        )
        if not is_refused:
            await super()._fail(waiting, error)
            return
        for each in waiting:  # also a single one: its own statement takes no lock
            if not each.future.done():
                each.future.set_result(_SEND_ALONE)
