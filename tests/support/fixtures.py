"""Fixtures for the tests of your domains (docs/testing.md). tests/conftest.py loads them for every test.

`make` needs the fixture `database`, the others the fixture `app` of the integration tests.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database
from app.development.holding import watch_holders
from app.development.statements import Executed, watch_statements
from tests.support.factories import Factory
from tests.support.people import Person, person


class SignUp(Protocol):
    """Creates a user and signs in: `ann = await sign_up("Ann")`, `admin = await sign_up("Admin", is_admin=True)`."""

    def __call__(self, name: str, *, is_admin: bool = False) -> Awaitable[Person]: ...


@pytest.fixture
def sign_up(client: AsyncClient, database_url: URL) -> SignUp:
    """Return a function that creates a user. Calling it sends a request: `await ann("GET", "/users/me")`."""

    def sign_up(name: str, *, is_admin: bool = False) -> Awaitable[Person]:
        return person(client, name, database_url, is_admin=is_admin)

    return sign_up


@pytest.fixture
def make(database: Database) -> Factory:
    """Return a function that inserts rows: `ann = await make(User, name="Ann")`."""
    return Factory(database)


class Statements:
    """The statements that the application has executed in the test, and those that shall fail.

    BEGIN, COMMIT and ROLLBACK are statements too.
    """

    def __init__(self) -> None:
        self.executed: list[str] = []
        self._failures: list[tuple[str | int, str]] = []

    @contextmanager
    def exactly(self, number: int) -> Iterator[None]:
        """Fail unless the block executes this number of statements. The failure lists them."""
        before = len(self.executed)
        yield
        sent = self.executed[before:]
        if len(sent) != number:
            lines = "\n".join(f"{n:>4}. {' '.join(sql.split())}" for n, sql in enumerate(sent, 1))
            pytest.fail(f"{len(sent)} statements instead of {number}:\n{lines}", pytrace=False)

    def fail(self, at: str | int, *, sqlstate: str | None) -> None:
        """Let the server refuse a statement; with `sqlstate=None`, let it close the connection.

        `at` is a part of the statement's text, such as "INSERT INTO users" or "COMMIT", or a number: 1 is the next
        statement. Each call lets one statement fail.
        """
        sql = _CLOSE if sqlstate is None else _RAISE.format(sqlstate=sqlstate)
        self._failures.append((at if isinstance(at, str) else len(self.executed) + at, sql))

    def require_failures(self) -> None:
        """Fail if a statement that shall fail was never sent."""
        if self._failures:
            sent = "\n".join(" ".join(sql.split()) for sql in self.executed)
            pytest.fail(f"never sent: {[at for at, _ in self._failures]}; sent were:\n{sent}", pytrace=False)

    def before(self, sql: str) -> str | None:
        """Return a statement that fails, if this one is to fail. Otherwise return None."""
        for failure in self._failures:
            at, failing = failure
            if at in sql if isinstance(at, str) else at == len(self.executed) + 1:
                self._failures.remove(failure)
                return failing
        return None

    def after(self, executed: Executed) -> None:
        """Remember the statement."""
        self.executed.append(executed.sql)


# The server itself fails, so the driver and the transaction are in the state of a real failure.
_RAISE = "DO $$ BEGIN RAISE EXCEPTION 'failure of the test' USING ERRCODE = '{sqlstate}'; END $$"
_CLOSE = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.fixture
def statements(app: FastAPI) -> Statements:
    """Watch the statements of the application."""
    watched = Statements()
    watch_statements(app.state.database, watched)
    return watched


AssertStatements = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def assert_statements(statements: Statements) -> AssertStatements:
    """Return a context manager: `with assert_statements(2): ...` fails unless the block executes two statements."""
    return statements.exactly


class FailStatement(Protocol):
    """Lets one statement fail: `fail_statement("INSERT INTO users", sqlstate="40001")`."""

    def __call__(self, at: str | int, *, sqlstate: str | None) -> None: ...


@pytest.fixture
def fail_statement(statements: Statements) -> Iterator[FailStatement]:
    """Return a function that lets a statement fail. The test fails if a chosen statement was never sent."""
    yield statements.fail
    statements.require_failures()


@contextmanager
def idle_holders_refused(engine: AsyncEngine) -> Iterator[None]:
    """Fail if the block waits for something else than the database while it holds a connection of the engine."""
    places: list[str] = []
    watch_holders(engine, places.append)
    yield
    if places:
        pytest.fail("a connection was held during a wait:\n" + "\n".join(places), pytrace=False)


@pytest.fixture
def no_idle_holder(app: FastAPI) -> Iterator[None]:
    """Fail the test if the application waits for something else than the database while it holds a connection."""
    with idle_holders_refused(app.state.database.engine):
        yield
