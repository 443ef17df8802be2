"""Changes of the schema, made by a migration job of the checkout as in a deploy."""

import json
import shutil
from functools import partial
from textwrap import indent

from alembic.config import Config
from alembic.script import ScriptDirectory

from benchmarks.fault.faults.registry import fault as register
from benchmarks.fault.topology import migrate, owner_url
from benchmarks.fault.trial import Trial

fault = partial(register, group="Migration")

REVISION = '''"""A change of the schema

Revises: {before}
"""

from alembic import op

revision: str = "{revision}"
down_revision: str = "{before}"


def upgrade() -> None:
{body}


def downgrade() -> None:
    pass
'''


def run_migration(trial: Trial, revision: str, body: str) -> None:
    """Add a revision to a copy of the checkout's revisions, and run the migration job on them."""
    topology = trial.topology
    project = topology.directory / "project"
    if not project.exists():
        project.mkdir()
        shutil.copy(topology.checkout / "pyproject.toml", project)
        shutil.copytree(topology.checkout / "migrations", project / "migrations")
    before = ScriptDirectory.from_config(_config(str(project / "migrations"))).get_current_head()
    text = REVISION.format(revision=revision, before=before, body=indent(body, "    "))
    (project / f"migrations/versions/{revision}.py").write_text(text)
    # The job gets what it gets in compose.prod.yml: its own URL, and the API's, which leads to PgBouncer.
    settings = topology.settings() | {"MIGRATION_DATABASE_URL": owner_url(topology.primary)}
    if topology.is_pooled:
        settings |= topology.pgbouncer.migration_settings()
    migrate(topology.checkout, project, topology.directory, settings)


def _config(location: str) -> Config:
    config = Config()
    config.set_main_option("script_location", location)
    return config


def run_statement(trial: Trial, revision: str, statement: str) -> None:
    """Run a migration of one statement."""
    run_migration(trial, revision, f"op.execute({json.dumps(statement)})")


@fault("column added")
def add_column(trial: Trial) -> None:
    run_statement(trial, "fault0000001", "ALTER TABLE posts ADD COLUMN note text NOT NULL DEFAULT ''")


@fault("column added and dropped")
def drop_column(trial: Trial) -> None:
    run_statement(trial, "fault0000001", "ALTER TABLE posts ADD COLUMN note text NOT NULL DEFAULT ''")
    run_statement(trial, "fault0000002", "ALTER TABLE posts DROP COLUMN note")


@fault("column widened")
def widen_column(trial: Trial) -> None:
    run_statement(trial, "fault0000001", "ALTER TABLE posts ALTER COLUMN title TYPE varchar(400)")


@fault("column's type changed")
def change_type(trial: Trial) -> None:
    run_statement(trial, "fault0000001", "ALTER TABLE posts ALTER COLUMN title TYPE text")


@fault("index created")
def create_index(trial: Trial) -> None:
    body = (
        "with op.get_context().autocommit_block():\n"
        '    op.execute("CREATE INDEX CONCURRENTLY fault_index ON posts (title, author_id)")'
    )
    run_migration(trial, "fault0000001", body)
