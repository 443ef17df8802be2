"""The fast path of sessions without a transaction: a compiled statement, run on the driver's own connection.

The statement is written with SQLAlchemy and the connection comes from SQLAlchemy's pool, so budget, gauges and bounds
apply. One row by primary key takes 104 us of CPU this way and 726 us through `AsyncConnection.execute()`
(docs/decisions/0003-reads-without-a-transaction.md). Only `session.py` uses this module.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from copy import deepcopy
from datetime import date
from functools import partial
from types import NoneType
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary, ref

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import tuple_row
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.dml import UpdateBase

from app.database._sqlalchemy import bind_processors, has_ordered_columns, result_columns
from app.database.answers import rolled_back
from app.database.by_key import KeyedSelect
from app.database.checkout import Checkout, check_out
from app.database.coalescing import KeyQueue, SameReads, several_rows
from app.database.costs import SHARED
from app.database.error_mapping import is_server_error, server_is_leaving, staleness, translate
from app.database.insert_queue import InsertQueue
from app.database.lanes import current_lane
from app.database.liveness import is_closed
from app.database.pool import BoundedPool
from app.database.result_types import Convert, TypeNotSupported, is_immutable, result_converter
from app.database.shared_insert import SharedInsert
from app.database.stale_statements import StatementTexts
from app.database.statement_checks import Statement, depends_on_more_than_rows, is_plain
from app.errors import DatabaseUnavailable, OutcomeUnknown, PoolExhausted, first_line
from app.lanes import CRITICAL, NORMAL
from app.request_deadline import cancelled_write, is_overdue, note_stored

# PostgreSQL cuts longer names.
MAX_NAME_BYTES = 63


class CompiledStatement(NamedTuple):
    """A statement for a driver: its text with $1, $2, ..., and how to convert parameters and results.

    `names` are the parameters in the order of their numbers, `columns` the names of the result's columns. `defaults`
    are values that the statement itself contains. `bind` and `results` are converters by name. `copy_row` makes a row
    that shares nothing that can be changed. `same_reads` are reads that may share a statement, by their arguments; None
    if equal reads may have different results.
    """

    sql: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    defaults: Mapping[str, Any]
    bind: Mapping[str, Any]
    results: Sequence[tuple[str, Convert]]
    copy_row: Callable[[Any], Any]
    same_reads: "dict[tuple[Any, ...], SameReads] | None"

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

    The ordinary path takes each statement whose result this path might return differently:

    - the text depends on the parameters (`IN` with a list) or on execution options
    - SQLAlchemy computes a value at execution (a column's Python-side `default=` or `onupdate=`)
    - the names of the columns are known only to the server, or are too long for it
    - a column's type converts values in a way that this path does not know (`result_types.py`)

    Raise TypeError if two columns have the same name.
    """
    compiled: Any = statement.compile(dialect=dialect)
    columns = result_columns(compiled)
    names = tuple(column.keyname for column in columns)
    if len(set(names)) < len(names):
        raise TypeError(f"two columns of a row have the same name: give each its own label() (columns: {names})")
    if (
        not is_plain(statement)
        or not columns
        or compiled.post_compile_params
        or compiled.literal_execute_params
        or any(parameter.callable for parameter in compiled.binds.values())
        or (compiled.isinsert and compiled.insert_prefetch)
        or (compiled.isupdate and compiled.update_prefetch)
        or not has_ordered_columns(compiled)
        or not all(map(_has_its_name_in_the_result, columns))
    ):
        return None
    try:
        converters = [(column.keyname, result_converter(column.type, dialect)) for column in columns]
    except TypeNotSupported:
        return None
    return CompiledStatement(
        sql=compiled.string,
        names=tuple(compiled.positiontup or ()),
        columns=names,
        # A required parameter has no default: omitting it is a KeyError.
        defaults={
            name: parameter.effective_value for name, parameter in compiled.binds.items() if not parameter.required
        },
        bind=bind_processors(compiled),
        results=[(name, convert) for name, convert in converters if convert is not None],
        copy_row=dict if all(is_immutable(column.type) for column in columns) else _deep_copy,
        same_reads=None if isinstance(statement, UpdateBase) or depends_on_more_than_rows(statement) else {},
    )


def _deep_copy(row: Any) -> dict[str, Any]:
    return {name: deepcopy(value) for name, value in row.items()}


def _has_its_name_in_the_result(column: Any) -> bool:
    """Return False for literal SQL without a label, which the server names, and for a name that the server cuts."""
    is_literal = getattr(column.objects[0], "is_literal", False)
    return not is_literal and len(column.keyname.encode()) <= MAX_NAME_BYTES


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


Check = Callable[[Statement], None]
# Is called with the driver's connection.
AfterWrite = Callable[[Any], Awaitable[None]]

# In another lane, a read by key is sent by itself: the shared statements of all keys are in the lane normal.
_LANES_OF_KEYS = (NORMAL, CRITICAL)

# Types whose equal values are the same to the server: 0.0 equals -0.0, and Decimal("1.0") equals Decimal("1.00").
_SIMPLE = frozenset({bool, bytes, date, int, NoneType, str, UUID})


def fast_path(engine: AsyncEngine, texts: StatementTexts, check: Check, *, reads_only: bool) -> "FastPath | None":
    """Return the fast path of the engine's driver; None if it has none (SQLite).

    `check` raises TypeError for a statement that the session refuses. If it `reads_only`, a statement may run again
    after the server has executed it.
    """
    if not isinstance(engine.pool, BoundedPool):
        return None
    if engine.dialect.driver == "asyncpg":
        return FastPath(engine, engine.dialect, _fetch_asyncpg, texts, check, reads_only)
    if engine.dialect.driver == "psycopg":
        # Numbered parameters: psycopg would have to search the text for named ones at each execution.
        dialect: Callable[..., Dialect] = type(engine.dialect)
        return FastPath(engine, dialect(paramstyle="numeric_dollar"), _fetch_psycopg, texts, check, reads_only)
    return None


class FastPath:
    """Runs statements outside a transaction. Each takes one round trip, and holds a connection only that long."""

    def __init__(
        self,
        engine: AsyncEngine,
        dialect: Dialect,
        fetch: Fetch,
        texts: StatementTexts,
        check: Check,
        reads_only: bool,
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._fetch = fetch
        self._texts = texts
        self._check = check
        self._reads_only = reads_only
        self._after_write: AfterWrite | None = None
        self._ending: set[asyncio.Task[None]] = set()
        # Weak: a statement that a request builds for itself is freed with the request.
        self._compiled: WeakKeyDictionary[Statement, CompiledStatement | None] = WeakKeyDictionary()
        texts.on_renewal(self._compiled.clear)
        self._keyed: WeakKeyDictionary[KeyedSelect, tuple[str, CompiledStatement, KeyQueue]] = WeakKeyDictionary()
        self._inserts: WeakKeyDictionary[SharedInsert, tuple[str, CompiledStatement, InsertQueue]] = WeakKeyDictionary()

    def wrap_fetch(self, wrap: Callable[[Fetch], Fetch]) -> None:
        """Put a function around every statement from now on. Development and tests watch statements with it."""
        self._fetch = wrap(self._fetch)

    def call_after_write(self, call: AfterWrite) -> None:
        """Call a function after every statement that the server has committed. It must raise no Exception."""
        self._after_write = call

    def compiled(self, statement: Statement) -> CompiledStatement | None:
        """Return the compiled statement, from the cache if possible; None if it must take the ordinary path.

        Raise TypeError for a statement that the session refuses.
        """
        try:
            return self._compiled[statement]
        except KeyError:
            self._check(statement)
            compiled = compile_statement(statement, self._dialect)
            if compiled is not None:
                compiled = compiled._replace(sql=compiled.sql + self._texts.comment)
            self._compiled[statement] = compiled
            return compiled

    def one(self, statement: KeyedSelect, key: Any) -> Awaitable[Any] | None:
        """Return the row of a key, or None, to be awaited. None if the statement must take the ordinary path.

        Raise PoolExhausted if too many reads wait.
        """
        known = self._keyed.get(statement)
        if known is None or known[0] is not self._texts.comment:
            # No callback of `on_renewal()`: the queue would keep its engine alive.
            found = self.compiled(statement.one)
            if found is None:
                return None
            known = self._keyed[statement] = self._texts.comment, found, self._new_key_queue(statement, found)
        _, compiled, queue = known
        if not self._may_share() or not statement.can_share(key) or current_lane.get() not in _LANES_OF_KEYS:
            return self._fetch_one(statement, compiled, key, compiled.sql)
        return queue.ask(key, partial(self._fetch_one, statement, compiled, key, SHARED))

    def _may_share(self) -> bool:
        # Listeners run in the context of a request, and may set up its connection.
        pool = self._pool
        return pool.coalesce_max > 1 and not pool.has_listeners

    @property
    def _pool(self) -> BoundedPool:
        # Of the synchronous engine: AsyncEngine.pool is a property, and this runs several times for each read.
        pool = self._engine.sync_engine.pool
        assert isinstance(pool, BoundedPool)
        return pool

    async def _fetch_one(self, statement: KeyedSelect, compiled: CompiledStatement, key: Any, work: str) -> Any:
        rows = await self.fetch(compiled, statement.parameters(key), work)
        if len(rows) > 1:
            raise several_rows(rows, statement.key_of)
        return rows[0] if rows else None

    def _new_key_queue(self, statement: KeyedSelect, compiled: CompiledStatement) -> KeyQueue:
        weak = ref(statement)

        async def run_alone(key: Any) -> Any:
            keyed = weak()
            assert keyed is not None
            return await self._fetch_one(keyed, self.compiled(keyed.one) or compiled, key, SHARED)

        return KeyQueue(
            self._engine, statement.key_of, self._runner_of_several(statement), run_alone, compiled.copy_row
        )

    def _runner_of_several(self, statement: KeyedSelect | SharedInsert) -> Callable[..., Awaitable[list[Any]]]:
        """Return a function that runs the statement for several keys or rows, and returns the connection."""
        # Weak, so that a statement which a request builds for itself is freed. Those that wait keep it alive.
        weak = ref(statement)

        async def run(checkout: Checkout, values: list[Any]) -> list[Any]:
            try:
                shared = weak()
                assert shared is not None
                several = self.compiled(shared.several)
                assert several is not None  # its rows have the columns of `one`
                arrays = shared.arrays(values)
            except BaseException:
                await checkout.release()
                raise
            return await self._run_on(checkout, several, arrays)

        return run

    def insert(self, statement: SharedInsert, parameters: Mapping[str, Any]) -> Awaitable[Any] | None:
        """Return the inserted row, or None, to be awaited. None if the statement must take the ordinary path.

        Raise PoolExhausted if too many writes wait; KeyError for a missing parameter.
        """
        known = self._inserts.get(statement)
        if known is None or known[0] is not self._texts.comment:
            found = self.compiled(statement.one)
            if found is None:
                return None
            queue = InsertQueue(self._engine, statement.values_in, self._runner_of_several(statement))
            known = self._inserts[statement] = self._texts.comment, found, queue
        _, compiled, queue = known
        values = statement.values(parameters)
        alone = partial(self._insert_one, compiled, parameters)
        if not self._may_share() or not statement.can_share(values) or current_lane.get() != NORMAL:
            return alone()
        return queue.insert(values, alone)

    async def _insert_one(self, compiled: CompiledStatement, parameters: Mapping[str, Any]) -> Any:
        rows = await self.fetch(compiled, parameters, compiled.sql)
        return rows[0] if rows else None

    def all(self, statement: CompiledStatement, parameters: Mapping[str, Any]) -> Awaitable[list[Any]]:
        """Return the rows of a read, to be awaited. Equal reads that wait share a statement.

        Raise PoolExhausted if too many reads wait.
        """
        same_reads = statement.same_reads
        if same_reads is None or not self._may_share():
            return self.fetch(statement, parameters, statement.sql)
        values = parameters.values()
        kinds = tuple(map(type, values))
        if not _SIMPLE.issuperset(kinds):
            return self.fetch(statement, parameters, statement.sql)
        lane = current_lane.get()
        key = (lane, *kinds, *parameters, *values)
        queue = same_reads.get(key)
        if queue is None:
            queue = same_reads[key] = SameReads(
                self._engine,
                statement.sql,
                lane,
                partial(self._run_on, statement=statement, parameters=parameters),
                statement.copy_row,
                partial(same_reads.pop, key, None),
            )
        return queue.ask(None, partial(self.fetch, statement, parameters, statement.sql))

    async def fetch(
        self, statement: CompiledStatement, parameters: Mapping[str, Any], work: str, *, is_second_run: bool = False
    ) -> list[Any]:
        """Run the statement and return its rows. If a schema change made it stale, run it once more.

        The pool watches the cost of a read under the name `work`.
        Raise TransientDatabaseError and InvalidInput of the error tree; other driver errors are raised unchanged.
        """
        # A write that is slow may wait for a lock or the disk: its cost is not watched.
        checkout = await check_out(self._engine, work if self._reads_only else "")
        try:
            return await self._run_on(checkout, statement, parameters, is_second_run=is_second_run)
        except asyncio.CancelledError as error:  # maybe while a lost connection is closed
            if is_overdue() and not self._reads_only:
                raise cancelled_write() from error
            raise

    async def _run_on(
        self,
        checkout: Checkout,
        statement: CompiledStatement,
        parameters: Mapping[str, Any],
        *,
        is_second_run: bool = False,
    ) -> list[Any]:
        """Run the statement on a connection, and return the connection, as `fetch()` does."""
        try:
            arguments = statement.arguments(parameters)
        except BaseException:
            await checkout.release()
            raise
        connection = checkout.driver_connection
        try:
            records = await self._fetch(connection, statement, arguments)
            if self._after_write is not None:
                note_stored()
                await self._after_write(connection)
        except asyncio.CancelledError as error:
            # The driver has sent a cancel request. A task of its own waits for the end of the statement and returns the
            # connection: the caller may be cancelled again meanwhile.
            await asyncio.shield(self._in_own_task(checkout.settle(error)))
            raise
        except Exception as error:
            lost = is_closed(connection)
            # A statement that the server refused is over. One with a value that does not fit its type is refused by
            # asyncpg. It is parsed but not executed: the server keeps waiting, and keeps the table's lock.
            over = is_server_error(error) and not lost
            if server_is_leaving(error):
                checkout.pool.distrust(checkout.record)
            await (checkout.release() if over else asyncio.shield(self._in_own_task(checkout.abort(error))))
            if (kind := staleness(error)) is not None:
                self._texts.renew(statement.sql, error)
                # Outside a transaction, a statement that the server refused has done nothing.
                if kind == "unreadable" and not self._reads_only:
                    raise OutcomeUnknown(f"the answer to a write is unreadable: {first_line(error)}") from error
                if not is_second_run:
                    once = statement._replace(sql=self._texts.once(statement.sql))
                    return await self.fetch(once, parameters, once.sql, is_second_run=True)
            known = translate(error)
            if lost and not self._reads_only and not isinstance(known, PoolExhausted) and not rolled_back(error):
                raise OutcomeUnknown(f"the answer to a write was lost: {first_line(error)}") from error
            if known is not None:
                raise known from error
            if lost:
                raise DatabaseUnavailable(str(error)) from error
            raise
        except BaseException:  # the coroutine is being closed, and can await nothing
            checkout.abandon()
            raise
        if not self._reads_only:
            note_stored()
        await checkout.release()
        return statement.rows(records)

    def _in_own_task(self, ending: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(ending)
        self._ending.add(task)  # asyncio holds tasks weakly
        task.add_done_callback(self._ending.discard)
        return task
