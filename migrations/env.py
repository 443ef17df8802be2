"""Alembic's entry: migrates MIGRATION_DATABASE_URL to the models of `app/registry.py`, one job at a time."""

import asyncio
import logging
from time import monotonic
from typing import Literal
from zlib import crc32

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, DateTime, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app import preflight, registry
from app.database import Base, make_engine
from app.database.budget import MIGRATE
from app.errors import HeadroomError, MigrationLockTimeout
from app.observability.logging import configure_logging
from app.settings import Settings, load_settings

logger = logging.getLogger("headroom.migrations")

assert registry  # importing it has put the tables of every domain into the metadata

LOCK = crc32(b"headroom migrations")
LOCK_POLL_SECONDS = 0.2
GRANT = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'headroom_monitor') AND to_regclass('alembic_version') IS NOT NULL
    THEN
        GRANT SELECT ON alembic_version TO headroom_monitor;
    END IF;
END
$$
"""
# They change nothing, and are what an operator wants to run while a migration is stuck.
READ_ONLY_COMMANDS = {"check", "current", "history", "show"}


def in_models(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Whether a difference counts as drift. The search indexes do not: they depend on what the server has."""
    return not (kind == "index" and reflected and name is not None and name.endswith("_trgm"))


def render(kind: str, item: object, autogenerate: object) -> str | Literal[False]:
    """How a revision spells an object; False leaves it to Alembic, which would spell our variant for SQLite, too."""
    if kind == "type" and isinstance(item, DateTime):
        return f"sa.DateTime(timezone={item.timezone})"
    return False


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=in_models,
        render_item=render,
        # Each revision is a transaction of its own, so that one of them can use `autocommit_block()` for
        # CREATE INDEX CONCURRENTLY, and what has been applied stays applied.
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def take_lock(connection: AsyncConnection, seconds: float) -> None:
    """Wait until no other job migrates this database. Held until the connection closes.

    It polls, in autocommit, on a connection of its own. `pg_advisory_lock` would wait inside a statement, and with it
    hold the snapshot that a CREATE INDEX CONCURRENTLY of the other job waits for: both would hang.
    Raises MigrationLockTimeout after `seconds`.
    """
    deadline = monotonic() + seconds
    waiting = False
    while not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}):
        if monotonic() >= deadline:
            raise MigrationLockTimeout(f"another migration job has held the lock for more than {seconds:g} s")
        if not waiting:
            logger.info("waiting for another migration job")
            waiting = True
        await asyncio.sleep(LOCK_POLL_SECONDS)


async def run(settings: Settings) -> None:
    url = settings.require_migration_database_url()
    if command() not in READ_ONLY_COMMANDS:
        await preflight.wait_for(url, settings.startup_timeout)
        await preflight.check_budget(settings)
    engine = make_engine(
        url=url,
        application_name="headroom:migrate",
        pool_size=MIGRATE.direct,  # the lock's and the migration's
        max_overflow=0,
    )
    try:
        async with engine.connect() as connection:
            if command() not in READ_ONLY_COMMANDS and engine.dialect.name == "postgresql":
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await take_lock(connection, settings.migration_lock_timeout)
            async with engine.connect() as migration:
                await migration.run_sync(migrate)
                if command() not in READ_ONLY_COMMANDS and engine.dialect.name == "postgresql":
                    await let_the_exporter_see(migration)
    finally:
        await engine.dispose()


async def let_the_exporter_see(connection: AsyncConnection) -> None:
    """Which revisions there are, and nothing else of ours. The table is Alembic's: no revision makes it.

    No `connection.begin()`: where there was nothing to migrate, Alembic leaves the transaction open that it read in.
    """
    await connection.execute(text(GRANT))
    await connection.commit()


def command() -> str | None:
    """The name of Alembic's command; None when it is called from Python."""
    options = context.config.cmd_opts
    return options.cmd[0].__name__ if options is not None else None


def main() -> None:
    try:
        settings = load_settings()
        if context.is_offline_mode():
            context.configure(
                url=settings.require_migration_database_url(),
                target_metadata=Base.metadata,
                literal_binds=True,
                transaction_per_migration=True,
            )
            with context.begin_transaction():
                context.run_migrations()
        else:
            configure_logging(format=settings.log_format, level=settings.log_level)
            asyncio.run(run(settings))
    except HeadroomError as error:
        # Alembic prints a CommandError as one line and exits with a status other than 0.
        raise CommandError(str(error)) from error


main()
