"""The fast path of sessions without a transaction: a compiled statement, run on the driver's own connection.

The statement is written with SQLAlchemy and the connection comes from SQLAlchemy's pool, so budget, gauges and bounds
apply. One row by primary key takes 104 us of CPU this way and 726 us through `AsyncConnection.execute()`
(docs/decisions/0003-reads-without-a-transaction.md). Only `session.py` uses this module.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import tuple_row
from sqlalchemy import Float, Numeric, Select
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.dml import UpdateBase

from app.database.checkout import Checkout, check_out
from app.database.error_mapping import translate
from app.database.liveness import is_closed
from app.database.pool import BoundedPool
from app.errors import DatabaseUnavailable

# A statement that returns rows.
Statement = Select[*tuple[Any, ...]] | UpdateBase


class CompiledStatement(NamedTuple):
    """A statement for a driver: its text with $1, $2, ..., and how to convert parameters and results.

    `names` are the parameters in the order of their numbers, `columns` the names of the result's columns. `defaults`
    are values that the statement itself contains. `bind` and `results` are converters by name.
    """

    sql: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    defaults: Mapping[str, Any]
    bind: Mapping[str, Any]
    results: Sequence[tuple[str, Any]]

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the driver's positional arguments. Raise KeyError for a missing parameter."""
        values = {**self.defaults, **parameters}
        return [self.bind[name](values[name]) if name in self.bind else values[name] for name in self.names]

    def rows(self, records: list[Any]) -> list[Any]:
        """Return the driver's records, with the columns converted whose types require it."""
        if not self.results:
            return records
        return [dict(record) | {name: convert(record[name]) for name, convert in self.results} for record in records]


def compile_statement(statement: Statement, dialect: Dialect) -> CompiledStatement | None:
    """Compile for a dialect with numbered parameters; None if the statement must take the ordinary path.

    That is a statement whose text depends on its values (`IN` with a list), one with a column of type NUMERIC or FLOAT,
    and one with values that SQLAlchemy computes at execution (a column's Python-side `default=` or `onupdate=`).
    """
    compiled: Any = statement.compile(dialect=dialect)
    if compiled.post_compile_params or compiled.literal_execute_params:
        return None
    if any(parameter.callable for parameter in compiled.binds.values()):
        return None
    if (compiled.isinsert and compiled.insert_prefetch) or (compiled.isupdate and compiled.update_prefetch):
        return None
    # Their conversion depends on the type that the server sends, which only SQLAlchemy's own cursor looks at.
    if any(isinstance(column.type, (Numeric, Float)) for column in compiled._result_columns):
        return None
    converters = (
        (column.keyname, column.type._cached_result_processor(dialect, None)) for column in compiled._result_columns
    )
    return CompiledStatement(
        sql=compiled.string,
        names=tuple(compiled.positiontup or ()),
        columns=tuple(column.keyname for column in compiled._result_columns),
        # A required parameter has no default: omitting it is a KeyError.
        defaults={
            name: parameter.effective_value for name, parameter in compiled.binds.items() if not parameter.required
        },
        bind=compiled._bind_processors,
        results=[(name, convert) for name, convert in converters if convert is not None],
    )


Fetch = Callable[[Any, CompiledStatement, Sequence[Any]], Awaitable[list[Any]]]


async def _fetch_asyncpg(connection: Any, statement: CompiledStatement, arguments: Sequence[Any]) -> list[Any]:
    records: list[Any] = await connection.fetch(statement.sql, *arguments)
    return records


async def _fetch_psycopg(
    connection: AsyncConnection[Any], statement: CompiledStatement, arguments: Sequence[Any]
) -> list[Any]:
    if not connection.autocommit:  # stays on until the next transaction: BoundedPool._do_get()
        await connection.set_autocommit(True)
    cursor = AsyncRawCursor(connection, row_factory=tuple_row)
    # Encoded: psycopg's type demands a literal. A raw cursor accepts $1.
    await cursor.execute(statement.sql.encode(), arguments)
    # Not dict_row: it reads the column names from each result, and adds a call for each row.
    return [dict(zip(statement.columns, row, strict=True)) for row in await cursor.fetchall()]


def fast_path(engine: AsyncEngine) -> "FastPath | None":
    """Return the fast path of the engine's driver; None if it has none (SQLite)."""
    if not isinstance(engine.pool, BoundedPool):
        return None
    if engine.dialect.driver == "asyncpg":
        return FastPath(engine, engine.dialect, _fetch_asyncpg)
    if engine.dialect.driver == "psycopg":
        # Numbered parameters: psycopg would have to search the text for named ones at each execution.
        dialect: Callable[..., Dialect] = type(engine.dialect)
        return FastPath(engine, dialect(paramstyle="numeric_dollar"), _fetch_psycopg)
    return None


class FastPath:
    """Runs statements outside a transaction. Each takes one round trip, and holds a connection only that long."""

    def __init__(self, engine: AsyncEngine, dialect: Dialect, fetch: Fetch) -> None:
        self._engine = engine
        self._dialect = dialect
        self._fetch = fetch
        self._aborting: set[asyncio.Task[None]] = set()
        # Weak: a statement that a request builds for itself is freed with the request.
        self._compiled: WeakKeyDictionary[Statement, CompiledStatement | None] = WeakKeyDictionary()

    def compiled(self, statement: Statement) -> CompiledStatement | None:
        """Return the compiled statement, from the cache if possible; None if it must take the ordinary path."""
        try:
            return self._compiled[statement]
        except KeyError:
            self._compiled[statement] = compiled = compile_statement(statement, self._dialect)
            return compiled

    async def fetch(self, statement: CompiledStatement, parameters: Mapping[str, Any]) -> list[Any]:
        """Run the statement and return its rows.

        Raise TransientDatabaseError and InvalidInput of the error tree; other driver errors are raised unchanged.
        """
        arguments = statement.arguments(parameters)
        checkout = await check_out(self._engine)
        connection = checkout.driver_connection
        try:
            records = await self._fetch(connection, statement, arguments)
        except asyncio.CancelledError as error:
            # The statement may still run, so the connection is closed. That takes a round trip, which the caller may
            # cancel too: a task of its own finishes it.
            await asyncio.shield(self._abort(checkout, error))
            raise
        except Exception as error:
            lost = is_closed(connection)
            # A statement that the server refused is over. One that asyncpg refused (a value that does not fit its type)
            # is parsed but not executed: the server keeps waiting, and keeps the table's lock.
            over = _is_server_error(error) and not lost
            await (checkout.release() if over else self._abort(checkout, error))
            if known := translate(error):
                raise known from error
            if lost:
                raise DatabaseUnavailable(str(error)) from error
            raise
        except BaseException:  # the coroutine is being closed, and can await nothing
            checkout.abandon()
            raise
        await checkout.release()
        return statement.rows(records)

    def _abort(self, checkout: Checkout, error: BaseException) -> asyncio.Task[None]:
        task = asyncio.create_task(checkout.abort(error))
        self._aborting.add(task)  # asyncio holds tasks weakly
        task.add_done_callback(self._aborting.discard)
        return task


def _is_server_error(error: Exception) -> bool:
    """Return True if the server sent the error: only then does it have a severity."""
    return getattr(getattr(error, "diag", error), "severity", None) is not None
