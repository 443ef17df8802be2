"""Alembic's environment: migrate MIGRATION_DATABASE_URL to the models of `app/registry.py`, one job at a time."""

import asyncio
import logging
from time import monotonic
from typing import Any, Literal
from zlib import crc32

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, Connection, DateTime, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import registry
from app.budget.check import check_budget
from app.budget.model import MIGRATE
from app.database import Base, PoolOptions, make_engine
from app.database.admin_connection import reconnect_pgbouncer, wait_until_available
from app.errors import DatabaseUnavailable, HeadroomError, MigrationLockTimeout
from app.observability.logging import configure_logging
from app.polling import poll
from app.settings import Settings, load_settings

logger = logging.getLogger("headroom.migrations")

assert registry  # its import registers the tables of every domain with the metadata

APPLICATION_NAME = "headroom:migrate"
LOCK = crc32(b"headroom migrations")
LOCK_POLL_SECONDS = 0.2
GRANT_REVISIONS_TO_EXPORTER = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'headroom_monitor') AND to_regclass('alembic_version') IS NOT NULL
    THEN
        GRANT SELECT ON alembic_version TO headroom_monitor;
    END IF;
END
$$
"""
# Commands that change nothing. An operator must be able to run them while a migration is stuck: they take no lock.
READ_ONLY_COMMANDS = {"check", "current", "history", "show"}


def include_object(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Return True if a difference of this object counts as drift.

    The search indexes do not: whether they exist depends on the server's extensions.
    """
    return not (kind == "index" and reflected and name is not None and name.endswith("_trgm"))


def render_item(kind: str, item: object, autogenerate: object) -> str | Literal[False]:
    """Return the Python source of an object in a revision; False leaves it to Alembic.

    Alembic would render the SQLite variant of a timestamp too.
    """
    if kind == "type" and isinstance(item, DateTime):
        return f"sa.DateTime(timezone={item.timezone})"
    return False


def migrate(connection: Connection, applied: list[Any]) -> None:
    """Run Alembic's command on the connection. Append each step that it applies to `applied`."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=include_object,
        render_item=render_item,
        # One transaction for each revision: `autocommit_block()` can then be used for CREATE INDEX CONCURRENTLY, and
        # applied revisions stay applied.
        transaction_per_migration=True,
        on_version_apply=lambda step, **_: applied.append(step),
    )
    with context.begin_transaction():
        context.run_migrations()


async def acquire_lock(connection: AsyncConnection, seconds: float) -> None:
    """Wait until no other job migrates this database. The lock is held until the connection closes.

    Polls in autocommit mode on a connection of its own. `pg_advisory_lock` would wait inside a statement, and its
    snapshot would block the other job's CREATE INDEX CONCURRENTLY: both would hang.
    Raise MigrationLockTimeout after `seconds`.
    """
    attempts = 0

    async def attempt() -> bool:
        nonlocal attempts
        acquired = bool(await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}))
        attempts += 1
        if not acquired and attempts == 1:
            logger.info("waiting for another migration job")
        return acquired

    if not await poll(attempt, until=bool, deadline=monotonic() + seconds, every=LOCK_POLL_SECONDS):
        raise MigrationLockTimeout(f"another migration job has held the lock for more than {seconds:g} s")


async def run(settings: Settings, url: URL) -> None:
    """Check what a migration needs, take the lock, and run Alembic's command. Raise HeadroomError."""
    changes_schema = command() not in READ_ONLY_COMMANDS
    is_postgresql = url.get_backend_name() == "postgresql"
    if changes_schema:
        deadline = monotonic() + settings.startup_timeout
        if is_postgresql:
            await wait_until_available(url, deadline=deadline, application_name=APPLICATION_NAME)
        await check_budget(settings, deadline=deadline)
    # One connection for the lock and one for the migration.
    engine = make_engine(
        url=url, application_name=APPLICATION_NAME, pool=PoolOptions(size=MIGRATE.direct, max_overflow=0)
    )
    applied: list[Any] = []
    try:
        async with engine.connect() as connection:
            if changes_schema and is_postgresql:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await acquire_lock(connection, settings.migration_lock_timeout)
            async with engine.connect() as migration:
                await migration.run_sync(migrate, applied)
                if changes_schema and is_postgresql:
                    await grant_revisions_to_exporter(migration)
    finally:
        await engine.dispose()
        console = settings.known_pgbouncer_admin_url()
        if applied and console is not None:
            await renew_pooler(console)


async def renew_pooler(console: URL) -> None:
    """Have PgBouncer replace its server connections, whose prepared statements the migration may have made stale.

    A failure is logged: the API recovers without this, at the cost of one more round trip for each stale statement.
    """
    try:
        await reconnect_pgbouncer(console, application_name=APPLICATION_NAME)
    except DatabaseUnavailable as error:
        logger.warning(
            "PgBouncer keeps its server connections from before the migration: %s (set PGBOUNCER_ADMIN_URL to its"
            " console, as one of its admin_users, or run RECONNECT there)",
            error,
        )
    else:
        logger.info("PgBouncer renews its server connections")


async def grant_revisions_to_exporter(connection: AsyncConnection) -> None:
    """Let the exporter's role read `alembic_version`, which Alembic creates outside of every revision.

    Without `connection.begin()`: if nothing was pending, Alembic leaves its read transaction open.
    """
    await connection.execute(text(GRANT_REVISIONS_TO_EXPORTER))
    await connection.commit()


def command() -> str | None:
    """Return the name of Alembic's command; None if Alembic is called from Python."""
    options = context.config.cmd_opts
    return options.cmd[0].__name__ if options is not None else None


def main() -> None:
    """Run Alembic's command, online or offline."""
    try:
        settings = load_settings()
        url = settings.require_migration_database_url()
        if context.is_offline_mode():
            context.configure(
                url=url,
                target_metadata=Base.metadata,
                literal_binds=True,
                transaction_per_migration=True,
            )
            with context.begin_transaction():
                context.run_migrations()
        else:
            configure_logging(format=settings.log_format, level=settings.log_level)
            asyncio.run(run(settings, url))
    except HeadroomError as error:
        # Alembic prints a CommandError as one line, and exits with a non-zero status.
        raise CommandError(str(error)) from error


main()
