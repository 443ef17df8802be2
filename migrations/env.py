"""Alembic's environment: migrate MIGRATION_DATABASE_URL to the models of `app/registry.py`, one job at a time."""

import asyncio
import logging
import re
import signal
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from app import registry
from app.budget.check import check_budget
from app.budget.model import MIGRATE
from app.database import Base, PoolOptions, make_engine
from app.database.admin_connection import reconnect_pgbouncer, refuse_pooler, require_owner, wait_until_available
from app.database.schema_version import State, compare
from app.errors import DatabaseUnavailable, HeadroomError, MigrationFailed, SchemaMismatch
from app.observability.logging import configure_logging
from app.settings import Settings, load_settings
from migrations import history
from migrations.autogenerate import OPTIONS
from migrations.runner import Limits, Runner, acquire_lock, configure_session

logger = logging.getLogger("headroom.migrations")

assert registry  # its import registers the tables of every domain with the metadata

APPLICATION_NAME = "headroom:migrate"
# Commands that change nothing. An operator must be able to run them while a migration is stuck: they take no lock.
READ_ONLY_COMMANDS = {"check", "current", "history", "show"}


def migrate(connection: Connection, applied: list[MigrationInfo]) -> None:
    """Run Alembic's command on the connection. Append each step that it applies to `applied`."""

    def on_version_apply(
        ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
    ) -> None:
        applied.append(step)
        if connection.dialect.name == "postgresql":
            history.record(ctx, step, heads, run_args)

    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        **OPTIONS,
        # One transaction for each revision: `autocommit_block()` can then be used for CREATE INDEX CONCURRENTLY, and
        # applied revisions stay applied.
        transaction_per_migration=True,
        on_version_apply=on_version_apply,
    )
    with context.begin_transaction():
        context.run_migrations()


def prepare(connection: Connection) -> bool:
    """Prepare the history for Alembic's command; return False if the command has nothing to do.

    Raise SchemaMismatch if the database is at a revision that this release does not know. An exception is
    `upgrade head` on a newer compatible schema: the migration job of an older release must succeed, so that the release
    can be started again after a rollback.
    """
    database = history.database_schema(connection)
    comparison = compare(database, context.script)
    if not comparison.ahead:
        history.prepare(connection, context.script, database)
        return True
    if comparison.state is State.NEWER and _upgrades_to_head(comparison.code):
        logger.info("nothing to do: %s", comparison)
        return False
    raise SchemaMismatch(
        f"{comparison}; only `alembic upgrade head` is possible with this release"
        if comparison.may_run
        else str(comparison)
    )


def _upgrades_to_head(heads: Sequence[str]) -> bool:
    if command() not in (None, "upgrade"):
        return False
    try:
        requested = context.get_revision_argument()
    except (KeyError, CommandError):  # the command has no such argument, or it is not a revision of this release
        return False
    return set(heads) == ({requested} if isinstance(requested, str) else set(requested or ()))


def is_relative() -> bool:
    """Return True if the target counts steps, as -2 does: from the database's revision, which each step changes."""
    options = context.config.cmd_opts
    return re.fullmatch(r"[+-]\d+", str(getattr(options, "revision", ""))) is not None


async def run(settings: Settings, url: URL) -> None:
    """Check what a migration needs, take the lock, and run Alembic's command. Raise HeadroomError."""
    changes_schema = command() not in READ_ONLY_COMMANDS
    is_postgresql = url.get_backend_name() == "postgresql"
    if changes_schema:
        deadline = monotonic() + settings.startup_timeout
        if is_postgresql:
            await wait_until_available(url, deadline=deadline, application_name=APPLICATION_NAME)
            variable = settings.migration_database_variable
            await refuse_pooler(url, variable=variable, application_name=APPLICATION_NAME)
        await check_budget(settings, deadline=deadline)
        if is_postgresql:
            await require_owner(url, variable=variable, application_name=APPLICATION_NAME)
    # One connection for the lock and one for the migration.
    engine = make_engine(
        url=url, application_name=APPLICATION_NAME, pool=PoolOptions(size=MIGRATE.direct, max_overflow=0)
    )
    applied: list[MigrationInfo] = []
    try:
        if not (changes_schema and is_postgresql):
            async with engine.connect() as connection:
                await connection.run_sync(migrate, applied)
            return
        async with engine.connect() as lock:
            await lock.execution_options(isolation_level="AUTOCOMMIT")
            await configure_session(lock)
            await acquire_lock(lock, settings.migration_lock_timeout)
            async with engine.connect() as connection:
                if not await connection.run_sync(prepare):
                    return
            limits = Limits(
                lock=settings.migration_ddl_lock_timeout,
                retry=settings.migration_retry_timeout,
                revision=settings.migration_revision_timeout,
            )
            await Runner(engine, lock, limits).run(
                partial(migrate, applied=applied), may_repeat=lambda: not (applied and is_relative())
            )
            async with engine.connect() as connection:
                await after_migration(connection)
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


async def after_migration(connection: AsyncConnection) -> None:
    """Do what must follow a migration that changed the schema, while the job still holds the lock."""
    await connection.run_sync(history.grant_to_exporter)


async def run_until_terminated(settings: Settings, url: URL) -> None:
    """Run the command; on SIGTERM cancel the statement, roll back and raise MigrationFailed."""
    handles_signal = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # `headroom up` has handlers of its own
    )
    task = asyncio.current_task()
    assert task is not None
    if handles_signal:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await run(settings, url)
    except asyncio.CancelledError:
        if not handles_signal or not task.uncancel() == 0:
            raise
        raise MigrationFailed("stopped by SIGTERM; applied revisions stay applied") from None
    finally:
        if handles_signal:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def command() -> str | None:
    """Return the name of Alembic's command; None if Alembic is called from Python."""
    options = context.config.cmd_opts
    return options.cmd[0].__name__ if options is not None else None


def write_script(url: URL) -> None:
    """Write the SQL of Alembic's command to its output (`--sql`)."""
    context.configure(
        url=url,
        target_metadata=Base.metadata,
        literal_binds=True,
        transaction_per_migration=True,
        on_version_apply=history.record,
    )
    with context.begin_transaction():
        starting = context.get_starting_revision_argument()
        history.write_script(context.get_context(), starting if isinstance(starting, str) else None)
        context.run_migrations()


def main() -> None:
    """Run Alembic's command, online or offline."""
    try:
        settings = load_settings()
        url = settings.require_migration_database_url()
        if context.is_offline_mode():
            write_script(url)
        else:
            configure_logging(format=settings.log_format, level=settings.log_level)
            asyncio.run(run_until_terminated(settings, url))
    except HeadroomError as error:
        # Alembic prints a CommandError as its message alone, and exits with a non-zero status.
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        if command() is None:
            raise
        raise CommandError("interrupted; applied revisions stay applied") from None


main()
