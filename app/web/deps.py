"""How a route gets its session. The annotation says which road it is on."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from app.database import Database, ReadSession, StatementSession, WriteSession


async def get_db(request: Request) -> AsyncIterator[WriteSession]:
    """A write session, committed before the answer is sent. Always `Depends(get_db, scope="function")`."""
    database: Database = request.app.state.database
    async with database.write() as session:
        yield session


async def get_read_db(request: Request) -> ReadSession:
    """The read road. It holds no connection, so there is nothing to close."""
    database: Database = request.app.state.database
    return database.read


async def get_statement_db(request: Request) -> StatementSession:
    """For a write that is one statement. It holds no connection, and nothing is left to commit."""
    database: Database = request.app.state.database
    return database.statement


async def get_database(request: Request) -> Database:
    """Every road, for a route that decides itself when a transaction begins and ends."""
    database: Database = request.app.state.database
    return database


# scope="function" ends the dependency, and so the transaction, before the answer is sent. With the default scope
# FastAPI 0.165 ends it afterwards: a commit that fails would have been answered with 201. The body is made before the
# commit, so the answer to a write should be small.
WriteDb = Annotated[WriteSession, Depends(get_db, scope="function")]
ReadDb = Annotated[ReadSession, Depends(get_read_db)]
StatementDb = Annotated[StatementSession, Depends(get_statement_db)]
Roads = Annotated[Database, Depends(get_database)]
