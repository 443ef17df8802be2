"""Maps driver errors to the error tree. The only module that reads SQLSTATEs and constraint names."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

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
    "22P05",  # untranslatable_character
    "22001",  # string_data_right_truncation
    "22003",  # numeric_value_out_of_range
}


@contextmanager
def violations(meaning: Mapping[str, DomainError]) -> Iterator[None]:
    """Raise `meaning[NAME]` if the block violates the constraint or unique index NAME.

    The constraint decides, not a query before the write: two concurrent requests would both find nothing.
    """
    try:
        yield
    except Exception as error:  # SQLAlchemy's IntegrityError, or the driver's own
        domain_error = meaning.get(_constraint_name(error) or "")
        if domain_error is None:
            raise
        raise domain_error from error


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
    return getattr(error, "driver_exception", None) or error.orig


def _constraint_name(error: Exception) -> str | None:
    driver_error = _driver_error(error)
    diagnostics = getattr(driver_error, "diag", driver_error)  # psycopg: .diag; asyncpg: the exception itself
    name = getattr(diagnostics, "constraint_name", None)
    if name is None:  # SQLite names only indexes on expressions
        match = re.search(r"constraint failed: index '(\w+)'", str(driver_error))
        name = match.group(1) if match else None
    return name
