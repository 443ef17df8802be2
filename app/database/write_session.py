"""The write session: one transaction with one owner, which nothing else can end and nothing can use afterwards."""

import logging
from contextvars import ContextVar
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from app.database.error_mapping import translate
from app.errors import DatabaseUnavailable
from app.request_deadline import committing

logger = logging.getLogger(__name__)

_ENDED = (
    "This write session has ended: its transaction was committed or rolled back before the response was sent. A"
    " background task, a stream or an object that outlives the request needs a session of its own:"
    " `async with database.write() as session:`."
)
_OWNED = (
    "Database.write() owns this transaction, so {}() is refused. It commits when its block ends, and rolls back when"
    " the block raises: raise an error to undo everything. begin_nested() makes a part that can be undone alone."
)
_CAUGHT = (
    "A statement of this transaction failed and its error was caught. PostgreSQL rolls back such a transaction, also at"
    " COMMIT. Let the error leave the block of Database.write(), or run the statement inside begin_nested()."
)
_FAILED = "headroom.statement_failed"  # key in a connection's `info`


class _OwnedSession(Session):
    """A Session that begins one transaction when it is created, and lets only its owner end it."""

    is_owned = True
    has_begun = False

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Begin a savepoint, or the one transaction. Raise RuntimeError for another one."""
        if not nested and self.in_transaction():
            self._check_owner("begin")
        return super().begin(nested)

    def commit(self) -> None:
        """Commit, for the owner. Raise RuntimeError for any other caller."""
        self._check_owner("commit")
        if transaction := self.get_transaction():
            for connection in transaction.connections:
                _check_not_failed(connection)
        super().commit()

    def rollback(self) -> None:
        """Raise RuntimeError before the end, and do nothing afterwards."""
        self._check_owner("rollback")
        super().rollback()

    def close(self) -> None:
        """Close, for the owner. Raise RuntimeError for any other caller."""
        self._check_owner("close")
        super().close()

    def reset(self) -> None:
        """Raise RuntimeError before the end, and do nothing afterwards."""
        self._check_owner("reset")
        super().reset()

    def invalidate(self) -> None:
        """Raise RuntimeError before the end, and do nothing afterwards."""
        self._check_owner("invalidate")
        super().invalidate()

    def _check_owner(self, method: str) -> None:
        if self.is_owned:
            raise RuntimeError(_OWNED.format(method))

    def _autobegin_t(self, begin: bool = False) -> SessionTransaction:
        # SQLAlchemy calls this before each use. `close_resets_only=False` and `autobegin=False` refuse a second
        # transaction too, with messages that do not say what to do.
        if not self.in_transaction():
            if self.has_begun:
                raise RuntimeError(_ENDED)
            self.has_begun = True
        return super()._autobegin_t(begin)


class WriteSession(AsyncSession):
    """A unit of work with ORM entities. Only its owner, `Database.write()`, ends its transaction.

    commit(), rollback(), close(), reset(), invalidate() and begin() raise RuntimeError; begin_nested(), a savepoint, is
    allowed. After the end of the transaction, every use raises RuntimeError and opens no connection.
    """

    sync_session_class = _OwnedSession
    sync_session: _OwnedSession

    def __init__(self, bind: AsyncEngine | AsyncConnection, **options: Any) -> None:
        # Entities stay readable after the commit: the response is made from them.
        super().__init__(bind, expire_on_commit=False, autobegin=False, close_resets_only=False, **options)
        self._refusal: str | None = None
        self.sync_session.begin()  # acquires no connection

    @property
    def is_open(self) -> bool:
        """Return True until `Database.write()` ends the transaction."""
        return self.sync_session.is_owned

    def refuse_commit(self, reason: str) -> None:
        """Make the commit raise RuntimeError with this reason."""
        self._refusal = reason

    async def commit_as_owner(self) -> None:
        """Commit, unless the deadline of the request has passed. Only `Database.write()` calls this."""
        if self._refusal:
            raise RuntimeError(self._refusal)
        with committing():
            self.sync_session.is_owned = False
            await self.commit()

    async def close_as_owner(self) -> None:
        """Roll back what is not committed and return the connection, even if the caller is cancelled meanwhile.

        A failure is logged, not raised: whether the transaction was committed is decided before.
        """
        self.sync_session.is_owned = False
        try:
            await self.__aexit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - of the driver, the pool or the network
            # The pool discards the connection, and the server rolls back when that is closed.
            logger.warning("closing a write session failed: %s", translate(error) or error)


# The innermost open write session of this task. The web layer refuses to send a response while one is open.
open_write_session: ContextVar[WriteSession | None] = ContextVar("open_write_session", default=None)


def watch_failed_statements(engine: AsyncEngine) -> None:
    """Note on a connection that one of its statements failed, so that a later commit checks the transaction."""
    if not event.contains(engine.sync_engine, "handle_error", _note_failed_statement):
        event.listen(engine.sync_engine, "handle_error", _note_failed_statement)


def _note_failed_statement(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is not None and not connection.invalidated and not connection.closed:
        connection.info[_FAILED] = True


def _check_not_failed(connection: Connection) -> None:
    """Raise if the server would roll back at COMMIT. It then answers ROLLBACK, for which no driver raises."""
    if connection.invalidated:
        raise DatabaseUnavailable("the connection of this transaction was lost")
    if connection.info.pop(_FAILED, False):
        try:
            connection.exec_driver_sql("SELECT 1")  # fails in a failed transaction, unless a savepoint has saved it
        except DBAPIError as error:
            raise translate(error) or RuntimeError(_CAUGHT) from error
