"""Statements that a schema change made stale: run again where that is safe, and prepared again under another text.

A prepared statement survives in the driver, and behind PgBouncer in its server connections, where no client can drop
it. Both find it by the text of the statement, so a new text is prepared afresh everywhere
(docs/decisions/0018-stale-statements.md).
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import ExecutionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database._sqlalchemy import is_streamed
from app.database.error_mapping import staleness
from app.errors import OutcomeUnknown, SchemaChanged, first_line

logger = logging.getLogger(__name__)

# Execution option of statements that change nothing: they may run again after the server has executed them.
READ_ONLY = "headroom_read_only"
# Workers that notice the same schema change within this time give their statements the same texts. Otherwise each would
# take its own share of PgBouncer's prepared statements.
SHARED_SECONDS = 60


class StatementTexts:
    """The comment that all statements of an engine end with; empty until a schema change made one stale."""

    def __init__(self) -> None:
        self.comment = ""
        self._number = 0
        self._forget: list[Callable[[], None]] = []

    def on_renewal(self, forget: Callable[[], None]) -> None:
        """Call `forget` when the comment changes: texts that contain the old one are stale."""
        self._forget.append(forget)

    def renew(self, stale: str, error: BaseException) -> None:
        """Change the comment, unless another statement than the text `stale` has already had it changed."""
        if not stale.endswith(self.comment):
            return
        self._number = max(self._number + 1, int(time.time() / SHARED_SECONDS))
        self.comment = f" /* {self._number} */"
        for forget in self._forget:
            forget()
        logger.info("the schema changed, so statements are prepared again: %s", first_line(error))

    def once(self, text: str) -> str:
        """Return the statement's text as no client has prepared it, not even another worker with the same comment."""
        return f"{text} /* {time.time_ns()} */"


_texts: WeakKeyDictionary[Engine, StatementTexts] = WeakKeyDictionary()


def statement_texts(engine: AsyncEngine) -> StatementTexts:
    """Return the texts of the engine. The first call makes its ordinary path run stale statements again."""
    sync_engine = engine.sync_engine
    texts = _texts.get(sync_engine)
    if texts is None:
        texts = _texts[sync_engine] = StatementTexts()
        if sync_engine.dialect.name == "postgresql":
            for name in ("do_execute", "do_executemany"):
                event.listen(sync_engine, name, partial(_execute, texts, getattr(sync_engine.dialect, name)))
    return texts


def _execute(
    texts: StatementTexts,
    execute: Callable[..., None],
    cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext,
) -> bool:
    """Execute on SQLAlchemy's cursor. If the statement is stale and the first of its transaction, run it once more."""
    connection = context.root_connection.connection
    driver_connection = connection.driver_connection
    is_first = not _in_transaction(driver_connection)
    text = statement + texts.comment
    try:
        execute(cursor, text, parameters, context)
    except Exception as error:
        kind = staleness(error)
        if kind is None:
            raise
        texts.renew(text, error)
        is_committed = kind == "unreadable" and not _in_transaction(driver_connection)
        can_run_again = context.execution_options.get(READ_ONLY) if is_committed else is_first
        if not can_run_again or is_streamed(context):
            if kind == "refused":
                raise
            raise (OutcomeUnknown if is_committed else SchemaChanged)(first_line(error)) from error
        context.dialect.do_rollback(connection)  # it has a deadline, the connection's own method has none
        execute(cursor, texts.once(statement), parameters, context)
    return True


def _in_transaction(driver_connection: Any) -> bool:
    """Return True if the server has begun a transaction. Takes no round trip."""
    pgconn = getattr(driver_connection, "pgconn", None)
    if pgconn is None:  # asyncpg
        return bool(driver_connection.is_in_transaction())
    return bool(pgconn.transaction_status != TransactionStatus.IDLE)
