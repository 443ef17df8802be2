"""Maps driver errors to the error tree. The only module that reads SQLSTATEs and constraint names."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Index, MetaData, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.exc import DBAPIError

from app.database.base import Base
from app.errors import DatabaseUnavailable, DomainError, HeadroomError, InvalidInput, PoolExhausted, StatementTimeout

_STATEMENT_TIMEOUT = {
    "57014",  # query_canceled: statement_timeout
    "55P03",  # lock_not_available: lock_timeout
}
_SERVER_UNAVAILABLE = {
    "57P01",  # admin_shutdown: restart, or pg_terminate_backend
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now: starting up
    "53300",  # too_many_connections
    "25006",  # read_only_sql_transaction: this server is no longer the primary
    "25P03",  # idle_in_transaction_session_timeout
}
_NOT_STORABLE = {
    "22021",  # character_not_in_repertoire: a NUL byte
    "22P02",  # invalid_text_representation: JSON with Infinity or a lone surrogate
    "22P05",  # untranslatable_character
    "22001",  # string_data_right_truncation
    "22003",  # numeric_value_out_of_range
}


@contextmanager
def violations(meaning: Mapping[str, DomainError], metadata: MetaData = Base.metadata) -> Iterator[None]:
    """Raise `meaning[NAME]` if the block violates the constraint or unique index NAME.

    A NOT NULL column has no constraint name: it is "TABLE.COLUMN". `metadata` names the constraints for SQLite. The
    constraint decides, not a query before the write: two concurrent requests would both find nothing.
    """
    try:
        yield
    except Exception as error:  # SQLAlchemy's IntegrityError, or the driver's own
        names = [name for name in _violated(error, metadata) if name in meaning]
        if len(names) != 1:
            raise
        raise meaning[names[0]] from error


def translate(error: Exception) -> HeadroomError | None:
    """Return the error of the tree for a driver error, bare or wrapped by SQLAlchemy; None if it has no counterpart."""
    driver_error = _driver_error(error)
    sqlstate = str(getattr(driver_error, "sqlstate", None) or "")
    # Only the first line: the statement and the row's values follow it.
    summary = (str(driver_error) or type(driver_error).__name__).splitlines()[0]
    if sqlstate in _STATEMENT_TIMEOUT:
        return StatementTimeout(summary)
    # asyncpg itself refuses a number that is too large for its column.
    if sqlstate in _NOT_STORABLE or isinstance(driver_error and driver_error.__cause__, OverflowError):
        return InvalidInput("A value in this request cannot be stored.")
    # PgBouncer: no server connection became free. It closes the connection, with the unspecific SQLSTATE 08P01.
    if "query_wait_timeout" in summary:
        return PoolExhausted(f"the pooler had no server connection: {summary}")
    lost = isinstance(error, OSError) or (isinstance(error, DBAPIError) and error.connection_invalidated)
    if lost or sqlstate in _SERVER_UNAVAILABLE or sqlstate.startswith("08"):
        return DatabaseUnavailable(summary)
    return None


def _driver_error(error: Exception) -> BaseException | None:
    """Return the driver's own exception. SQLAlchemy wraps it once, its asyncpg dialect twice."""
    if not isinstance(error, DBAPIError):
        return error
    try:
        return error.driver_exception
    except ValueError:  # raised by SQLAlchemy's dialect itself, without an error of the driver
        return error.orig


def _violated(error: Exception, metadata: MetaData) -> Iterable[str]:
    """Return the names of the constraints that the error can mean. With PostgreSQL there is at most one."""
    driver_error = _driver_error(error)
    diagnostics: Any = getattr(driver_error, "diag", driver_error)  # psycopg: .diag; asyncpg: the exception itself
    if name := getattr(diagnostics, "constraint_name", None):
        return [name]
    if column := getattr(diagnostics, "column_name", None):
        return [f"{diagnostics.table_name}.{column}"]
    return _violated_on_sqlite(str(driver_error), getattr(error, "statement", None), metadata)


def _violated_on_sqlite(message: str, statement: str | None, metadata: MetaData) -> Iterable[str]:
    """Return the names that SQLite's message can mean. It names an index on an expression and a check constraint."""
    kind, _, subject = message.partition(" constraint failed")
    subject = subject.removeprefix(": ")
    if kind == "UNIQUE":
        if match := re.fullmatch(r"index '(\w+)'", subject):
            return [match[1]]
        return _unique_names(subject.split(", "), metadata)
    if kind == "FOREIGN KEY":
        return _foreign_key_names(statement, metadata)
    return [subject] if kind in ("NOT NULL", "CHECK") else []


def _unique_names(columns: Sequence[str], metadata: MetaData) -> Iterable[str]:
    """Return the names of the primary key, unique constraint or unique index on the columns, each "TABLE.COLUMN"."""
    table = metadata.tables.get(columns[0].partition(".")[0])
    if table is None:
        return []
    unique: list[PrimaryKeyConstraint | UniqueConstraint | Index] = [
        each for each in table.constraints if isinstance(each, PrimaryKeyConstraint | UniqueConstraint)
    ]
    unique += [index for index in table.indexes if index.unique]
    return {str(each.name) for each in unique if {str(column) for column in each.columns} == set(columns)}


def _foreign_key_names(statement: str | None, metadata: MetaData) -> Iterable[str]:
    """Return the names of the foreign keys that the statement can violate: SQLite does not say which one it did.

    Those of the table that it writes, if their columns occur in it, and those that refer to the table. Without a
    statement, at COMMIT, all.
    """
    match = re.match(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+\W?(\w+)", statement or "", re.IGNORECASE)
    written = metadata.tables.get(match[1]) if match else None
    words = set(re.findall(r"\w+", statement or ""))
    names = set()
    for table in metadata.tables.values():
        for key in table.foreign_key_constraints:
            columns = set(key.column_keys) if words & set(table.columns.keys()) else words
            refers_to_written = key.referred_table is written and not (statement or "").lstrip().startswith("INSERT")
            if written is None or refers_to_written or (table is written and words & columns):
                names.add(str(key.name))
    return names
