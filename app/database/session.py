"""The three kinds of session. The type says which one a piece of code uses.

- `WriteSession`: ORM entities in one transaction with one owner. `Database.write()` begins and commits it; repositories
  flush. A read that must see earlier writes of the same transaction belongs here.
- `ReadSession`: SELECT statements without a transaction: rows of columns, or detached entities with relationships. It
  holds a connection only during a call.
- `StatementSession`: a write that is one statement with RETURNING. The server commits it before it answers, so it needs
  neither BEGIN and COMMIT nor entities.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from app.database.answers import expected_answer, rolled_back
from app.database.by_key import KeyedSelect
from app.database.coalescing import several_rows
from app.database.error_mapping import translate
from app.database.fast_path import AfterWrite, Fetch, fast_path
from app.database.liveness import is_closed
from app.database.shared_insert import SharedInsert
from app.database.stale_statements import READ_ONLY, statement_texts
from app.database.statement_checks import Statement, require_entity, require_returning, require_select
from app.database.write_session import WriteSession, open_write_session, watch_failed_statements
from app.errors import OutcomeUnknown, PoolExhausted, SchemaChanged, TransactionConflict, first_line
from app.request_context import note_write
from app.request_deadline import cancelled_write, is_overdue, note_stored

# With any columns.
Returning = ReturningInsert[*tuple[Any, ...]] | ReturningUpdate[*tuple[Any, ...]] | ReturningDelete[*tuple[Any, ...]]

Entity = TypeVar("Entity", bound=DeclarativeBase)
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

# Before attempt N + 1 of `Database.run_write()`, it waits for up to this time, times 2 to the power of N.
RETRY_SECONDS = 0.02


class Row(Protocol):
    """A row of a session without entities: its columns by the name they have in the statement, with every driver."""

    def __getitem__(self, column: str, /) -> Any: ...

    def keys(self) -> Iterable[str]:
        """Return the names of the columns."""


class _Statements:
    """Runs each statement on a connection of its own, outside a transaction. Holds nothing between two statements."""

    _check = staticmethod(require_select)
    _reads_only = True

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._fast_path = fast_path(engine, statement_texts(engine), self._check, reads_only=self._reads_only)
        self._after_write: AfterWrite | None = None

    def wrap_fetch(self, wrap: Callable[[Fetch], Fetch]) -> None:
        """Put a function around every statement of the fast path, if there is one."""
        if self._fast_path is not None:
            self._fast_path.wrap_fetch(wrap)

    @property
    def has_lanes(self) -> bool:
        """Return True if the session's connections come from a BoundedPool, which has lanes."""
        return self._fast_path is not None

    async def _run(self, statement: Statement, parameters: dict[str, Any]) -> Sequence[Row]:
        if self._fast_path is None:
            self._check(statement)
        elif (compiled := self._fast_path.compiled(statement)) is not None:
            return await self._fast_path.all(compiled, parameters)
        return await self._execute(statement, parameters)

    async def _execute(self, statement: Statement, parameters: dict[str, Any]) -> Sequence[Row]:
        """Run the statement on the ordinary path: through SQLAlchemy's connection and cursor."""
        is_sent = False
        try:
            async with self._connect() as connection:
                is_sent = True
                result = await connection.execute(statement, parameters)
                rows = result.mappings().all()
                if not self._reads_only:
                    note_stored()
                if self._after_write is not None:
                    proxy = await connection.get_raw_connection()
                    with expected_answer(proxy):
                        await self._after_write(proxy.driver_connection)
                    if is_closed(proxy.driver_connection):
                        await connection.invalidate()  # or else its rollback would fail, after the commit
                return rows
        except asyncio.CancelledError as error:  # maybe while a lost connection is closed
            if is_sent and is_overdue() and not self._reads_only:
                raise cancelled_write() from error
            raise

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                # One round trip; BEGIN and ROLLBACK would make three. Set on the connection, not on the engine: a
                # request that is cancelled while SQLAlchemy prepares the engine's option would leak its connection.
                await connection.execution_options(isolation_level="AUTOCOMMIT", **{READ_ONLY: self._reads_only})
                yield connection
        except DBAPIError as error:
            known = translate(error)
            lost = error.connection_invalidated and not isinstance(known, PoolExhausted)  # the pooler sent nothing on
            if lost and not self._reads_only and not rolled_back(error):
                raise OutcomeUnknown(f"the answer to a write was lost: {first_line(error)}") from error
            raise known or error from error


class ReadSession(_Statements):
    """Runs SELECT statements without a transaction."""

    async def all(self, statement: Select[*tuple[Any, ...]], **parameters: Any) -> Sequence[Row]:
        """Run a SELECT of columns and return its rows. `parameters` are the values of its `bindparam`s.

        A statement that is a module-level constant is compiled once.
        Raise PoolExhausted, DatabaseUnavailable, StatementTimeout. Raise TypeError for a statement that needs entities
        or a transaction.
        """
        return await self._run(statement, parameters)

    async def first(self, statement: Select[*tuple[Any, ...]], **parameters: Any) -> Row | None:
        """Run a SELECT and return its first row, or None. Use LIMIT 1 if there can be more rows. Raise as `all()`."""
        rows = await self._run(statement, parameters)
        return rows[0] if rows else None

    def one(self, statement: KeyedSelect, key: Any) -> Awaitable[Row | None]:
        """Return the row of a key, or None, to be awaited: `row = await session.one(STATEMENT, key)`.

        Reads that wait at the same time share a statement, which is sent after each of them was asked for. `key` is a
        value, or a tuple of values for a composite key. Raise as `all()`; LookupError if the key finds several rows.
        """
        if self._fast_path is not None:
            row = self._fast_path.one(statement, key)
            if row is not None:
                return row
        return self._one_alone(statement, key)

    async def _one_alone(self, statement: KeyedSelect, key: Any) -> Row | None:
        rows = await self._execute(statement.one, statement.parameters(key))
        if len(rows) > 1:
            raise several_rows(rows, statement.key_of)
        return rows[0] if rows else None

    async def entities(self, statement: Select[Entity], **parameters: Any) -> Sequence[Entity]:
        """Run a SELECT of one kind of entity, with loader options, and return its entities, each of them once.

        `selectinload()` runs further statements, on the same connection. There is no transaction around them, so they
        may see later changes. The entities are detached: what the options did not load cannot be loaded later.
        Raise as `all()`.
        """
        require_entity(statement)
        async with self._connect() as connection:
            return await connection.run_sync(_load_entities, statement, parameters)

    async def entity(self, statement: Select[Entity], **parameters: Any) -> Entity | None:
        """Return the first of `entities()`, or None. Use LIMIT 1 if there can be more rows."""
        found = await self.entities(statement, **parameters)
        return found[0] if found else None


class _ReadOnlySession(Session):
    """Loads entities for a read session."""

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Raise RuntimeError: an event handler of the entities has changed something."""
        raise RuntimeError("a read session does not write: change entities in a write session")


def _load_entities(connection: Connection, statement: Select[Entity], parameters: dict[str, Any]) -> Sequence[Entity]:
    with _ReadOnlySession(connection, autoflush=False) as session:
        # unique(): a joinedload() of a collection repeats its entity in each row.
        entities = session.scalars(statement, parameters).unique().all()
        session.expunge_all()
        return entities


class StatementSession(_Statements):
    """Runs writes of one statement each, without a transaction around them."""

    _check = staticmethod(require_returning)
    _reads_only = False

    async def returned(self, statement: Returning | SharedInsert, **parameters: Any) -> Row | None:
        """Run an INSERT, UPDATE or DELETE with RETURNING and return its first row, or None. It is committed then.

        Rows of one `SharedInsert` that wait at the same time are inserted, and committed, together.
        Raise as `ReadSession.all()`. Raise OutcomeUnknown if the connection is lost before the answer.
        """
        note_write()
        if isinstance(statement, SharedInsert):
            return await self._inserted(statement, parameters)
        rows = await self._run(statement, parameters)
        return rows[0] if rows else None

    async def _inserted(self, statement: SharedInsert, parameters: dict[str, Any]) -> Row | None:
        if self._fast_path is not None:
            row = self._fast_path.insert(statement, parameters)
            if row is not None:
                inserted: Row | None = await row
                return inserted
        rows = await self._run(statement.one, parameters)
        return rows[0] if rows else None

    def call_after_write(self, call: AfterWrite) -> None:
        """Call a function with the driver's connection after every statement that the server has committed."""
        self._after_write = call
        if self._fast_path is not None:
            self._fast_path.call_after_write(call)


class Database:
    """An engine with its sessions. `engines` are all engines that these use.

    `read` may use a standby (`standby.py`), `primary_read` never does: it is for a read that decides what is allowed.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.engines = [engine]
        self.primary_read = ReadSession(engine)
        self.read = self.primary_read
        self.statement = StatementSession(engine)
        watch_failed_statements(engine)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteSession]:
        """Open a transaction. Commit it when the block ends; roll it back when the block or the commit raises.

        The connection is checked out at the first statement. After the block, the session is unusable.
        Raise TransientDatabaseError, also from inside the block; OutcomeUnknown if the connection is lost after COMMIT
        was sent and before its answer. Raise RuntimeError if
        the block caught the error of a failed statement, or began the response: a commit would come too late.
        """
        session = self._new_write_session()
        note_write()
        outer = open_write_session.get()
        open_write_session.set(session)
        try:
            yield session
            await session.commit_as_owner()
        except DBAPIError as error:
            raise translate(error) or error from error
        finally:
            if open_write_session.get() is session:  # no token: the block may end in another context than it began in
                open_write_session.set(outer)
            await session.close_as_owner()

    async def run_write(self, work: Callable[[WriteSession], Awaitable[Result]], *, attempts: int = 3) -> Result:
        """Run `work` in a write session and return its result, when the transaction is committed.

        If the server rolls the transaction back because of a concurrent one (a serialization failure, a deadlock) or of
        a schema change, run `work` again, each time in a new session after a short random delay. So `work` must change
        nothing but the database, and must use no entity of an earlier session. Raise as `write()`; after the last
        attempt TransactionConflict or SchemaChanged.
        """
        for attempt in range(1, attempts):
            try:
                async with self.write() as session:
                    return await work(session)
            except (TransactionConflict, SchemaChanged) as error:
                logger.info("attempt %d of %d: %s", attempt, attempts, error)
            # A random delay, so that the transactions do not conflict again.
            await asyncio.sleep(random.uniform(0, RETRY_SECONDS * 2**attempt))  # noqa: S311 - not a secret
        async with self.write() as session:
            return await work(session)

    def _new_write_session(self) -> WriteSession:
        return WriteSession(self.engine)
