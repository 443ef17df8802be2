"""The roads to the database. Which one a piece of code is on stands in the type of its session.

The write road holds ORM entities in one transaction with one owner: `Database.write()` begins it and commits it;
repositories flush. The read road has no transaction and no entities: it takes a connection for as long as one
statement runs. A read that must see a snapshot across statements, or its own writes, belongs on the write road. A write
that is one statement needs no BEGIN and COMMIT around it, and no entities: the server commits it before it answers.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert, ReturningUpdate

from app.database.driver import Statement, driver_road
from app.database.integrity import translate

# With any columns.
Returning = ReturningInsert[*tuple[Any, ...]] | ReturningUpdate[*tuple[Any, ...]] | ReturningDelete[*tuple[Any, ...]]


class Row(Protocol):
    """A row of the read road: columns by the name they have in the SELECT, whichever the driver."""

    def __getitem__(self, column: str, /) -> Any: ...
    def keys(self) -> Iterable[str]: ...


class WriteSession(AsyncSession):
    """A unit of work. Only its owner, `Database.write()`, commits it."""


class _Statements:
    """Runs statements, each on a connection of its own, outside a transaction. Holds nothing between two of them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._driver = driver_road(engine)

    async def _run(self, statement: Statement, parameters: dict[str, Any]) -> Sequence[Row]:
        if self._driver and (compiled := self._driver.compiled(statement)):
            return await self._driver.fetch(compiled, parameters)
        return await self._execute(statement, parameters)

    async def _execute(self, statement: Statement, parameters: dict[str, Any]) -> Sequence[Row]:
        try:
            async with self._engine.connect() as connection:
                # One round trip for a statement, where BEGIN and ROLLBACK around it make three. Said here, not to the
                # engine: a request that is cancelled while SQLAlchemy sets that up would lose its connection.
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                result = await connection.execute(statement, parameters)
                return result.mappings().all()
        except DBAPIError as error:
            raise translate(error) or error from error


class ReadSession(_Statements):
    """The read road."""

    async def all(self, statement: Select[*tuple[Any, ...]], **parameters: Any) -> Sequence[Row]:
        """Every row of a SELECT whose `bindparam`s are given by name.

        Written as a constant of its module, a statement is compiled once.
        Raises PoolExhausted, DatabaseUnavailable, StatementTimeout.
        """
        return await self._run(statement, parameters)

    async def first(self, statement: Select[*tuple[Any, ...]], **parameters: Any) -> Row | None:
        """The first row, or None. The statement should say LIMIT 1 where there can be more."""
        rows = await self._run(statement, parameters)
        return rows[0] if rows else None


class StatementSession(_Statements):
    """Writes that are one statement each."""

    async def returned(self, statement: Returning, **parameters: Any) -> Row | None:
        """Run an INSERT, UPDATE or DELETE with RETURNING; the first row of that, or None. It is committed by then.

        Raises what a read raises. Where the connection is lost, whether it was committed is not known.
        """
        rows = await self._run(statement, parameters)
        return rows[0] if rows else None


class Database:
    """An engine and the roads that lead to it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.read = ReadSession(engine)
        self.statement = StatementSession(engine)
        # Entities stay readable after the commit: the answer is made from them.
        self._write_sessions = async_sessionmaker(engine, class_=WriteSession, expire_on_commit=False)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[WriteSession]:
        """A transaction: committed when the block ends, rolled back when it raises, the commit's own failure included.

        Takes a connection at the first statement, not before.
        Raises PoolExhausted, DatabaseUnavailable, StatementTimeout, also from inside the block.
        """
        async with self._write_sessions() as session:
            try:
                yield session
                await session.commit()
            except DBAPIError as error:
                raise translate(error) or error from error
