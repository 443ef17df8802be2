"""The error tree. Everything that Headroom raises on purpose is a HeadroomError.

HeadroomError
├── ConfigurationError        a setting is missing, malformed or contradicts another one
├── BudgetExceeded            more connections could be opened than the server, or the pooler, admits
├── SchemaMismatch            the database is not at the revision that this code needs
├── MigrationLockTimeout      another migration job held the lock for too long
├── LocalStackFailed          a part of `headroom up` did not start, or ended by itself
├── DomainError               the request cannot be done; the client can do something about it
│   ├── NotAuthenticated      it is not known who asks
│   ├── Forbidden             it is known, and not allowed
│   ├── TooManyAttempts       it was tried too often
│   ├── NotFound              the thing that was asked for does not exist
│   ├── Conflict              it contradicts something that already exists
│   └── InvalidInput          well-formed, but the database cannot store it
└── TemporaryError            the request could not be done now; the same request may work later
    ├── ServerBusy            too many passwords wait to be hashed
    └── TransientDatabaseError    it is the database, or the way to it
        ├── PoolExhausted         no connection became free before the deadline
        ├── DatabaseUnavailable   the server cannot be reached, or hung up
        └── StatementTimeout      the server gave up on a statement, or on a lock it waited for

A domain derives its own leaves next to its models (`app/domains/*/errors.py`). `slug` and `title` are what a client
reads of a leaf in a problem answer; which HTTP status they get is `app/web/problems.py`'s business.
"""

from typing import ClassVar


class HeadroomError(Exception):
    """Root of the tree. The message is for the log; a client reads it only of a DomainError."""


class ConfigurationError(HeadroomError):
    """A setting is missing, malformed or contradicts another one. Each line of the message starts with its name."""


class BudgetExceeded(HeadroomError):
    """More connections could be opened than there are. A line for each limit, with both numbers and every term."""


class SchemaMismatch(HeadroomError):
    """The database is not at the revision that this code needs."""


class MigrationLockTimeout(HeadroomError):
    """Another migration job held the advisory lock for longer than MIGRATION_LOCK_TIMEOUT."""


class LocalStackFailed(HeadroomError):
    """A part of `headroom up` did not start, or ended by itself."""


class DomainError(HeadroomError):
    """The request cannot be done; the message tells the client why."""

    slug: ClassVar[str]
    title: ClassVar[str]


class NotAuthenticated(DomainError):
    slug = "not-authenticated"
    title = "Not authenticated"

    def __init__(self, message: str = "Sign in first.") -> None:
        super().__init__(message)


class Forbidden(DomainError):
    slug = "forbidden"
    title = "Forbidden"


class TooManyAttempts(DomainError):
    """`retry_after`, in seconds, is when the next one is let through."""

    slug = "too-many-attempts"
    title = "Too many attempts"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many attempts. Try again in {retry_after} s.")
        self.retry_after = retry_after


class NotFound(DomainError):
    slug = "not-found"
    title = "Not found"


class Conflict(DomainError):
    slug = "conflict"
    title = "Conflict"


class InvalidInput(DomainError):
    slug = "validation-error"
    title = "Invalid input"


class TemporaryError(HeadroomError):
    """The request could not be done now; the same request may work after `retry_after` seconds."""

    slug: ClassVar[str]
    title: ClassVar[str]
    detail: ClassVar[str]
    retry_after: ClassVar[int] = 1


class ServerBusy(TemporaryError):
    slug = "server-busy"
    title = "The server is busy"
    detail = "Too many requests of this kind are waiting. Try again shortly."


class TransientDatabaseError(TemporaryError):
    """It is the database, or the way to it."""


class PoolExhausted(TransientDatabaseError):
    slug = "pool-exhausted"
    title = "All database connections are in use"
    detail = "No database connection became free in time. Try again shortly."


class DatabaseUnavailable(TransientDatabaseError):
    slug = "database-unavailable"
    title = "The database is unavailable"
    detail = "The database cannot be reached at the moment. Try again shortly."


class StatementTimeout(TransientDatabaseError):
    slug = "statement-timeout"
    title = "The database took too long"
    detail = "The database gave up on this request. Try again shortly."
