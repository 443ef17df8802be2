import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from app.database import Database
from app.database.error_mapping import translate, violations
from app.domains.users.models import User
from app.errors import Conflict, DatabaseUnavailable, HeadroomError, InvalidInput, StatementTimeout


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
        ("42P01", None),
        ("23505", None),
    ],
)
def test_sqlstate_is_translated_alike_bare_and_wrapped(sqlstate: str, expected: type[HeadroomError] | None) -> None:
    bare = DriverError(sqlstate)
    for error in (bare, OperationalError("SELECT 1", {}, bare)):
        assert type(translate(error)) is (expected or type(None))


def test_lost_connection_is_translated_to_database_unavailable() -> None:
    assert isinstance(translate(ConnectionResetError()), DatabaseUnavailable)
    lost = OperationalError("SELECT 1", {}, DriverError(""), connection_invalidated=True)
    assert isinstance(translate(lost), DatabaseUnavailable)


async def test_violated_index_raises_the_mapped_error(database: Database) -> None:
    async with database.write() as session:
        session.add(User(email="ann@example.com", name="Ann", password_hash="x"))
    with pytest.raises(Taken):
        async with database.write() as session:
            session.add(User(email="ANN@example.com", name="Ann", password_hash="x"))
            with violations({"uq_users_email": Taken()}):
                await session.flush()


async def test_violation_without_a_mapped_error_is_unchanged(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.write() as session:
            session.add(User(email="ann@example.com", name=None, password_hash="x"))
            with violations({"uq_users_email": Taken()}):
                await session.flush()
