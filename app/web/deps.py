"""FastAPI dependencies for database sessions. The parameter's annotation chooses the kind of session."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from app.database import Database, ReadSession, StatementSession, WriteSession


async def get_db(request: Request) -> AsyncIterator[WriteSession]:
    """Yield a write session, and commit it before the response is sent. Use it as `WriteDb`."""
    database: Database = request.app.state.database
    async with database.write() as session:
        yield session


async def get_read_db(request: Request) -> ReadSession:
    """Return the read session. It holds no connection between statements, so the route need not close it."""
    database: Database = request.app.state.database
    return database.read


async def get_statement_db(request: Request) -> StatementSession:
    """Return the session for a write that is one statement. It has no transaction, so the route need not commit."""
    database: Database = request.app.state.database
    return database.statement


async def get_database(request: Request) -> Database:
    """Return every kind of session, for a route that begins and ends its transactions itself."""
    database: Database = request.app.state.database
    return database


# With scope="function", FastAPI ends the dependency, and so the transaction, before it sends the response. With the
# default scope it ends the dependency afterwards, and the client of a failed commit would have received 201.
# `check_routes()` enforces the scope.
WriteDb = Annotated[WriteSession, Depends(get_db, scope="function")]
ReadDb = Annotated[ReadSession, Depends(get_read_db)]
StatementDb = Annotated[StatementSession, Depends(get_statement_db)]
DatabaseDep = Annotated[Database, Depends(get_database)]
