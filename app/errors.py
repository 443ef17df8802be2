"""The error tree. Every exception that Headroom raises on purpose is a HeadroomError.

HeadroomError
├── ConfigurationError        a setting is missing, malformed or contradicts another setting
├── BudgetExceeded            the configuration allows more connections than the server or the pooler accepts
├── SchemaMismatch            this code may not run on the database's schema
├── MigrationFailed           a migration was not applied
│   └── MigrationLockTimeout      another migration job held the lock for too long
├── LocalStackFailed          a process of `headroom up` did not start, or exited
├── DomainError               the request is refused, and the client can correct it
│   ├── NotAuthenticated      the request does not say who sends it
│   ├── Forbidden             the caller is known, but not allowed to do this
│   ├── TooManyAttempts       the caller reached the limit of failed attempts
│   ├── NotFound              the requested resource does not exist
│   ├── Conflict              the request contradicts existing data
│   └── InvalidInput          a value of the request is not valid
└── TemporaryError            the request failed, and the same request may succeed later
    ├── ServerBusy            a queue of this process is full
    ├── NotReady              the replica is starting or stopping
    ├── DeadlineExceeded      the time that the client allows for the request has passed
    └── TransientDatabaseError    the cause is the database or the network
        ├── PoolExhausted         no connection was free before the deadline
        ├── DatabaseUnavailable   the server cannot be reached, or closed the connection
        ├── StatementTimeout      the server cancelled a statement at its statement or lock timeout
        ├── OutcomeUnknown        the connection was lost after COMMIT was sent
        ├── TransactionConflict   the server rolled a transaction back because of a concurrent one
        └── SchemaChanged         a schema change made a prepared statement invalid

A domain derives its own errors in `app/domains/*/errors.py`. `slug` and `title` of an error are sent to the client in a
problem response. `app/web/problems.py` maps errors to HTTP statuses.
"""

from typing import ClassVar

from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeoutError


class HeadroomError(Exception):
    """Root of the tree. The message is for the log; only a DomainError's message is sent to the client."""


class ConfigurationError(HeadroomError):
    """A setting is missing, malformed or contradicts another one. Each line of the message starts with its name."""


class BudgetExceeded(HeadroomError):
    """The configuration allows too many connections. The message has one line per limit, with the full calculation."""


class SchemaMismatch(HeadroomError):
    """This code may not run on the database's schema. The message says why, and what to do."""


class MigrationFailed(HeadroomError):
    """A migration was not applied. The message has a few lines: the revision, the reason, the statement, what to do."""


class MigrationLockTimeout(MigrationFailed):
    """Another migration job held the advisory lock for longer than MIGRATION_LOCK_TIMEOUT."""


class LocalStackFailed(HeadroomError):
    """A process of `headroom up` did not start, or exited."""


class DomainError(HeadroomError):
    """The request is refused. The message, which is sent to the client, says why."""

    slug: ClassVar[str]
    title: ClassVar[str]


class NotAuthenticated(DomainError):
    """The request does not say who sends it, or not validly."""

    slug = "not-authenticated"
    title = "Not authenticated"

    def __init__(self, message: str = "This request needs an access token.") -> None:
        super().__init__(message)


class Forbidden(DomainError):
    """The caller is known, but not allowed to do this."""

    slug = "forbidden"
    title = "Forbidden"


class TooManyAttempts(DomainError):
    """The caller reached the limit of failed attempts. The next attempt is allowed after `retry_after` seconds."""

    slug = "too-many-attempts"
    title = "Too many attempts"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many attempts. Try again in {retry_after} s.")
        self.retry_after = retry_after


class NotFound(DomainError):
    """The requested resource does not exist."""

    slug = "not-found"
    title = "Not found"


class Conflict(DomainError):
    """The request contradicts existing data."""

    slug = "conflict"
    title = "Conflict"


class InvalidInput(DomainError):
    """A value of the request is not valid, or the database cannot store it."""

    slug = "validation-error"
    title = "Invalid input"


class TemporaryError(HeadroomError):
    """The request failed. The same request may succeed after `retry_after` seconds.

    None: the client must first find out what the request has done.
    """

    slug: ClassVar[str]
    title: ClassVar[str]
    detail: ClassVar[str]
    retry_after: ClassVar[int | None] = 1


class ServerBusy(TemporaryError):
    """A queue of the process is full."""

    slug = "server-busy"
    title = "The server is busy"
    detail = "The queue for this kind of request is full. Try again shortly."


class NotReady(TemporaryError):
    """The replica is starting or stopping. The message says which."""

    slug = "not-ready"
    title = "Not ready"
    detail = "This replica is starting or stopping. Use another one."


class DeadlineExceeded(TemporaryError):
    """The time that the client allows for the request has passed. Nothing was stored."""

    slug = "deadline-exceeded"
    title = "The deadline of the request has passed"
    detail = (
        "The request was not completed within its Request-Timeout, and nothing was stored. Try again with more time."
    )


class TransientDatabaseError(TemporaryError):
    """The cause is the database or the network."""


class PoolExhausted(TransientDatabaseError, SQLAlchemyTimeoutError):
    """No connection was free before the deadline, or the queue for one was full.

    SQLAlchemy's own pools raise its TimeoutError then, so code that knows them handles this one too.
    """

    slug = "pool-exhausted"
    title = "All database connections are in use"
    detail = "No database connection was free in time. Try again shortly."


class DatabaseUnavailable(TransientDatabaseError):
    """The server cannot be reached, or closed the connection."""

    slug = "database-unavailable"
    title = "The database is unavailable"
    detail = "The database cannot be reached at the moment. Try again shortly."


class StatementTimeout(TransientDatabaseError):
    """The server cancelled a statement at its statement or lock timeout."""

    slug = "statement-timeout"
    title = "The database statement timed out"
    detail = "The database did not complete this request in time. Try again shortly."


class OutcomeUnknown(TransientDatabaseError):
    """The connection was lost after COMMIT was sent: the transaction was committed, or it was rolled back."""

    slug = "outcome-unknown"
    title = "The outcome of the request is unknown"
    detail = (
        "The connection to the database was lost while the request was being stored, so it may or may not have taken "
        "effect. Check before you repeat it."
    )
    retry_after = None


class TransactionConflict(TransientDatabaseError):
    """The server rolled a transaction back because of a concurrent one: a serialization failure or a deadlock."""

    slug = "transaction-conflict"
    title = "The transaction conflicted with another one"
    detail = "Another request changed the same data at the same time, and nothing was changed by this one. Try again."


class SchemaChanged(TransientDatabaseError):
    """A schema change made a prepared statement invalid, in a transaction that had already done something."""

    slug = "schema-changed"
    title = "The database schema changed"
    detail = "The database was changed during this request, and nothing was changed by the request. Try again."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
