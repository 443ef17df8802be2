"""Maintains `schema_revisions`: one row for each applied revision, with its kind, its checksum and its release.

Releases that lack the files of newer revisions read there whether they may still run. The rows change in the
transaction of their revision, on upgrade and on downgrade. See docs/decisions/0023-schema-versions.md.
"""

import hashlib
import io
import logging
import tokenize
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, Executable
from sqlalchemy.dialects.postgresql import insert

from app.database.schema_version import (
    HISTORY_TABLE,
    KINDS,
    AppliedRevision,
    DatabaseSchema,
    ancestors,
    kind_of,
    oldest_of,
    release,
)
from app.errors import MigrationFailed

logger = logging.getLogger("headroom.migrations")

MONITOR_ROLE = "headroom_monitor"
# Not in the metadata of the models: it belongs to the migrations, as `alembic_version` does.
TABLE = sa.Table(
    HISTORY_TABLE,
    sa.MetaData(),
    sa.Column("revision", sa.String(32), nullable=False),
    sa.Column("position", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("kind", sa.Text(), nullable=False),
    sa.Column("checksum", sa.Text(), nullable=False),
    sa.Column("release", sa.Text(), nullable=False),
    sa.Column("oldest_that_may_run", sa.String(32)),
    sa.Column("applied_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    sa.PrimaryKeyConstraint("revision", name=f"pk_{HISTORY_TABLE}"),
)
_CREATE = sa.schema.CreateTable(TABLE, if_not_exists=True)
# The table of a release without the column.
_ADD_COLUMN = sa.text(f"ALTER TABLE {HISTORY_TABLE} ADD COLUMN IF NOT EXISTS oldest_that_may_run varchar(32)")
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_CLOSING = {")", "]", "}"}
# The exporter reads both tables. Its role may be missing: another server, another name.
_GRANT = f"""
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['alembic_version', '{HISTORY_TABLE}'] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{MONITOR_ROLE}') AND to_regclass(name) IS NOT NULL
        THEN
            EXECUTE format('GRANT SELECT ON %I TO {MONITOR_ROLE}', name);
        END IF;
    END LOOP;
END
$$
"""


def checksum(source: str) -> str:
    """Return a checksum of the code of a revision. Layout, comments, docstrings and trailing commas do not count."""
    # Not with `ast`: Python 3.11 cannot build its nodes in a greenlet.
    text: list[str] = []
    line: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if [each.type for each in line] != [tokenize.STRING]:
                text += (each.string for each in line)
            line = []
        elif token.type not in _LAYOUT:
            if token.string in _CLOSING and line and line[-1].string == ",":
                line.pop()
            line.append(token)
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def database_schema(connection: Connection) -> DatabaseSchema:
    """Return the revisions that the database is at, and its history. Ends the transaction."""
    inspector = sa.inspect(connection)
    heads: frozenset[str] = frozenset()
    history = None
    if inspector.has_table("alembic_version"):
        heads = frozenset(connection.scalars(sa.text("SELECT version_num FROM alembic_version")))
    if inspector.has_table(HISTORY_TABLE):
        columns = TABLE.c
        oldest: sa.ColumnClause[Any] = sa.literal_column(f"to_jsonb({HISTORY_TABLE}) ->> 'oldest_that_may_run'")
        rows = connection.execute(
            sa.select(columns.revision, columns.kind, columns.release, columns.checksum, oldest).order_by(
                columns.position
            )
        )
        history = tuple(AppliedRevision(*row) for row in rows)
    connection.commit()
    return DatabaseSchema(heads, history)


def prepare(connection: Connection, directory: ScriptDirectory, database: DatabaseSchema) -> None:
    """Create the table, or a column of it, if it is missing, and make its rows match `alembic_version`.

    They differ if a release without the table migrated the database. Also log the applied revisions that were edited.
    """
    expected = ancestors(directory, sorted(database.heads))
    recorded = {each.revision for each in database.history or ()}
    if database.history is None:
        connection.execute(_CREATE)
    elif not _has_all_columns(connection):
        connection.execute(_ADD_COLUMN)
    _delete(connection.execute, sorted(recorded - {script.revision for script in expected}))
    _insert(connection.execute, directory, [script for script in expected if script.revision not in recorded])
    connection.commit()
    for revision in edited(directory, database):
        logger.warning(
            "revision %s was edited after it was applied to this database; the edit has no effect here", revision
        )


def edited(directory: ScriptDirectory, database: DatabaseSchema) -> list[str]:
    """Return the applied revisions whose files differ from the recorded checksum."""
    files = {script.revision: script for script in directory.walk_revisions()}
    return [
        each.revision
        for each in database.history or ()
        if each.revision in files and checksum_of(files[each.revision]) != each.checksum
    ]


def checksum_of(script: Script) -> str:
    """Return the checksum of a revision's file."""
    return checksum(Path(script.path).read_text(encoding="utf-8"))


def record(ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]) -> None:
    """Add or delete the rows of a step. Alembic calls it in the transaction of the revision."""
    applied = ancestors(context.script, sorted(heads))
    if step.is_stamp:  # it can jump over revisions, in both directions
        _delete(ctx.execute, [script.revision for script in context.script.walk_revisions()])
        _insert(ctx.execute, context.script, applied)
    elif step.is_upgrade:
        _insert(ctx.execute, context.script, [script for script in applied if script.revision in step.up_revision_ids])
    else:
        _delete(ctx.execute, step.up_revision_ids)


def write_script(ctx: MigrationContext, starting_revision: str | None) -> None:
    """Write the statements of `prepare()` to the script of `--sql`."""
    ctx.execute(_CREATE)
    ctx.execute(_ADD_COLUMN)
    if starting_revision:
        applied = ancestors(context.script, [starting_revision])
        _delete(ctx.execute, [script.revision for script in applied])
        _insert(ctx.execute, context.script, applied)


def grant_to_exporter(connection: Connection) -> None:
    """Let the exporter's role read `alembic_version` and `schema_revisions`."""
    connection.execute(sa.text(_GRANT))
    connection.commit()


def _has_all_columns(connection: Connection) -> bool:
    columns = {column["name"] for column in sa.inspect(connection).get_columns(HISTORY_TABLE)}
    return columns.issuperset(TABLE.c.keys())


def _insert(execute: Callable[[Executable], object], directory: ScriptDirectory, applied: Iterable[Script]) -> None:
    for script in applied:
        kind = kind_of(script)
        if kind not in KINDS:
            raise MigrationFailed(f"revision {script.revision}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        row = {
            "revision": script.revision,
            "kind": kind,
            "checksum": checksum_of(script),
            "release": release(),
            "oldest_that_may_run": oldest_of(script, directory),
        }
        # A script (--sql) can be repeated after an interruption.
        update = {name: value for name, value in row.items() if name != "revision"}
        execute(insert(TABLE).values(row).on_conflict_do_update(index_elements=["revision"], set_=update))


def _delete(execute: Callable[[Executable], object], revisions: Sequence[str]) -> None:
    if revisions:
        execute(TABLE.delete().where(TABLE.c.revision.in_(revisions)))
