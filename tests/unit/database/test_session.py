"""Sessions on SQLite, and the compilation of statements for the fast path."""

from datetime import UTC
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import bindparam, insert, make_url, select
from sqlalchemy.exc import DBAPIError

from app.database import Database, StatementSession
from app.database.engine import make_engine
from app.database.fast_path import compile_statement
from app.errors import OutcomeUnknown, PoolExhausted
from tests.support.contacts import METADATA, Contact
from tests.unit.conftest import SQLITE

BY_ID = select(Contact.id, Contact.created_at).where(Contact.id == bindparam("contact_id"))


async def test_read_session_returns_a_row_of_a_write_session(database: Database) -> None:
    async with database.write() as session:
        contact = Contact(email="ann@example.com", name="Ann")
        session.add(contact)

    row = await database.read.first(BY_ID, contact_id=contact.id)

    assert row is not None
    assert row["created_at"].tzinfo is UTC


@pytest.mark.parametrize(
    ("message", "expected"), [("query_wait_timeout", PoolExhausted), ("server closed the connection", OutcomeUnknown)]
)
async def test_write_that_the_pooler_did_not_pass_on_has_a_known_outcome(
    message: str, expected: type[Exception]
) -> None:
    """On the ordinary path. PgBouncer closes the connection in both cases."""
    engine = make_engine(url=SQLITE.set(drivername="postgresql+psycopg"), application_name="test")
    session = StatementSession(engine)
    lost = DBAPIError("INSERT", {}, psycopg.errors.ProtocolViolation(message), connection_invalidated=True)

    class Lost:
        async def __aenter__(self) -> None:
            raise lost

        async def __aexit__(self, *_: object) -> None: ...

    session._engine = SimpleNamespace(connect=Lost)  # type: ignore[assignment]
    with pytest.raises(expected):
        async with session._connect():
            pytest.fail("the connection was lost")


async def test_fixture_rolls_back_the_rows_of_other_tests(database: Database) -> None:
    assert await database.read.all(select(Contact.id)) == []


def test_compiled_statement_orders_its_parameters_by_number() -> None:
    dialect = make_engine(url=SQLITE.set(drivername="postgresql+asyncpg"), application_name="test").dialect
    statement = select(Contact.id).where(
        Contact.name == bindparam("name"), Contact.id > bindparam("after"), Contact.email == "a"
    )

    compiled = compile_statement(statement, dialect)

    assert compiled is not None
    assert "$1" in compiled.sql
    assert compiled.arguments({"after": 7, "name": "Ann"}) == ["Ann", 7, "a"]


def test_statement_whose_text_depends_on_values_is_not_compiled() -> None:
    dialect = make_engine(url=SQLITE.set(drivername="postgresql+asyncpg"), application_name="test").dialect

    assert compile_statement(select(Contact.id).where(Contact.id.in_([1, 2])), dialect) is None


def test_two_columns_with_the_same_name_are_refused() -> None:
    dialect = make_engine(url=SQLITE.set(drivername="postgresql+asyncpg"), application_name="test").dialect

    with pytest.raises(TypeError, match="the same name"):
        compile_statement(select(Contact.id.label("x"), Contact.name.label("x")), dialect)


async def test_entities_of_a_write_session_are_read(database: Database) -> None:
    async with database.write() as session:
        session.add(Contact(email="ann@example.com", name="Ann"))

    [contact] = await database.read.entities(select(Contact).where(Contact.name == bindparam("name")), name="Ann")

    assert contact.email == "ann@example.com"
    assert await database.read.entity(select(Contact).where(Contact.name == "Bob")) is None


async def test_statement_session_stores_its_statement_on_sqlite(tmp_path: Path) -> None:
    """SQLAlchemy emits its event for BEGIN also where each statement must be a transaction of its own."""
    engine = make_engine(url=make_url(f"sqlite+aiosqlite:///{tmp_path}/database"), application_name="test")
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    database = Database(engine)
    values = {"email": "ann@example.com", "name": "Ann"}

    row = await database.statement.returned(insert(Contact).values(values).returning(Contact.id))

    assert row is not None
    found = await database.read.first(BY_ID, contact_id=row["id"])
    await engine.dispose()
    assert found is not None
