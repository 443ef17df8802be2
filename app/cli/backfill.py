"""`headroom backfill`: run a back-fill that a revision declares, or list them (migrations/backfill.py)."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import SQLAlchemyError

from app.database import PoolOptions, make_engine
from app.database.admin_connection import AdminConnection, refuse_pooler, wait_until_available
from app.database.schema_version import DatabaseSchema, ancestors, database_schema, scripts
from app.errors import ConfigurationError, HeadroomError, MigrationFailed
from app.observability.logging import configure_logging
from app.settings import Settings, load_settings
from migrations.backfill import Backfill, Progress, Throttle, progress, run
from migrations.runner import Limits, configure_session, description

APPLICATION_NAME = "headroom:backfill"

T = TypeVar("T")


def backfills() -> dict[str, tuple[str, Backfill]]:
    """Return the revisions that declare a back-fill, oldest first: their ids and back-fills, by name."""
    declared = (
        (script.revision, getattr(script.module, "backfill", None))
        for script in reversed(list(scripts().walk_revisions()))
    )
    return {each.name: (revision, each) for revision, each in declared if isinstance(each, Backfill)}


def list_backfills() -> None:
    """Print every back-fill with its revision and its progress. Raise DatabaseUnavailable."""
    settings = load_settings()
    url = _url(settings)
    known = backfills()

    async def query() -> tuple[DatabaseSchema, dict[str, Progress | None]]:
        schema = await _schema(url)
        return schema, await _connected(
            settings, url, lambda connection: {name: progress(connection, name) for name in known}
        )

    schema, rows = asyncio.run(query())
    for name, (revision, _) in known.items():
        print(f"{name:<30} {revision}  {_state(schema, revision, rows[name])}")


def run_backfill(name: str) -> None:
    """Run a back-fill to its end. Raise ConfigurationError, MigrationFailed, DatabaseUnavailable."""
    settings = load_settings()
    configure_logging(format=settings.log_format, level=settings.log_level)
    url = _url(settings)
    known = backfills()
    if name not in known:
        raise ConfigurationError(f"NAME: there is no back-fill {name}; there are: {', '.join(known) or 'none'}")
    revision, backfill = known[name]

    async def fill() -> Progress | None:
        await wait_until_available(
            url, deadline=monotonic() + settings.startup_timeout, application_name=APPLICATION_NAME
        )
        await refuse_pooler(url, variable=settings.migration_database_variable, application_name=APPLICATION_NAME)
        schema = await _schema(url)
        if _is_applied(schema, revision):
            return None
        if missing := _missing(schema, revision):
            raise MigrationFailed(f"{name}: apply revision {missing} first, which this back-fill needs")
        return await _connected(
            settings,
            url,
            lambda connection: run(
                connection,
                backfill,
                throttle=Throttle.of(settings),
                retry_seconds=settings.migration_retry_timeout,
            ),
        )

    try:
        result = asyncio.run(fill())
    except SQLAlchemyError as error:
        raise HeadroomError(f"{description(error, name)}\nrun it again: it continues where it stopped") from error
    if result is None:
        print(f"{name}: nothing to do, revision {revision} is applied")
    else:
        print(f"{name}: finished; {result.rows_read} rows read, {result.rows_changed} changed")


def _url(settings: Settings) -> URL:
    url = settings.require_migration_database_url()
    if url.get_backend_name() != "postgresql":
        variable = settings.migration_database_variable
        raise ConfigurationError(f"{variable}: must name a PostgreSQL database, got {url.get_backend_name()}")
    return url


async def _schema(url: URL) -> DatabaseSchema:
    async with AdminConnection(url, application_name=APPLICATION_NAME) as connection:
        return await database_schema(connection)


async def _connected(settings: Settings, url: URL, work: Callable[[Connection], T]) -> T:
    """Run `work` on a connection in autocommit mode, with the limits of a migration."""
    engine = make_engine(url=url, application_name=APPLICATION_NAME, pool=PoolOptions(size=1, max_overflow=0))
    limits = Limits(
        lock=settings.migration_ddl_lock_timeout,
        retry=settings.migration_retry_timeout,
        revision=settings.migration_revision_timeout,
    )
    try:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await configure_session(connection, limits)
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _is_applied(schema: DatabaseSchema, revision: str) -> bool:
    # Only `history` lists the ancestors of a revision that this release does not know.
    applied = {each.revision for each in schema.history or ()}
    known = [head for head in schema.heads if head in {script.revision for script in scripts().walk_revisions()}]
    return revision in applied | {script.revision for script in ancestors(scripts(), known)}


def _missing(schema: DatabaseSchema, revision: str) -> str | None:
    """Return the revision before `revision` if it is not applied."""
    script = scripts().get_revision(revision)
    before = str(script.down_revision) if script is not None and script.down_revision is not None else None
    return None if before is None or _is_applied(schema, before) else before


def _state(schema: DatabaseSchema, revision: str, row: Progress | None) -> str:
    if _is_applied(schema, revision):
        return "applied"
    if missing := _missing(schema, revision):
        return f"needs revision {missing}"
    if row is None:
        return "not started"
    state = "finished" if row.is_finished else f"stopped or running, at {row.position}"
    return f"{state}; {row.rows_read} rows read, {row.rows_changed} changed"
