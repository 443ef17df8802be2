"""Which revision the database is at, which one this release has, and whether this release may run on that schema.

Each revision is `additive` or `contracting`. A contracting one may name the oldest revision whose code may still run.
The table `schema_revisions` lists the applied revisions with their kinds, for releases that do not have the files of
newer revisions. Migrations maintain it (migrations/history.py). See docs/decisions/0023-schema-versions.md and
docs/decisions/0026-expand-and-contract.md.
"""

import logging
from collections.abc import Sequence
from enum import Enum
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.errors import DatabaseUnavailable, MigrationFailed, SchemaMismatch
from app.paths import PYPROJECT
from app.polling import poll

logger = logging.getLogger("headroom.check")

ADDITIVE = "additive"
CONTRACTING = "contracting"
KINDS = (ADDITIVE, CONTRACTING)
HISTORY_TABLE = "schema_revisions"
# Progress of back-fills (migrations/backfill.py). The first back-fill that changes a row creates this table.
BACKFILLS_TABLE = "schema_backfills"

_HAS_TABLES = (
    "SELECT to_regclass('alembic_version') IS NOT NULL AS versions,"
    " to_regclass('schema_revisions') IS NOT NULL AS history"
)
_HEADS = "coalesce((SELECT array_agg(version_num::text ORDER BY version_num) FROM alembic_version), '{}') AS heads"
# A release without the column `oldest_that_may_run` may have created the table.
_HISTORY = (
    "coalesce((SELECT json_agg(json_build_array(revision, kind, release, checksum,"
    " to_jsonb(applied) ->> 'oldest_that_may_run') ORDER BY position)"
    " FROM schema_revisions AS applied), '[]') AS history"
)


class AppliedRevision(NamedTuple):
    """A row of `schema_revisions`: an applied revision, its kind, the release that applied it, and its checksum.

    `oldest` is the oldest revision whose code may run on a contracting revision; None means the revision itself.
    """

    revision: str
    kind: str
    release: str
    checksum: str
    oldest: str | None = None

    @property
    def needed(self) -> str | None:
        """Return the oldest revision whose code may run after this one; None if this one does not change that."""
        return None if self.kind == ADDITIVE else self.oldest or self.revision


class DatabaseSchema(NamedTuple):
    """What the database says about its schema.

    `heads` is empty if it was never migrated. `history` is in the order of application; None if a release without the
    table `schema_revisions` migrated the database.
    """

    heads: frozenset[str] = frozenset()
    history: tuple[AppliedRevision, ...] | None = None


class State(Enum):
    """The result of the comparison. The value is for people."""

    CURRENT = "the database is at the revision of this release"
    NEWER = "the database is newer, and this release may run on it"
    OLDER = "the database is older than this release"
    INCOMPATIBLE = "the database is newer, and this release may not run on it"
    DIVERGED = "the database is at a revision of another branch"
    UNKNOWN = "the database is at an unknown revision, and nothing says whether this release may run on it"


class Comparison(NamedTuple):
    """The schema of the database, compared with the revisions of this release.

    `pending` are the revisions of this release that the database lacks, `ahead` those that this release lacks, both
    oldest first. `oldest` is the oldest revision whose code may run on this schema; None if unknown. `remedy` says what
    to do if this release may not run, and is empty otherwise.
    """

    state: State
    code: tuple[str, ...]
    database: tuple[str, ...]
    pending: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()
    oldest: str | None = None
    remedy: str = ""

    @property
    def may_run(self) -> bool:
        """Return True if the programs of this release may run on the schema."""
        return self.state in (State.CURRENT, State.NEWER)

    def __str__(self) -> str:
        database, code = _listed(self.database), _listed(self.code)
        match self.state:
            case State.CURRENT:
                return f"the database is at revision {database}, the revision of this release"
            case State.NEWER:
                return (
                    f"the database is at revision {database}, newer than this release ({code}) and compatible with it; "
                    f"newer revisions: {_listed(self.ahead)}"
                )
            case State.OLDER:
                return f"the database is at revision {database}, this release needs {code}: {self.remedy}"
        return f"the database is at revision {database}, and this release ({code}) may not run on it: {self.remedy}"


def release() -> str:
    """Return the version of this release, as `schema_revisions` records it."""
    return version("headroom")


@cache
def scripts() -> ScriptDirectory:
    """Return the revisions of this release."""
    return ScriptDirectory.from_config(Config(toml_file=PYPROJECT))


def kind_of(script: Script) -> str:
    """Return the kind that a revision declares in its variable `kind`; the default is `additive`."""
    return str(getattr(script.module, "kind", ADDITIVE))


def oldest_of(script: Script, directory: ScriptDirectory) -> str | None:
    """Return the oldest revision whose code may run after a contracting revision; None means the revision itself.

    The revision declares it in its variable `oldest_that_may_run`. Raise MigrationFailed if it is none before it.
    """
    oldest = getattr(script.module, "oldest_that_may_run", None)
    if oldest is None:
        return None
    if kind_of(script) != CONTRACTING:
        raise MigrationFailed(f"revision {script.revision}: oldest_that_may_run is for contracting revisions only")
    if oldest not in (each.revision for each in ancestors(directory, [script.revision])):
        raise MigrationFailed(f"revision {script.revision}: oldest_that_may_run: no revision {oldest!r} is before it")
    return str(oldest)


async def database_schema(connection: AdminConnection) -> DatabaseSchema:
    """Return the revisions that the database is at, and its history. Raise DatabaseUnavailable."""
    [tables] = await connection.query(_HAS_TABLES)
    if not tables["versions"]:
        return DatabaseSchema()
    # One statement, so that a migration cannot commit between the two.
    [row] = await connection.query(f"SELECT {_HEADS}" + (f", {_HISTORY}" if tables["history"] else ""))
    history = tuple(AppliedRevision(*each) for each in row["history"]) if tables["history"] else None
    return DatabaseSchema(frozenset(row["heads"]), history)


def compare(database: DatabaseSchema, directory: ScriptDirectory | None = None) -> Comparison:
    """Compare the schema of the database with the revisions of this release, or with those of `directory`."""
    directory = directory or scripts()
    known = revisions(directory)
    code = tuple(sorted(directory.get_heads()))
    heads = tuple(sorted(database.heads))
    if set(heads) <= set(known):
        return _compare_known(directory, code, heads)

    history = database.history or ()
    applied = [each.revision for each in history]
    newer = [each for each in history if each.revision not in known]
    ahead = tuple(each.revision for each in newer)
    pending = tuple(revision for revision in known if revision not in applied) if history else ()
    result = Comparison(State.UNKNOWN, code, heads, pending=pending, ahead=ahead or heads)
    if not set(heads) <= set(applied):
        remedy = (
            f"it does not know that revision, and `{HISTORY_TABLE}` does not list it. Start the release that has "
            f"revision {_listed(heads)}, or run `alembic downgrade {_listed(code)}` with it"
        )
        return result._replace(remedy=remedy)
    result = result._replace(oldest=_oldest(history))
    if pending:
        return result._replace(state=State.DIVERGED, remedy=_remedy_diverged(history, code, heads, known))
    contracting = [each for each in newer if each.needed is not None and each.needed not in known]
    if not contracting:
        return result._replace(state=State.NEWER)
    return result._replace(state=State.INCOMPATIBLE, remedy=_remedy_incompatible(history, contracting))


def _compare_known(directory: ScriptDirectory, code: tuple[str, ...], heads: tuple[str, ...]) -> Comparison:
    """Compare with a database whose revisions this release has."""
    applied = _applied(directory, heads)
    state = State.CURRENT if heads == code else State.OLDER
    try:
        pending = [script.revision for script in directory.iterate_revisions("heads", heads or "base")]
    except RevisionError:  # revisions of branches that have not been merged
        pending = [revision for revision in code if revision not in heads]
    remedy = "run `alembic upgrade head` (`make migrate`)" if state is State.OLDER else ""
    return Comparison(state, code, heads, pending=tuple(reversed(pending)), oldest=_oldest(applied), remedy=remedy)


def ancestors(directory: ScriptDirectory, heads: Sequence[str]) -> list[Script]:
    """Return the revisions `heads` and all revisions before them, oldest first. Raise RevisionError."""
    if not heads:
        return []
    wanted = {script.revision for script in directory.iterate_revisions(tuple(heads), "base")}
    return [script for script in reversed(list(directory.walk_revisions())) if script.revision in wanted]


def revisions(directory: ScriptDirectory | None = None) -> list[str]:
    """Return the revisions of this release, or those of `directory`; oldest first."""
    return [script.revision for script in reversed(list((directory or scripts()).walk_revisions()))]


def oldest_after_upgrade(directory: ScriptDirectory | None = None) -> str | None:
    """Return the oldest revision whose code may run on the newest schema of this release, or of `directory`."""
    directory = directory or scripts()
    return _oldest(_applied(directory, directory.get_heads()))


def _applied(directory: ScriptDirectory, heads: Sequence[str]) -> list[AppliedRevision]:
    """Return the revisions up to `heads` as the database records them."""
    return [
        AppliedRevision(script.revision, kind_of(script), release(), "", oldest_of(script, directory))
        for script in ancestors(directory, heads)
    ]


def _oldest(applied: Sequence[AppliedRevision]) -> str | None:
    """Return the oldest revision whose code may run; None without revisions. `applied` are oldest first."""
    revisions = [each.revision for each in applied]
    needed = [each.needed for each in applied if each.needed in revisions]
    return max(needed, key=revisions.index, default=revisions[0] if revisions else None)


def _remedy_incompatible(history: Sequence[AppliedRevision], contracting: Sequence[AppliedRevision]) -> str:
    first = contracting[0]
    needed = next((each for each in history if each.revision == _oldest(history)), first)
    before = history[history.index(first) - 1].revision if history.index(first) else "base"
    return (
        f"revision {first.revision} is contracting. Start a release that has revision {needed.revision} (release "
        f"{needed.release} applied it). To keep this release, run `alembic downgrade {before}` with release "
        f"{history[-1].release}: that deletes the data of the reverted revisions"
    )


def _remedy_diverged(
    history: Sequence[AppliedRevision], code: Sequence[str], heads: Sequence[str], known: Sequence[str]
) -> str:
    common = "base"
    for each in history:
        if each.revision not in known:
            break
        common = each.revision
    return (
        f"it comes from another branch, which lacks revision {_listed(code)}. Run `alembic downgrade {common}` with "
        f"the code that has revision {_listed(heads)}, then `alembic upgrade head` with this release"
    )


async def check_schema(url: URL, *, deadline: float, application_name: str) -> None:
    """Wait until this release may run on the database's schema. Raise SchemaMismatch if it may not.

    Waits for the database and for pending migrations until `deadline` (on the clock of time.monotonic()); a newer
    incompatible schema is an error at once. If the database has not answered by then, log a warning and return:
    `/readyz` reports that, and the API may start first. A schema that was too old in the last answer remains an error.
    """
    comparison: Comparison | None = None

    async def attempt() -> DatabaseUnavailable | None:
        nonlocal comparison
        try:
            comparison = compare(await database_schema(connection))
        except DatabaseUnavailable as error:
            return error
        return None

    def is_final(error: DatabaseUnavailable | None) -> bool:
        return error is None and comparison is not None and comparison.state is not State.OLDER

    async with AdminConnection(url, application_name=application_name) as connection:
        error = await poll(attempt, until=is_final, deadline=deadline)
    if comparison is None:
        logger.warning(
            "the schema was not checked, and the program starts anyway: %s; run `headroom schema` later", error
        )
        return
    if not comparison.may_run:
        raise SchemaMismatch(str(comparison))
    if comparison.state is State.NEWER:
        logger.info("%s", comparison)


def _listed(revisions: Sequence[str]) -> str:
    return ", ".join(revisions) or "none"
