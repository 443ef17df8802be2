"""Watches the statements of a database's sessions, on every path and with both drivers."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import ExceptionContext

from app.database import Database
from app.database.fast_path import CompiledStatement, Fetch

_BEGUN = "headroom.development.begun"
_STARTED = "headroom.development.started"


class Executed(NamedTuple):
    """A statement that the server has answered, or refused. BEGIN, COMMIT and ROLLBACK count, and have 0 seconds."""

    sql: str
    parameters: Any
    seconds: float


class Watcher(Protocol):
    """Is notified of each statement, in the context of the request that sends it."""

    def before(self, sql: str) -> str | None:
        """Return a statement without parameters to send instead, or None."""

    def after(self, executed: Executed) -> None:
        """Receive a statement that is over."""


def watch_statements(database: Database, watcher: Watcher) -> None:
    """Notify the watcher of every statement of the sessions from now on.

    Reads of several requests share no statement from now on, so that each request sees its own.
    """
    for session in (database.read, database.statement):
        session.wrap_fetch(lambda fetch: _watched_fetch(fetch, watcher))
    ordinary = _OrdinaryPath(watcher)
    for engine in (each.sync_engine for each in database.engines):
        event.listen(engine, "checkout", _share_no_statement)
        for name in ("begin", "commit", "rollback", "handle_error", "after_cursor_execute"):
            event.listen(engine, name, getattr(ordinary, name))
        event.listen(engine, "before_cursor_execute", ordinary.before_cursor_execute, retval=True)


def _share_no_statement(*_: object) -> None:
    """Do nothing: with a listener, the pool does not coalesce reads."""


def _watched_fetch(fetch: Fetch, watcher: Watcher) -> Fetch:
    async def watched(connection: Any, statement: CompiledStatement, arguments: Sequence[Any]) -> list[Any]:
        sent, values = statement, arguments
        if (replacement := watcher.before(statement.sql)) is not None:
            sent, values = statement._replace(sql=replacement), []
        started = perf_counter()
        try:
            return await fetch(connection, sent, values)
        finally:
            watcher.after(Executed(statement.sql, arguments, perf_counter() - started))

    return watched


class _OrdinaryPath:
    """Listens to the events of SQLAlchemy's connections."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def begin(self, connection: Connection) -> None:
        # The drivers send BEGIN with the first statement, and under AUTOCOMMIT never.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.info[_BEGUN] = False

    def commit(self, connection: Connection) -> None:
        self._end(connection, "COMMIT")

    def rollback(self, connection: Connection) -> None:
        self._end(connection, "ROLLBACK")

    def _end(self, connection: Connection, sql: str) -> None:
        if not connection.invalidated and connection.info.pop(_BEGUN, False):
            if (replacement := self._watcher.before(sql)) is not None:
                try:
                    connection.exec_driver_sql(replacement)
                finally:
                    if not connection.invalidated:  # a COMMIT that fails ends the transaction
                        connection.connection.rollback()
            self._watcher.after(Executed(sql, (), 0.0))

    def before_cursor_execute(
        self, connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        if connection.info.get(_BEGUN) is False:
            connection.info[_BEGUN] = True
            self._watcher.before("BEGIN")
            self._watcher.after(Executed("BEGIN", (), 0.0))
        replacement = self._watcher.before(sql)
        connection.info[_STARTED] = (sql, parameters, perf_counter())
        if replacement is not None:
            return replacement, [()] if executemany else ()
        return sql, parameters

    def after_cursor_execute(self, connection: Connection, *_: Any) -> None:
        self._over(connection)

    def handle_error(self, context: ExceptionContext) -> None:
        if context.connection is not None and not context.connection.closed and not context.connection.invalidated:
            self._over(context.connection)

    def _over(self, connection: Connection) -> None:
        if (started := connection.info.pop(_STARTED, None)) is not None:
            sql, parameters, since = started
            self._watcher.after(Executed(sql, parameters, perf_counter() - since))
