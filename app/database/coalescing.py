"""Reads that wait at the same time are answered by one statement: reads by key, and identical reads.

A lone read is sent at once, as its own statement. Reads that come while `coalesce_in_flight` statements of their kind
are under way wait for one of these to end, and the next statement answers all of them. After a statement that answered
several reads, all reads of an iteration of the event loop go together, the first one included. So statements get fewer
as the load grows, and few connections are enough. A read is answered only by a statement that is sent after the read
was requested, so it sees everything that was committed before (docs/decisions/0035-coalesced-reads.md).
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from copy import copy
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.checkout import Checkout, check_out
from app.database.costs import SHARED
from app.database.deadline import left_of
from app.database.lanes import current_lane
from app.database.pool import BoundedPool
from app.database.pool_events import PoolObserver
from app.errors import PoolExhausted, StatementTimeout, TransientDatabaseError
from app.lanes import NORMAL, LaneName

# The answer to a read that waited for others in vain: its caller sends it.
_ALONE = object()


class Waiting(NamedTuple):
    """A read or write that waits: its key, the future of its answer, and when it began, on the event loop's clock.

    `alone` keeps the statement alive.
    """

    key: Any
    future: asyncio.Future[Any]
    asked: float
    alone: Callable[[], Awaitable[Any]]


class Queue(ABC):
    """The reads of one kind that wait in a worker, and the statements that answer them. Writes have the same queue."""

    what = "read"

    def __init__(
        self,
        engine: AsyncEngine,
        work: str,
        most: int | None,
        lane: LaneName = NORMAL,
        forget: Callable[[], object] | None = None,
    ) -> None:
        """Begin an empty queue.

        `work` is the text of the statement, or another name for its cost. `most` is how many reads a statement answers;
        None: all that wait. All of them are in `lane`. `forget` is called when nothing is under way and nothing waits.
        """
        self.engine = engine
        self._work = work
        self._most = most
        self._lane = lane
        self._forget = forget
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start_in(asyncio.get_running_loop())

    def _start_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget the state of an event loop that has ended: tests run several, one after the other."""
        self._loop = loop
        self._waiting: deque[Waiting] = deque()
        # Statements that have been begun, and those of them that still wait for a connection.
        self._under_way = 0
        self._starting = 0
        # 1 while a caller sends a lone read by itself.
        self.lone = 0
        self._is_scheduled = False
        # The last shared statement answered several reads: the next read waits for the others of its iteration.
        self._has_company = False
        self._expiry: asyncio.TimerHandle | None = None
        # The statements that run, with the reads that each of them answers.
        self._tasks: dict[asyncio.Task[None], list[Waiting]] = {}

    @property
    def pool(self) -> BoundedPool:
        """Return the pool of the engine."""
        pool = self.engine.sync_engine.pool
        assert isinstance(pool, BoundedPool)
        return pool

    @property
    def _most_under_way(self) -> int:
        return self.pool.coalesce_in_flight

    def ask(self, key: Any, alone: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """Return the answer to a read, to be awaited. `alone` sends it as a statement of its own.

        Raise PoolExhausted if too many reads wait; RuntimeError if the pool would refuse a second checkout.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._start_in(loop)
        if not (self._under_way or self._waiting):
            return self._run_alone(key, alone)
        return self._wait_for(self._enqueue(key, alone))

    def _enqueue(self, key: Any, alone: Callable[[], Awaitable[Any]]) -> Waiting:
        loop = self._loop
        assert loop is not None
        # The statement is run by a task of its own, which the pool would not recognise.
        pool = self.pool
        pool.refuse_second_checkout()
        self._refuse_if_full()
        now = loop.time()
        future = loop.create_future()
        read = Waiting(key, future, now, alone)
        self._waiting.append(read)
        timeout = pool.timeout_in(self._lane)
        if self._expiry is None:
            self._expiry = loop.call_later(timeout, self._expire, context=Context())
        if (left := left_of(timeout)) < timeout:
            loop.call_later(left, self._expire_early, read, context=Context())
        if not self._is_scheduled and self._under_way < self._most_under_way:
            # In the next iteration: the reads of this one go together.
            self._is_scheduled = True
            loop.call_soon(self._flush_iteration, context=Context())
        return read

    async def _wait_for(self, read: Waiting) -> Any:
        try:
            answer = await read.future
        except asyncio.CancelledError:
            self._cancel_abandoned()
            raise
        return answer if answer is not _ALONE else await self.ask(read.key, read.alone)

    def _cancel_abandoned(self) -> None:
        """Cancel each statement that no caller waits for any more."""
        for task, reads in self._tasks.items():
            # Once: psycopg closes a connection whose cancellation is interrupted, and the statement goes on.
            if reads and not task.cancelling() and all(read.future.done() for read in reads):
                task.cancel()

    async def _run_alone(self, key: Any, alone: Callable[[], Awaitable[Any]]) -> Any:
        # Another read may have begun since ask(): several reads in one gather().
        if self._under_way or self._waiting or self._has_company:
            return await self._wait_for(self._enqueue(key, alone))
        loop = self._loop
        self._under_way += 1
        self.lone += 1
        try:
            return await alone()
        finally:
            if loop is self._loop:
                self.lone -= 1
            self._end_statement(loop)

    def _end_statement(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is not self._loop:  # closed by the garbage collector, after its loop
            return
        self._under_way -= 1
        self._drop_cancelled()
        if self._waiting:
            self._flush()
        elif not self._under_way and self._forget is not None:
            self._forget()

    def _drop_cancelled(self) -> None:
        """Drop the first reads that no caller waits for any more: they need no statement."""
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()

    def _flush_iteration(self) -> None:
        """Begin the statements for the reads of one iteration. A read that was the only one is left to its caller."""
        self._is_scheduled = False
        self._drop_cancelled()
        if not self._under_way and len(self._waiting) == 1:
            self._has_company = False
            self._waiting.popleft().future.set_result(_ALONE)
        else:
            self._flush()

    def _flush(self) -> None:
        """Begin as many statements as the reads that wait need, at most `_most_under_way`."""
        assert self._loop is not None
        while self._under_way < self._most_under_way and len(self._waiting) > self._starting * (
            self._most or len(self._waiting)
        ):
            self._under_way += 1
            self._starting += 1
            # A context of its own: the statement belongs to no single request.
            reads: list[Waiting] = []
            task = self._loop.create_task(self._run(reads), context=Context())
            self._tasks[task] = reads  # asyncio holds tasks weakly
            task.add_done_callback(self._tasks.pop)

    async def _run(self, reads: list[Waiting]) -> None:
        """Send one statement, and answer the reads that wait when it has a connection. Put these into `reads`."""
        loop = self._loop
        assert loop is not None
        current_lane.set(self._lane)
        began = loop.time()
        try:
            try:
                try:
                    checkout = await check_out(self.engine, self._work)
                except Exception:
                    # Reads that came later have a deadline of their own.
                    reads += self._take(until=began)
                    raise
                finally:
                    if loop is self._loop:
                        self._starting -= 1
                reads += self._take()
                self._has_company = len(reads) > 1
                if not reads:
                    await checkout.release()
                    return
                try:
                    self._observe(self.pool.observer, len(reads), loop.time() - reads[0].asked)
                except BaseException:
                    await checkout.release()
                    raise
                await self._answer(checkout, reads)
            except Exception as error:  # noqa: BLE001 - the callers get it
                await self._fail(reads, error)
        except BaseException:  # the event loop ends
            for read in reads:
                read.future.cancel()
            raise
        finally:
            self._end_statement(loop)

    def _observe(self, observer: PoolObserver, reads: int, seconds: float) -> None:
        observer.coalesced(reads, seconds)

    @abstractmethod
    async def _answer(self, checkout: Checkout, reads: Sequence[Waiting]) -> None:
        """Run the statement on a connection, return the connection, and answer the reads."""

    async def _fail(self, reads: Sequence[Waiting], error: Exception) -> None:
        """Give each read that waits for it the error, as an object of its own: a traceback belongs to one request."""
        for number, read in enumerate(reads):
            if not read.future.done():
                read.future.set_exception(error if number == 0 else _copy_of(error))

    def _take(self, until: float | None = None) -> list[Waiting]:
        """Take the reads of the next statement: in their order, without those whose caller has gone."""
        taken: list[Waiting] = []
        waiting = self._waiting
        while waiting and (self._most is None or len(taken) < self._most):
            if until is not None and waiting[0].asked > until:
                break
            read = waiting.popleft()
            if not read.future.done():
                taken.append(read)
        return taken

    def _refuse_if_full(self) -> None:
        limit = self.pool.max_waiting_reads
        if len(self._waiting) >= limit:
            self._waiting = deque(read for read in self._waiting if not read.future.done())
            if len(self._waiting) >= limit:
                self.pool.observer.rejected()
                raise PoolExhausted(
                    f"the queue of {self.what}s for one statement is full ({len(self._waiting)} of {limit})"
                )

    def _expire_early(self, read: Waiting) -> None:
        """End the waiting of a read that had waited for another server before."""
        if not read.future.done() and any(each is read for each in self._waiting):
            self.pool.observer.timed_out()
            read.future.set_exception(PoolExhausted(f"the {self.what} was not sent within what was left of its time"))

    def _expire(self) -> None:
        """End the waiting of reads at their deadline. One timer for all of them."""
        assert self._loop is not None
        self._expiry = None
        seconds = self.pool.timeout_in(self._lane)
        due = self._loop.time() - seconds
        waiting = self._waiting
        while waiting and (waiting[0].future.done() or waiting[0].asked <= due):
            read = waiting.popleft()
            if not read.future.done():
                self.pool.observer.timed_out()
                read.future.set_exception(PoolExhausted(f"the {self.what} was not sent within {seconds:g} s"))
        if waiting:
            self._expiry = self._loop.call_at(waiting[0].asked + seconds, self._expire, context=Context())


def _copy_of(error: Exception) -> Exception:
    try:
        copied = copy(error)
    except Exception:  # noqa: BLE001 - an exception class of the driver whose arguments are not its attributes
        return error
    copied.__cause__ = error.__cause__
    return copied


class KeyQueue(Queue):
    """The reads of one KeyedSelect."""

    def __init__(
        self,
        engine: AsyncEngine,
        key_of: Callable[[Any], Any],
        run: Callable[[Checkout, list[Any]], Awaitable[Sequence[Any]]],
        run_alone: Callable[[Any], Awaitable[Any]],
        copy_row: Callable[[Any], Any],
    ) -> None:
        """Begin an empty queue. `run` reads several keys and returns the connection; `run_alone` reads one key."""
        pool = engine.pool
        assert isinstance(pool, BoundedPool)
        super().__init__(engine, SHARED, pool.coalesce_max)
        self._key_of = key_of
        self._run_several = run
        self._run_one = run_alone
        self._copy_row = copy_row

    async def _answer(self, checkout: Checkout, reads: Sequence[Waiting]) -> None:
        rows = await self._run_several(checkout, list({read.key for read in reads}))
        by_key = dict(zip(map(self._key_of, rows), rows, strict=True))
        if len(by_key) < len(rows):
            raise several_rows(rows, self._key_of)
        given = set()
        for key, future, *_ in reads:
            if future.done():
                continue
            row = by_key.get(key)
            if row is not None and key in given:
                row = self._copy_row(row)
            given.add(key)
            future.set_result(row)

    async def _fail(self, reads: Sequence[Waiting], error: Exception) -> None:
        """Try the reads one by one if one key may be at fault. If the server cannot answer, none has a chance.

        One key may be slow, and many keys together may exceed the statement timeout where each of them does not.
        Reads that are not sent again within the timeout of the pool get PoolExhausted.
        """
        is_timeout = isinstance(error, StatementTimeout)
        if len(reads) <= 1 or (isinstance(error, TransientDatabaseError) and not is_timeout):
            await super()._fail(reads, error)
            return
        loop = asyncio.get_running_loop()
        seconds = self.pool.timeout()
        deadline = loop.time() + seconds
        for number, read in enumerate(reads):
            if read.future.done():
                continue
            if loop.time() >= deadline:
                for _ in range(sum(not late.future.done() for late in reads[number:])):
                    self.pool.observer.timed_out()
                await super()._fail(reads[number:], PoolExhausted(f"the read was not sent again within {seconds:g} s"))
                return
            try:
                row = await self._run_one(read.key)
            except StatementTimeout as own:
                _set(read.future, error=own)
            except TransientDatabaseError as temporary:
                await super()._fail(reads[number:], temporary)
                return
            except Exception as own:  # noqa: BLE001 - the caller gets it
                _set(read.future, error=own)
            else:
                _set(read.future, row)


def _set(future: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> None:
    """Answer a read, unless its caller has gone while it was answered."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def several_rows(rows: Sequence[Any], key_of: Callable[[Any], Any]) -> LookupError:
    """Return the error of a key that found more than one row."""
    seen = set()
    for key in map(key_of, rows):
        if key in seen:
            return LookupError(f"a statement by key found more than one row for {key!r}: does it join a collection?")
        seen.add(key)
    raise AssertionError


class SameReads(Queue):
    """The reads of one statement with the same parameters, in one lane."""

    def __init__(
        self,
        engine: AsyncEngine,
        work: str,
        lane: LaneName,
        run: Callable[[Checkout], Awaitable[Sequence[Any]]],
        copy_row: Callable[[Any], Any],
        forget: Callable[[], object],
    ) -> None:
        super().__init__(engine, work, None, lane, forget)
        self._run_same = run
        self._copy_row = copy_row

    async def _answer(self, checkout: Checkout, reads: Sequence[Waiting]) -> None:
        rows = await self._run_same(checkout)
        for number, read in enumerate(reads):
            if not read.future.done():
                read.future.set_result(rows if number == 0 else list(map(self._copy_row, rows)))
