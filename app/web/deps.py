"""FastAPI dependencies for database sessions. The parameter's annotation chooses the kind of session.

They work in routes, in WebSocket routes and in mounted FastAPI applications.

A dependency of your own around a transaction must end before the response is sent, so it needs `scope="function"`:

    async def get_invoices(database: DatabaseDep) -> AsyncIterator[Invoices]:
        async with database.write() as session:
            yield Invoices(session)

    InvoicesDep = Annotated[Invoices, Depends(get_invoices, scope="function")]

With FastAPI's default scope the application refuses to start (`route_checks.py`). What that check cannot see fails at
its first request: `RequestMiddleware` does not send a response while its transaction is open.
"""

from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.database import Database, ReadSession, StatementSession, WriteSession
from app.database.lanes import in_lane
from app.lanes import LaneName, lane_names
from app.web.operation import outer_application


def provided(connection: HTTPConnection, name: str) -> Any:
    """Return the object `name` of `app.state`. A mounted application without its own gets the outermost one's."""
    value = getattr(connection.scope["app"].state, name, None)
    return getattr(outer_application(connection.scope).state, name) if value is None else value


async def get_db(connection: HTTPConnection) -> AsyncIterator[WriteSession]:
    """Yield a write session, and commit it before the response is sent. Use it as `WriteDb`.

    The session is unusable afterwards: a background task or a stream opens its own with `Database.write()`. In a
    WebSocket route it is committed when the handler returns, so a handler with a loop opens one for each message.
    """
    database: Database = provided(connection, "database")
    async with database.write() as session:
        yield session


async def get_read_db(connection: HTTPConnection) -> ReadSession:
    """Return the read session. It holds no connection between statements, so the route need not close it."""
    database: Database = provided(connection, "database")
    return database.read


async def get_primary_read_db(connection: HTTPConnection) -> ReadSession:
    """Return a read session that never uses a standby, for a read that decides what the caller may do."""
    database: Database = provided(connection, "database")
    return database.primary_read


async def get_statement_db(connection: HTTPConnection) -> StatementSession:
    """Return the session for a write that is one statement. It has no transaction, so the route need not commit."""
    database: Database = provided(connection, "database")
    return database.statement


async def get_database(connection: HTTPConnection) -> Database:
    """Return every kind of session, for a route that begins and ends its transactions itself."""
    database: Database = provided(connection, "database")
    return database


# With scope="function", FastAPI ends the dependency, and so the transaction, before it sends the response. With the
# default scope it ends the dependency afterwards, and the client of a failed commit would have received 201.
# `check_routes()` enforces the scope.
WriteDb = Annotated[WriteSession, Depends(get_db, scope="function")]
ReadDb = Annotated[ReadSession, Depends(get_read_db)]
PrimaryReadDb = Annotated[ReadSession, Depends(get_primary_read_db)]
StatementDb = Annotated[StatementSession, Depends(get_statement_db)]
DatabaseDep = Annotated[Database, Depends(get_database)]


def lane(name: LaneName) -> Any:
    """Return a dependency that puts a route into a lane: `@router.get("/report", dependencies=[lane("expensive")])`.

    Every connection that the route checks out belongs to the lane, those of its other dependencies included. Raise
    ValueError for a lane that is neither Headroom's nor declared in `app/lanes.py`.
    """
    if name not in lane_names():
        raise ValueError(f"there is no lane {name!r}; the lanes are {', '.join(lane_names())} (app/lanes.py)")
    return Depends(_lane_dependency(name))


@cache  # one function for each lane, so that FastAPI runs it once in a request
def _lane_dependency(name: LaneName) -> Callable[[], AsyncIterator[None]]:
    async def enter() -> AsyncIterator[None]:
        with in_lane(name):
            yield

    return enter
