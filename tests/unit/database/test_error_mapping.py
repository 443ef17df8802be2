import re
from collections.abc import AsyncIterator

import pytest
from asyncpg.exceptions import InternalServerError, OutdatedSchemaCacheError, ProtocolError
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Database, make_engine
from app.database.error_mapping import SERVER_STATES, staleness, translate, violations
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    HeadroomError,
    InvalidInput,
    SchemaChanged,
    StatementTimeout,
    TransactionConflict,
)
from app.paths import PROJECT_ROOT
from tests.support.constraints import METADATA, VIOLATIONS, create_tables
from tests.support.contacts import Contact
from tests.unit.conftest import SQLITE


class DriverError(Exception):
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


class Taken(Conflict):
    pass


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("57014", StatementTimeout),
        ("55P03", StatementTimeout),
        ("57P01", DatabaseUnavailable),
        ("08006", DatabaseUnavailable),
        ("53300", DatabaseUnavailable),
        ("25006", DatabaseUnavailable),
        ("22021", InvalidInput),
        ("22003", InvalidInput),
        ("54000", InvalidInput),
        ("53100", DatabaseUnavailable),
        ("40001", TransactionConflict),
        ("26000", SchemaChanged),
        ("0A000", None),
        ("42704", None),
        ("XX000", None),
        ("22P02", InvalidInput),
        ("42P01", None),
        ("23505", None),
    ],
)
def test_sqlstate_is_translated_alike_bare_and_wrapped(sqlstate: str, expected: type[HeadroomError] | None) -> None:
    bare = DriverError(sqlstate)
    for error in (bare, OperationalError("SELECT 1", {}, bare)):
        assert type(translate(error)) is (expected or type(None))


@pytest.mark.parametrize(
    "message",
    ["cache lookup failed for type 16999", "cache lookup failed for relation 1", "could not open relation with OID 7"],
)
def test_object_dropped_during_a_statement_is_schema_changed(message: str) -> None:
    error = InternalServerError(message)

    assert staleness(error) == "refused"
    assert isinstance(translate(error), SchemaChanged)


@pytest.mark.parametrize("error", [OutdatedSchemaCacheError("changed"), ProtocolError("columns"), BufferError("8")])
def test_row_that_asyncpg_cannot_decode_is_unreadable(error: Exception) -> None:
    assert staleness(error) == "unreadable"
    assert isinstance(translate(error), SchemaChanged)


def test_documented_sqlstates_are_those_of_the_code() -> None:
    document = (PROJECT_ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| .+ \| (class )?`(\w+)` \| `/problems/([\w-]+)` \|$", document, re.MULTILINE)

    assert {(code, bool(is_class), slug) for is_class, code, slug in rows} == {
        (code, len(code) == 2, error.slug) for code, error in SERVER_STATES.items()
    }


def test_lost_connection_is_translated_to_database_unavailable() -> None:
    assert isinstance(translate(ConnectionResetError()), DatabaseUnavailable)
    lost = OperationalError("SELECT 1", {}, DriverError(""), connection_invalidated=True)
    assert isinstance(translate(lost), DatabaseUnavailable)


async def test_violated_index_raises_the_mapped_error(database: Database) -> None:
    async with database.write() as session:
        session.add(Contact(email="ann@example.com", name="Ann"))
    with pytest.raises(Taken):
        async with database.write() as session:
            session.add(Contact(email="ANN@example.com", name="Ann"))
            with violations({"uq_test_contacts_email": Taken()}):
                await session.flush()


async def test_violation_without_a_mapped_error_is_unchanged(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.write() as session:
            session.add(Contact(email="ann@example.com", name=None))
            with violations({"uq_test_contacts_email": Taken()}):
                await session.flush()


# Constraints on every driver. The same rows violate them on PostgreSQL: tests/integration/database/test_violations.py


@pytest.fixture
async def connection() -> AsyncIterator[AsyncConnection]:
    engine = make_engine(url=SQLITE, application_name="test")
    async with engine.connect() as connection:
        await create_tables(connection)
        yield connection
    await engine.dispose()


@pytest.mark.parametrize(("statement", "name"), VIOLATIONS)
async def test_violated_constraint_is_found_on_sqlite(connection: AsyncConnection, statement: str, name: str) -> None:
    with pytest.raises(Taken), violations({"other": Conflict(), name: Taken()}, METADATA):
        await connection.execute(text(statement))


@pytest.mark.parametrize(("statement", "name"), VIOLATIONS)
async def test_other_constraint_on_sqlite_is_unchanged(connection: AsyncConnection, statement: str, name: str) -> None:
    others = {each: Taken() for _, each in VIOLATIONS if each != name}
    with pytest.raises(IntegrityError), violations(others, METADATA):
        await connection.execute(text(statement))


async def test_ambiguous_foreign_key_on_sqlite_is_unchanged(connection: AsyncConnection) -> None:
    """SQLite does not say which foreign key failed, and the statement has values for both."""
    two = {"fk_test_item_owner_id_test_owner": Taken(), "fk_test_item_parent_id_test_item": Taken()}
    with pytest.raises(IntegrityError), violations(two, METADATA):
        await connection.execute(text("INSERT INTO test_item (id, code, owner_id, parent_id) VALUES (9, 'c9', 99, 1)"))


async def test_deferred_foreign_key_at_commit_on_sqlite_is_found(connection: AsyncConnection) -> None:
    await connection.execute(text("PRAGMA defer_foreign_keys=ON"))
    await connection.execute(text("INSERT INTO test_item (id, code, owner_id) VALUES (9, 'c9', 99)"))
    with pytest.raises(Taken), violations({"fk_test_item_owner_id_test_owner": Taken()}, METADATA):
        await connection.commit()


def test_error_without_a_driver_error_is_translated_to_none() -> None:
    """SQLAlchemy's asyncpg dialect raises some errors itself: asking for the driver's then raises ValueError."""
    dialect = make_engine(url=SQLITE.set(drivername="postgresql+asyncpg"), application_name="test").dialect
    own = dialect.loaded_dbapi.InvalidCachedStatementError("cached plan must not change result type")

    assert translate(ProgrammingError("SELECT 1", {}, own)) is None
    assert translate(own) is None
