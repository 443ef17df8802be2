"""What is found out before anything starts: whether the connections fit, and whether the schema is there."""

import asyncio
import logging
import sys
from pathlib import Path
from time import monotonic

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import URL, Connection, inspect, text

from app.errors import BudgetExceeded, DatabaseUnavailable, SchemaMismatch
from app.limits import RETRY_SECONDS, asked, brief_connection
from app.settings import Settings

logger = logging.getLogger("headroom.preflight")

ROOT = Path(__file__).parent.parent


async def check_budget(settings: Settings) -> None:
    """Print the table and raise BudgetExceeded if the connections do not fit, or only say so with DB_BUDGET=warn.

    Waits up to STARTUP_TIMEOUT for the server, and the pooler, to be asked.
    """
    if settings.db_budget == "off":
        return
    facts = await asked(settings, monotonic() + settings.startup_timeout)
    for each in (*facts.remarks, *facts.budget.warnings):
        logger.warning("connection budget: %s", each)
    if not facts.budget.over:
        worst = min(facts.budget.inequalities, key=lambda each: each.headroom)
        logger.info("connection budget: %d of %d %s, %d left", worst.demand, worst.supply, worst.name, worst.headroom)
    elif settings.db_budget == "warn":
        logger.warning("%s", "\n".join(facts.budget.complaints))
    else:
        print(facts.budget.table(), *facts.notes, sep="\n", file=sys.stderr, flush=True)
        raise BudgetExceeded("\n".join(facts.budget.complaints))


async def wait_for(url: URL, seconds: float) -> None:
    """Until the database answers. Raises DatabaseUnavailable, with the last reason, where it does not in time."""
    deadline = monotonic() + seconds
    while True:
        try:
            async with brief_connection(url):
                return
        except DatabaseUnavailable:
            if monotonic() >= deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def check_schema(settings: Settings) -> None:
    """Wait up to STARTUP_TIMEOUT until the database is at this code's revision; SchemaMismatch if it is not, then.

    A database that does not answer is left for /readyz to report: the API may start while it is away.
    """
    url = settings.require_database_url()
    wanted = set(_scripts().get_heads())
    deadline = monotonic() + settings.startup_timeout
    try:
        await wait_for(url, settings.startup_timeout)
        while (found := await _revisions(url)) != wanted:
            if monotonic() >= deadline:
                raise SchemaMismatch(
                    f"the database is at revision {_listed(found)}, this code needs {_listed(wanted)}: "
                    "run `alembic upgrade head` (`make migrate`)"
                )
            await asyncio.sleep(RETRY_SECONDS)
    except DatabaseUnavailable as error:
        logger.warning("the schema was not checked: %s", error)


def pending(revisions: set[str]) -> int:
    """How many revisions of this code a database at these revisions does not have; 0 if it is ahead of the code."""
    scripts = _scripts()
    try:
        missing = list(scripts.iterate_revisions("heads", tuple(revisions) or "base"))
    except RevisionError:  # it has one that this code does not know: a newer release has migrated it
        return 0
    return len(missing)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml"))


async def before_start(settings: Settings) -> None:
    """Everything the API wants to know before its first worker is forked. Raises BudgetExceeded, SchemaMismatch."""
    await check_schema(settings)  # first: it is what waits for the database
    await check_budget(settings)


async def _revisions(url: URL) -> set[str]:
    def read(connection: Connection) -> set[str]:
        if not inspect(connection).has_table("alembic_version"):
            return set()
        return set(connection.scalars(text("SELECT version_num FROM alembic_version")))

    async with brief_connection(url) as connection:
        return await connection.run_sync(read)


def _listed(revisions: set[str]) -> str:
    return ", ".join(sorted(revisions)) or "none"
