"""Statements on the driver's own connection, taken from SQLAlchemy's pool.

Measured for one row by primary key, process CPU: 726 microseconds through `AsyncConnection.execute()`, 228 with
asyncpg's own pool, 104 this way. The statement is still written with SQLAlchemy and the pool is still SQLAlchemy's, so
the budget, the gauges and the bounds apply. Only `session.py` knows that this module exists.
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

from app.database.integrity import translate
from app.database.liveness import is_closed
from app.database.loan import Loan, borrow
from app.database.pool import HeadroomPool
from app.errors import DatabaseUnavailable

# One that gives rows.
Statement = Select[*tuple[Any, ...]] | UpdateBase


class CompiledStatement(NamedTuple):
    """A statement as a driver wants it: text with $1, $2, ..., the parameters' order, what to do with the results."""

    sql: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    defaults: Mapping[str, Any]
    bind: Mapping[str, Any]
    results: Sequence[tuple[str, Any]]

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        values = {**self.defaults, **parameters}
        return [self.bind[name](values[name]) if name in self.bind else values[name] for name in self.names]

    def rows(self, records: list[Any]) -> list[Any]:
        """The records as they are, unless a column's type has something to convert."""
        if not self.results:
            return records
        return [dict(record) | {name: convert(record[name]) for name, convert in self.results} for record in records]


def compile_statement(statement: Statement, dialect: Dialect) -> CompiledStatement | None:
    """Compile for a dialect that numbers its parameters; None for a statement that has to take the ordinary path.

    That is one whose text depends on its values (`IN` with a list), one with a column of NUMERIC or FLOAT, and one with
    values that SQLAlchemy makes when it runs (a column's `default=` or `onupdate=` in Python).
    """
    compiled: Any = statement.compile(dialect=dialect)
    if compiled.post_compile_params or compiled.literal_execute_params:
        return None
    if any(parameter.callable for parameter in compiled.binds.values()):
        return None
    if (compiled.isinsert and compiled.insert_prefetch) or (compiled.isupdate and compiled.update_prefetch):
        return None
    # How these are converted depends on the type the server sends, which only SQLAlchemy's own cursor looks at.
    if any(isinstance(column.type, (Numeric, Float)) for column in compiled._result_columns):
        return None
    converters = (
        (column.keyname, column.type._cached_result_processor(dialect, None)) for column in compiled._result_columns
    )
    return CompiledStatement(
        sql=compiled.string,
        names=tuple(compiled.positiontup or ()),
        columns=tuple(column.keyname for column in compiled._result_columns),
        # A parameter that the caller must give has no default to fall back on: leaving it out is a KeyError.
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
    if not connection.autocommit:  # it stays so until a transaction is wanted: HeadroomPool._do_get()
        await connection.set_autocommit(True)
    cursor = AsyncRawCursor(connection, row_factory=tuple_row)
    # Ours, not a caller's. psycopg's type wants a literal; raw is what takes $1.
    await cursor.execute(statement.sql.encode(), arguments)
    # psycopg's dict_row asks the result for its columns, and is a call for each row.
    return [dict(zip(statement.columns, row, strict=True)) for row in await cursor.fetchall()]


def driver_road(engine: AsyncEngine) -> "DriverRoad | None":
    """The road of the engine's driver, where it has one."""
    if not isinstance(engine.pool, HeadroomPool):
        return None
    if engine.dialect.driver == "asyncpg":
        return DriverRoad(engine, engine.dialect, _fetch_asyncpg)
    if engine.dialect.driver == "psycopg":
        # Parameters by number: those by name, psycopg would have to look for in the text each time.
        dialect: Callable[..., Dialect] = type(engine.dialect)
        return DriverRoad(engine, dialect(paramstyle="numeric_dollar"), _fetch_psycopg)
    return None


class DriverRoad:
    """Runs statements outside a transaction: one round trip each, a connection held for no longer than that."""

    def __init__(self, engine: AsyncEngine, dialect: Dialect, fetch: Fetch) -> None:
        self._engine = engine
        self._dialect = dialect
        self._fetch = fetch
        self._closing: set[asyncio.Task[None]] = set()
        # Weak: a statement that a request built for itself goes when the request goes.
        self._compiled: WeakKeyDictionary[Statement, CompiledStatement | None] = WeakKeyDictionary()

    def compiled(self, statement: Statement) -> CompiledStatement | None:
        try:
            return self._compiled[statement]
        except KeyError:
            self._compiled[statement] = compiled = compile_statement(statement, self._dialect)
            return compiled

    async def fetch(self, statement: CompiledStatement, parameters: Mapping[str, Any]) -> list[Any]:
        """Raises the error tree's TransientDatabaseError and InvalidInput; any other driver error as it is."""
        arguments = statement.arguments(parameters)
        loan = await borrow(self._engine)
        connection = loan.driver_connection
        try:
            records = await self._fetch(connection, statement, arguments)
        except asyncio.CancelledError as error:
            # The query may still be running, so its connection is closed. That takes a round trip, and whoever
            # cancelled us may cancel that too: it goes on without us.
            await asyncio.shield(self._break_off(loan, error))
            raise
        except Exception as error:
            lost = is_closed(connection)
            # What the server refused is over. What asyncpg refused, such as a value that does not fit its type, is
            # not: the statement is parsed, the server waits for more, and holds the table's lock while it does.
            over = _said_by_the_server(error) and not lost
            await (loan.give_back() if over else self._break_off(loan, error))
            if known := translate(error):
                raise known from error
            if lost:
                raise DatabaseUnavailable(str(error)) from error
            raise
        except BaseException:  # the coroutine is thrown away: there is nothing left to wait with
            loan.drop()
            raise
        await loan.give_back()
        return statement.rows(records)

    def _break_off(self, loan: Loan, error: BaseException) -> asyncio.Task[None]:
        task = asyncio.create_task(loan.break_off(error))
        self._closing.add(task)  # asyncio itself would let it be collected before it is done
        task.add_done_callback(self._closing.discard)
        return task


def _said_by_the_server(error: Exception) -> bool:
    """Only its errors have a severity: asyncpg's in the exception, psycopg's in the diagnostics."""
    return getattr(getattr(error, "diag", error), "severity", None) is not None
