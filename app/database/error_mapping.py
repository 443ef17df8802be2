"""Maps driver errors to the error tree. The only module that reads SQLSTATEs and constraint names."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from asyncpg.exceptions import OutdatedSchemaCacheError, ProtocolError
from sqlalchemy import Index, MetaData, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException

from app.database.base import Base
from app.errors import (
    DatabaseUnavailable,
    DomainError,
    HeadroomError,
    InvalidInput,
    PoolExhausted,
    SchemaChanged,
    StatementTimeout,
    TransactionConflict,
    TransientDatabaseError,
)

# Errors that report the server's own state, by SQLSTATE or by its class (the first two characters). Each gives a 503
# and one line in the log. docs/api.md has the same table, and a test compares the two.
SERVER_STATES: Mapping[str, type[TransientDatabaseError]] = {
    "08": DatabaseUnavailable,  # connection_exception; also PgBouncer's errors
    "25006": DatabaseUnavailable,  # read_only_sql_transaction: this server is no longer the primary
    "25P03": DatabaseUnavailable,  # idle_in_transaction_session_timeout
    "53": DatabaseUnavailable,  # insufficient_resources: disk, memory, connections, a configured limit
    "57": DatabaseUnavailable,  # operator_intervention: shutdown, crash, starting up, database dropped
    "58": DatabaseUnavailable,  # system_error: an operation on a file failed
    "XX001": DatabaseUnavailable,  # data_corrupted
    "XX002": DatabaseUnavailable,  # index_corrupted
    "25P04": StatementTimeout,  # transaction_timeout
    "55P03": StatementTimeout,  # lock_not_available: lock_timeout, or NOWAIT
    "57014": StatementTimeout,  # query_canceled: statement_timeout
    "40001": TransactionConflict,  # serialization_failure; on a standby, a conflict with recovery
    "40P01": TransactionConflict,  # deadlock_detected
    "26000": SchemaChanged,  # invalid_sql_statement_name: the prepared statement is gone
    "42P05": SchemaChanged,  # duplicate_prepared_statement
}
# Errors of a class with other meanings, which mean a stale plan if this function of the server raised them. Its
# messages are translated.
_STALE_IF_RAISED_BY = {
    "0A000": "RevalidateCachedQuery",  # cached plan must not change result type
    "42704": "lookup_type_cache",  # type with OID ... does not exist
}
# Internal errors (XX000) that mean that an object was dropped between two steps. These messages are never translated.
_DROPPED_MEANWHILE = ("cache lookup failed for ", "could not open relation with OID ")
# The server accepts no more work, or no writes: another server may have taken its role.
_SERVER_IS_LEAVING = {
    "25006",  # read_only_sql_transaction
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
}
_NOT_STORABLE = {
    "22021",  # character_not_in_repertoire: a NUL byte
    "22P02",  # invalid_text_representation: JSON with Infinity or a lone surrogate
    "22P05",  # untranslatable_character
    "22001",  # string_data_right_truncation
    "22003",  # numeric_value_out_of_range
    "54000",  # program_limit_exceeded: too large for an index, or for its type
}

# "refused": the server refused the statement, so it has done nothing outside its transaction.
# "unreadable": the server executed the statement, and asyncpg could not decode the rows.
Staleness = Literal["refused", "unreadable"]


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
    sqlstate = _sqlstate(driver_error)
    summary = _summary(driver_error)
    # asyncpg itself refuses a number that is too large for its column.
    if sqlstate in _NOT_STORABLE or isinstance(driver_error.__cause__, OverflowError):
        return InvalidInput("A value in this request cannot be stored.")
    # PgBouncer: no server connection became free. It closes the connection, with the unspecific SQLSTATE 08P01.
    if "query_wait_timeout" in summary:
        return PoolExhausted(f"the pooler had no server connection: {summary}")
    if (known := SERVER_STATES.get(sqlstate) or SERVER_STATES.get(sqlstate[:2])) is not None:
        return known(summary)
    if staleness(error) is not None:
        return SchemaChanged(summary)
    if isinstance(error, OSError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return DatabaseUnavailable(summary)
    return None


def is_server_error(error: BaseException) -> bool:
    """Return True if the server sent the driver's error: only then does it have a severity."""
    return getattr(getattr(error, "diag", error), "severity", None) is not None


def refuses_any_rows(error: BaseException) -> bool:
    """Return True if the server refused a statement whatever its rows are: for its text, or for missing privileges.

    A policy that refuses a row, and the code of a trigger, may use the same SQLSTATEs.
    """
    diagnostics: Any = getattr(error, "diag", error)
    return (
        is_server_error(error)
        and _sqlstate(error)[:2] in ("0A", "42")
        and not getattr(diagnostics, "context", None)
        and _server_function(error) != "ExecWithCheckOptions"
    )


def staleness(error: BaseException) -> Staleness | None:
    """Return how a statement failed that was prepared before a schema change; None for any other error."""
    driver_error = _driver_error(error)
    # asyncpg, when a composite type, the number of columns or the width of a column has changed.
    if isinstance(driver_error, OutdatedSchemaCacheError | ProtocolError | BufferError):
        return "unreadable"
    sqlstate = _sqlstate(driver_error)
    if SERVER_STATES.get(sqlstate) is SchemaChanged:
        return "refused"
    if sqlstate in _STALE_IF_RAISED_BY:
        return "refused" if _server_function(driver_error) == _STALE_IF_RAISED_BY[sqlstate] else None
    if sqlstate == "XX000" and str(driver_error).startswith(_DROPPED_MEANWHILE):
        return "refused"
    return None


def server_is_leaving(error: BaseException) -> bool:
    """Return True if the server turned read-only or shuts down, so that its other connections are useless too."""
    cause: BaseException | None = _driver_error(error)
    while cause is not None:  # asyncpg: "connection was closed", because of the server's last message
        if _sqlstate(cause) in _SERVER_IS_LEAVING:
            return True
        cause = cause.__cause__
    return False


def _driver_error(error: BaseException) -> BaseException:
    """Return the driver's own exception. SQLAlchemy wraps it once, its asyncpg dialect twice."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    # Not `driver_exception`: InvalidCachedStatementError does not know its cause, and raises ValueError.
    return error.__cause__ or error if isinstance(error, EmulatedDBAPIException) else error


def _server_function(driver_error: BaseException) -> str | None:
    """Return the function of the server's code that raised the error."""
    diagnostics: Any = getattr(driver_error, "diag", None)
    if diagnostics is None:
        return getattr(driver_error, "server_source_function", None)
    function: str | None = diagnostics.source_function
    return function


def _sqlstate(driver_error: BaseException) -> str:
    return str(getattr(driver_error, "sqlstate", None) or "")


def _summary(driver_error: BaseException) -> str:
    # Only the first line: the statement and the row's values follow it.
    return (str(driver_error) or type(driver_error).__name__).splitlines()[0]


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
