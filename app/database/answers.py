"""Answers of the server on an open connection: their deadline, and what a lost one means.

SQLAlchemy's ordinary path sends everything through the dialect, so the dialect's methods are bounded here. The fast
path sends one statement for each checkout, and `BoundedPool` sets its deadline (docs/decisions/0020-deadlines.md).
"""

import asyncio
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool
from sqlalchemy.util.concurrency import in_greenlet

from app.database._sqlalchemy import entry_of, pool_of
from app.database.liveness import file_descriptor, is_closed, shut_down
from app.database.pool import BoundedPool
from app.errors import OutcomeUnknown

# Maximum time of a cancel request, and of the wait until the cancelled statement has ended.
CANCEL_SECONDS = 2.0
# After this time the request is sent again. The server ignores one that overtakes its statement, and PgBouncer ignores
# one for a statement in its queue.
CANCEL_AGAIN_SECONDS = 0.1

_UNKNOWN = "COMMIT was sent, and the connection was lost before its answer"
# PostgreSQL sends this error only after it rolled back: a backend that has committed answers before it exits. PgBouncer
# sends it too, whatever the server does, but without the function that raised it.
_ADMIN_SHUTDOWN = "57P01"
_EXECUTIONS = ("do_execute", "do_executemany", "do_execute_no_params")


def bound_answers(engine: AsyncEngine) -> None:
    """Give each wait of the engine's ordinary path a deadline, and raise OutcomeUnknown for a lost answer to COMMIT."""
    dialect: Any = engine.dialect
    for name in _EXECUTIONS:
        setattr(dialect, name, _bounded_execution(getattr(dialect, name)))
    dialect.do_rollback = _bounded(dialect.do_rollback)
    dialect.do_commit = _bounded(_noting_lost_answer(dialect.do_commit))
    if dialect.has_terminate:
        # asyncpg's close() waits for the server without a limit. terminate() does so for 2 s.
        dialect.do_close = dialect.do_terminate = _terminating_in_its_loop(dialect.do_terminate)
    event.listen(engine.sync_engine, "handle_error", _unknown_outcome)


def rolled_back(error: BaseException) -> bool:
    """Return True if PostgreSQL itself said that it rolled back, before the connection was lost."""
    cause: Any = error
    while cause is not None:
        function = getattr(cause, "server_source_function", None)  # asyncpg's
        function = function or getattr(getattr(cause, "diag", None), "source_function", None)
        if function and getattr(cause, "sqlstate", None) == _ADMIN_SHUTDOWN:
            return True
        cause = cause.__cause__
    return False


class CancellableConnection(psycopg.AsyncConnection[Any]):
    """A connection of psycopg's that ends a cancelled statement within CANCEL_SECONDS. psycopg takes up to 10 s."""

    _overdue: asyncio.TimerHandle | None = None
    _repeating: asyncio.Task[None] | None = None
    # A cancel request that failed may still be on its way, and would cancel the next statement.
    _may_be_cancelled = False

    async def cancel_safe(self, *, timeout: float = CANCEL_SECONDS) -> None:  # noqa: ASYNC109 - psycopg's parameter
        """Cancel the statement that is running. If it does not end, the connection is shut down."""
        self._overdue = asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._shut_down_if_active)
        await self._request_cancel(min(timeout, CANCEL_SECONDS))
        self._repeating = asyncio.create_task(self._cancel_again())

    async def _request_cancel(self, seconds: float) -> None:
        self._may_be_cancelled = True
        await super().cancel_safe(timeout=seconds)
        self._may_be_cancelled = False

    async def _cancel_again(self) -> None:
        with suppress(psycopg.Error):
            await asyncio.sleep(CANCEL_AGAIN_SECONDS)
            while self._is_active:
                await self._request_cancel(CANCEL_SECONDS)
                if self._is_active:
                    await asyncio.sleep(CANCEL_AGAIN_SECONDS)

    @property
    def _is_active(self) -> bool:
        return self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE

    def _shut_down_if_active(self) -> None:
        if self._is_active:
            shut_down(self)

    async def has_ended(self) -> bool:
        """Return True if the cancelled statement has ended, and its deadline and cancel requests with it."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if self._repeating is not None:
            if self._may_be_cancelled:
                await asyncio.wait({self._repeating})
            self._repeating.cancel()
            self._repeating = None
        return not self._may_be_cancelled and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def has_ended(connection: Any) -> bool:
    """Wait until a cancelled statement has ended on the server. Return True if the connection can be used again.

    Both drivers send a cancel request when their caller is cancelled. psycopg waits for the end of the statement, too.
    """
    if isinstance(connection, CancellableConnection):
        return await connection.has_ended()
    if is_closed(connection):
        return False
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            # asyncpg sends it only after the server has closed the cancel request and ended the statement. So no later
            # statement can be cancelled by mistake.
            await connection.execute("SELECT 1")
    except Exception:  # noqa: BLE001 - of the driver, the network or the timeout
        return False
    return not is_closed(connection)


@contextmanager
def expected_answer(connection: Any) -> Iterator[None]:
    """Let the pool shut the connection, SQLAlchemy's proxy, down if the block takes longer than its deadline."""
    pool: Pool = pool_of(connection)
    record = entry_of(connection)
    if not isinstance(pool, BoundedPool) or record is None:
        yield
        return
    pool.expect_answer(record)
    try:
        yield
    finally:
        pool.expect_no_answer(record)


def _bounded(call: Callable[[Any], None]) -> Callable[[Any], None]:
    def bounded(connection: Any) -> None:
        with expected_answer(connection):
            call(connection)

    return bounded


def _bounded_execution(execute: Callable[..., None]) -> Callable[..., None]:
    def bounded(cursor: Any, statement: str, *rest: Any, context: Any = None) -> None:
        if context is None and rest:  # positional
            *_, context = rest
        else:
            rest = (*rest, context)
        if getattr(context, "root_connection", None) is None:
            execute(cursor, statement, *rest)
            return
        with expected_answer(context.root_connection.connection):
            execute(cursor, statement, *rest)

    return bounded


def _noting_lost_answer(commit: Callable[[Any], None]) -> Callable[[Any], None]:
    def noting(connection: Any) -> None:
        driver_connection = connection.driver_connection
        # Then the server never reads COMMIT: the outcome is known.
        lost_before = is_closed(driver_connection) or _closed_by_peer(driver_connection)
        if lost_before:
            shut_down(driver_connection)
        try:
            commit(connection)
        except Exception as error:
            if not lost_before and is_closed(driver_connection) and not rolled_back(error):
                error.add_note(_UNKNOWN)
            raise

    return noting


def _terminating_in_its_loop(terminate: Callable[[Any], None]) -> Callable[[Any], None]:
    def terminating(connection: Any) -> None:
        if in_greenlet():
            terminate(connection)
            return
        # The garbage collector, maybe in another thread. asyncpg's transport belongs to the thread of its loop.
        driver_connection = connection.driver_connection
        with suppress(RuntimeError):  # the loop is closed, and with it the connection
            driver_connection._loop.call_soon_threadsafe(driver_connection.terminate)

    return terminating


def _closed_by_peer(driver_connection: Any) -> bool:
    """Return True if the end of the stream has arrived. Unlike unread data, it cannot be a harmless notice.

    macOS cannot tell: False, so that the outcome of the COMMIT counts as unknown.
    """
    end_of_stream = getattr(select, "POLLRDHUP", None)
    if end_of_stream is None:
        return False
    poll = select.poll()
    poll.register(file_descriptor(driver_connection), end_of_stream)
    return bool(poll.poll(0))


def _unknown_outcome(context: ExceptionContext) -> BaseException | None:
    """Replace the error of a COMMIT whose answer was lost. SQLAlchemy discards the connection itself."""
    if _UNKNOWN in getattr(context.original_exception, "__notes__", ()):
        return OutcomeUnknown(_UNKNOWN)
    return None
