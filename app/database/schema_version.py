"""Which revision the database is at, and which one this release needs."""

import logging
from functools import cache

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection, wait_until_available
from app.errors import DatabaseUnavailable, SchemaMismatch
from app.paths import PYPROJECT
from app.polling import poll

logger = logging.getLogger("headroom.check")

_HAS_TABLE = "SELECT to_regclass('alembic_version') IS NOT NULL AS has_table"
_REVISIONS = "SELECT version_num FROM alembic_version"


async def applied_revisions(connection: AdminConnection) -> set[str]:
    """Return the revisions that the database is at; empty if it was never migrated. Raise DatabaseUnavailable."""
    [table] = await connection.query(_HAS_TABLE)
    if not table["has_table"]:
        return set()
    return {row["version_num"] for row in await connection.query(_REVISIONS)}


def pending_revisions(applied: set[str]) -> int:
    """Return how many revisions of this release a database at the revisions `applied` lacks; 0 if it is ahead."""
    try:
        missing = list(_scripts().iterate_revisions("heads", tuple(applied) or "base"))
    except RevisionError:  # a revision of a newer release
        return 0
    return len(missing)


async def check_schema(url: URL, *, deadline: float, application_name: str) -> None:
    """Wait until the database is at this release's revision, and raise SchemaMismatch if it is not by `deadline`.

    The deadline is on the clock of time.monotonic(). If the database does not answer, log a warning and return:
    `/readyz` reports that, and the API may start first.
    """
    needed = set(_scripts().get_heads())
    try:
        await wait_until_available(url, deadline=deadline, application_name=application_name)
        async with AdminConnection(url, application_name=application_name) as connection:
            applied = await poll(
                lambda: applied_revisions(connection),
                until=lambda applied: applied == needed,
                deadline=deadline,
            )
    except DatabaseUnavailable as error:
        logger.warning("schema not checked: %s", error)
        return
    if applied != needed:
        raise SchemaMismatch(
            f"the database is at revision {_listed(applied)}, this release needs {_listed(needed)}: "
            "run `alembic upgrade head` (`make migrate`)"
        )


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(toml_file=PYPROJECT))


def _listed(revisions: set[str]) -> str:
    return ", ".join(sorted(revisions)) or "none"
