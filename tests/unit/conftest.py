"""Unit tests share one SQLite database in memory. Each runs in a transaction that is rolled back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import registry
from app.database import Base, Database, WriteSession, make_engine
from app.main import create_app, provide_state
from app.settings import Settings
from tests.support import contacts

SQLITE = make_url("sqlite+aiosqlite://")


class RolledBackDatabase(Database):
    """All sessions use one connection, whose transaction never commits. A commit of the code ends a savepoint."""

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__(connection.engine)
        self.read._engine = self.statement._engine = _AlreadyConnected(connection)  # type: ignore[assignment]
        self._connection = connection

    def _new_write_session(self) -> WriteSession:
        return WriteSession(self._connection, join_transaction_mode="create_savepoint")


class _AlreadyConnected:
    """The part of an engine and its connections that the read and statement sessions use."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.execute = connection.execute
        self.run_sync = connection.run_sync

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["_AlreadyConnected"]:
        yield self

    async def execution_options(self, **options: object) -> None:
        """Do nothing: the transaction of the test has begun."""


@pytest.fixture(scope="session")
async def engine() -> AsyncIterator[AsyncEngine]:
    assert registry
    engine = make_engine(url=SQLITE, application_name="headroom:test")
    async with engine.begin() as connection:
        await connection.run_sync(_create_tables)
    yield engine
    await engine.dispose()


def _create_tables(connection: Connection) -> None:
    Base.metadata.create_all(connection)
    contacts.METADATA.create_all(connection)


@pytest.fixture
async def database(engine: AsyncEngine) -> AsyncIterator[Database]:
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield RolledBackDatabase(connection)
        await transaction.rollback()


@pytest.fixture
def app(database: Database) -> FastAPI:
    """Return the application on the test's transaction. Its lifespan, which opens a database, does not run."""
    settings = Settings(database_url=SQLITE, secret_key="for tests only, for tests only, for tests only")
    app = create_app(settings)
    provide_state(app, database, settings)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client
