"""Migrations: upgrade and downgrade, drift, concurrent jobs, and interrupted index builds."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL

from app.database.conninfo import parameters
from app.observability import logging as logging_module
from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.migrations import Release, fill, statements
from tests.support.postgres import PgBouncer, Server, as_role, connect
from tests.support.waiting import eventually

# Subprocesses run in `tmp_path`, where there is no `.env`, so they need the absolute path.
PYPROJECT = PROJECT_ROOT / "pyproject.toml"


@pytest.fixture
def target(empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """Return the URL of an empty database, and let Alembic migrate that one."""
    monkeypatch.setenv("MIGRATION_DATABASE_URL", empty_database.render_as_string(hide_password=False))
    return empty_database


def schema(url: URL) -> list[tuple[object, ...]]:
    """Return every column, constraint, index, enum and trigger, except those of PostgreSQL and Alembic."""
    with connect(url) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity"
            " FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> ALL (%(own)s)"
            " UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), contype::text, '', ''"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
            " AND conrelid::regclass::text <> ALL (%(own)s)"
            " UNION ALL SELECT tablename, indexname, indexdef, '', '', ''"
            " FROM pg_indexes WHERE schemaname = 'public' AND tablename <> ALL (%(own)s)"
            " UNION ALL SELECT typname, enumlabel, enumsortorder::text, '', '', ''"
            " FROM pg_enum JOIN pg_type ON pg_type.oid = enumtypid WHERE typnamespace = 'public'::regnamespace"
            " UNION ALL SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), pg_get_functiondef(tgfoid),"
            " '', '' FROM pg_trigger WHERE NOT tgisinternal"
            " ORDER BY 1, 2, 3",
            {"own": ["alembic_version", "schema_revisions", "schema_backfills"]},
        ).fetchall()


# Revisions that change only data.
DATA_REVISIONS = {"5c80d1e6f294"}


def revisions() -> list[str]:
    scripts = ScriptDirectory.from_config(Config(toml_file=PYPROJECT))
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def test_revisions_have_one_head(alembic_config: Config) -> None:
    assert len(ScriptDirectory.from_config(alembic_config).get_heads()) == 1


@pytest.mark.parametrize("revision", revisions())
def test_revision_can_be_applied_reverted_and_applied_again(revision: str, target: URL, alembic_config: Config) -> None:
    """Each schema has rows, and accepts more of them."""
    command.upgrade(alembic_config, f"{revision}-1" if revision != revisions()[0] else "base")
    before = schema(target)
    fill(target, 1)

    command.upgrade(alembic_config, revision)
    after = schema(target)
    assert (after == before) == (revision in DATA_REVISIONS), f"{revision} changes only data? Add it to DATA_REVISIONS"
    assert sample.TABLE in fill(target, 2)

    command.downgrade(alembic_config, "-1")
    assert schema(target) == before
    fill(target, 3)

    command.upgrade(alembic_config, revision)
    assert schema(target) == after
    fill(target, 4)


def test_second_upgrade_changes_nothing(target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    before = schema(target)

    command.upgrade(alembic_config, "head")

    assert schema(target) == before


def test_models_and_migrations_have_the_same_schema(target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    command.check(alembic_config)


def test_check_finds_drift(target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    with connect(target) as connection:
        connection.execute(f"DROP INDEX ix_{sample.TABLE}_created_at_id".encode())

    with pytest.raises(CommandError, match=f"ix_{sample.TABLE}_created_at_id"):
        command.check(alembic_config)


def test_three_concurrent_jobs_apply_each_revision_once(target: URL, tmp_path: Path) -> None:
    """One revision builds an index concurrently, which waits for the snapshots of the other jobs."""
    write_slow_revision(tmp_path)
    environment = os.environ | {"MIGRATION_LOCK_TIMEOUT": "30"}
    jobs = [start_job(tmp_path, environment) for _ in range(3)]
    outputs = [job.communicate(timeout=60)[0] for job in jobs]

    assert [job.returncode for job in jobs] == [0, 0, 0], "\n".join(outputs)
    applied = [line for output in outputs for line in output.splitlines() if "Running upgrade" in line]
    assert len(applied) == len(revisions()) + 1
    assert any("waiting for another migration job" in output for output in outputs)


def test_lock_timeout_is_reported_in_one_line(target: URL, tmp_path: Path) -> None:
    with connect(target) as connection:  # holds the lock as another migration job does
        connection.execute("SELECT pg_advisory_lock(%s)", (crc32(b"headroom migrations"),))
        job = start_job(tmp_path, os.environ | {"MIGRATION_LOCK_TIMEOUT": "0.3"})
        output = job.communicate(timeout=60)[0]

    assert job.returncode != 0
    assert output.splitlines()[-1].startswith("FAILED: another migration job has held the lock for more than 0.3 s")
    assert "Traceback" not in output


def test_unreachable_database_is_reported_in_one_line(tmp_path: Path) -> None:
    job = subprocess.run(
        [sys.executable, "-m", "alembic", "--config", str(PYPROJECT), "upgrade", "head"],
        cwd=tmp_path,
        env=os.environ | {"MIGRATION_DATABASE_URL": "postgresql+asyncpg://user@127.0.0.1:1/database"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert job.returncode != 0
    assert (job.stdout + job.stderr).strip().count("\n") == 0, job.stderr
    assert "cannot connect" in job.stdout + job.stderr


def test_search_indexes_or_a_warning_depend_on_the_extension(
    target: URL, alembic_config: Config, json_log: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(target) as connection:
        available = connection.execute("SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'").fetchall()
        monkeypatch.setattr(logging_module, "configure_logging", lambda **_: None)  # keep json_log
        command.upgrade(alembic_config, "head")
        rows = connection.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE '%%_trgm'").fetchall()
        indexes = {name for (name,) in rows}

    assert "ix_users_name_email_trgm" in indexes if available else not indexes
    assert ("the extension pg_trgm is missing" in json_log()) == (not available)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("extension", ["trusted", "not trusted"])
def test_missing_privilege_for_the_extension_is_a_warning(
    target: URL,
    alembic_config: Config,
    json_log: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    extension: str,
) -> None:
    role = f"owner_{target.database}"
    with connect(target) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        connection.execute(f"GRANT ALL ON SCHEMA public TO {role}")
        if extension == "not trusted":
            connection.execute(f"GRANT CREATE ON DATABASE {target.database} TO {role}")
            refuse_extensions(connection)
        owner = target.set(drivername=f"postgresql+{driver}", username=role, password="x")
        monkeypatch.setenv("MIGRATION_DATABASE_URL", owner.render_as_string(hide_password=False))
        monkeypatch.setattr(logging_module, "configure_logging", lambda **_: None)
        command.upgrade(alembic_config, "head")
        indexes = connection.execute("SELECT FROM pg_indexes WHERE indexname LIKE '%%_trgm'").fetchall()
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert indexes == []
    assert "the extension pg_trgm is missing" in json_log()


def refuse_extensions(connection: psycopg.Connection) -> None:
    """Refuse CREATE EXTENSION, as a server does if pg_trgm is not a trusted extension."""
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE insufficient_privilege; END $$;"
        "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') EXECUTE FUNCTION refuse()"
    )


INDEXED = ("first_table", "second_table")


@pytest.fixture
def indexing(tmp_path: Path) -> Config:
    """Return the configuration of a release whose newest revision builds an index of two tables concurrently."""
    release = Release(tmp_path / "release")
    indexes = {f"ix_{table}_value": (table, "value") for table in INDEXED}
    release.add(
        "tables",
        "\n".join(f"op.create_table({table!r}, sa.Column('value', sa.Integer()))" for table in INDEXED),
        "\n".join(f"op.drop_table({table!r})" for table in INDEXED),
    )
    release.add(
        "indexes",
        "from migrations.concurrently import create_index\n"
        + "\n".join(f"create_index({name!r}, {table!r}, [{column!r}])" for name, (table, column) in indexes.items()),
        "from migrations.concurrently import drop_index\n"
        + "\n".join(f"drop_index({name!r}, {table!r})" for name, (table, _) in indexes.items()),
    )
    return Config(toml_file=release.config)


def invalid_indexes(url: URL) -> list[str]:
    """Return the indexes that an interrupted build or drop has left: they are written to and never read."""
    with connect(url) as connection:
        rows = connection.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").fetchall()
    return [str(name) for (name,) in rows]


@contextmanager
def uncommitted_write(url: URL, table: str) -> Iterator[None]:
    """Lock the table as an uncommitted write does. Cancel the migration that waits for it."""
    waiting = (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = %s AND query LIKE '%% CONCURRENTLY %%'"
        " AND application_name = 'headroom:migrate' AND wait_event_type = 'Lock'"
    )
    with (
        connect(url) as connection,
        connect(url) as other,
        ThreadPoolExecutor(1) as executor,
        connection.transaction(),
    ):
        connection.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE".encode())
        cancelled = executor.submit(eventually, lambda: other.execute(waiting, (url.database,)).fetchall(), within=60)
        yield
        cancelled.result()


@pytest.mark.parametrize("table", INDEXED)
def test_interrupted_index_revision_is_completed_by_the_next_run(target: URL, indexing: Config, table: str) -> None:
    command.upgrade(indexing, "indexes-1")
    without = schema(target)
    command.upgrade(indexing, "indexes")
    complete = schema(target)
    command.downgrade(indexing, "-1")

    with uncommitted_write(target, table), pytest.raises(CommandError, match="canceling statement due to user request"):
        command.upgrade(indexing, "indexes")
    assert invalid_indexes(target)
    command.upgrade(indexing, "indexes")
    assert (schema(target), invalid_indexes(target)) == (complete, [])

    with uncommitted_write(target, table), pytest.raises(CommandError, match="canceling statement due to user request"):
        command.downgrade(indexing, "-1")
    assert invalid_indexes(target)
    command.downgrade(indexing, "-1")
    assert schema(target) == without


def test_repeated_index_revision_keeps_valid_indexes(target: URL, indexing: Config) -> None:
    """A job can end after the last index was built and before Alembic has recorded the revision."""
    command.upgrade(indexing, "indexes")
    query = "SELECT relname, relfilenode FROM pg_class WHERE relkind = 'i' AND relname LIKE 'ix%%' ORDER BY 1"
    with connect(target) as connection:
        before = connection.execute(query).fetchall()
        connection.execute("UPDATE alembic_version SET version_num = %s", ("tables",))

        command.upgrade(indexing, "indexes")

        assert connection.execute(query).fetchall() == before


def test_sql_script_has_the_same_result_and_can_be_repeated(
    target: URL, indexing: Config, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(target) as connection:
        if not connection.execute("SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'").fetchall():
            pytest.skip("a script requires pg_trgm, which this server does not provide")
        run_script(connection, indexing, "indexes")
        scripted = schema(target)
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_first_table_value'::regclass")
        run_script(connection, indexing, "tables:indexes")
    assert (schema(target), invalid_indexes(target)) == (scripted, [])

    with postgres.database() as other:
        monkeypatch.setenv("MIGRATION_DATABASE_URL", other.render_as_string(hide_password=False))
        command.upgrade(indexing, "indexes")
        assert schema(other) == scripted


def run_script(connection: psycopg.Connection, config: Config, revision_range: str) -> None:
    """Run the output of `alembic upgrade ... --sql`, statement by statement, as psql does."""
    script = io.StringIO()
    assert config.toml_file_name
    command.upgrade(Config(toml_file=config.toml_file_name, output_buffer=script), revision_range, sql=True)
    for statement in statements(script.getvalue()):
        connection.execute(statement.encode())


def test_generated_revisions_run_and_pass_the_linter(target: URL, tmp_path: Path) -> None:
    """Two revisions with the same message are two files."""
    scripts = tmp_path / "migrations"
    shutil.copytree(PROJECT_ROOT / "migrations", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
from alembic import command
from alembic.config import Config
from sqlalchemy import BigInteger, Enum, Identity, Integer, String
from sqlalchemy.orm import Mapped, mapped_column
from app.database import Base, TimestampMixin

class Sample(TimestampMixin, Base):
    __tablename__ = "headroom_samples"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    colour: Mapped[str] = mapped_column(Enum("red", "green", name="colour"))

config = Config(toml_file={str(PYPROJECT)!r})
config.set_main_option("script_location", {str(scripts)!r})
command.upgrade(config, "head")
command.revision(config, "it's a sample", autogenerate=True)
command.upgrade(config, "head")
command.revision(config, "it's a sample", autogenerate=True)
command.upgrade(config, "head")
command.check(config)
command.downgrade(config, "-2")
command.upgrade(config, "head")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert finished.returncode == 0, finished.stderr
    written = [path for path in (scripts / "versions").glob("*.py") if "it_s_a_sample" in path.name]
    assert len(written) == 2
    checked = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,I,W"]
    assert subprocess.run([*checked, *written], check=False).returncode == 0
    assert "uq_headroom_samples_name" in "".join(path.read_text() for path in written)


@pytest.mark.parametrize("console_user", ["headroom_console", "headroom_monitor"])
def test_migration_behind_pgbouncer_renews_its_server_connections(
    console_user: str, target: URL, postgres: Server, pgbouncer: PgBouncer, tmp_path: Path
) -> None:
    """The second user is none of PgBouncer's admin_users: the job warns, and succeeds."""
    write_slow_revision(tmp_path)
    console = as_role(pgbouncer.url(target), console_user).set(database="pgbouncer")
    environment = os.environ | {
        "DB_POOLER": "pgbouncer",
        "DB_BUDGET": "off",
        "PGBOUNCER_ADMIN_URL": console.set(drivername="postgresql+psycopg").render_as_string(hide_password=False),
    }
    with connect(target) as admin:
        admin.execute(f"GRANT CONNECT ON DATABASE {target.database} TO headroom_app".encode())

    def backend() -> int:
        with psycopg.connect(**parameters(as_role(pgbouncer.url(target), "headroom_app"))) as client:
            row = client.execute("SELECT pg_backend_pid()").fetchone()
            assert row is not None
            return int(row[0])

    before = backend()
    assert backend() == before
    job = start_job(tmp_path, environment)
    output = job.communicate(timeout=60)[0]

    assert job.returncode == 0, output
    assert (backend() != before) == (console_user == "headroom_console")
    assert ("set PGBOUNCER_ADMIN_URL" in output) == (console_user == "headroom_monitor")
    again = start_job(tmp_path, environment)
    assert "PgBouncer" not in again.communicate(timeout=60)[0], "nothing was applied"


def start_job(scripts: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start `alembic upgrade head` with the project's revisions and those in `scripts`."""
    program = (
        "import sys; from alembic import command\n"
        "from alembic.config import Config; from alembic.util import CommandError\n"
        f"config = Config(toml_file={str(PYPROJECT)!r})\n"
        f"config.set_main_option('version_locations', '{PROJECT_ROOT}/migrations/versions {scripts}')\n"
        "config.set_main_option('path_separator', 'space')\n"
        "try: command.upgrade(config, 'head')\n"
        "except CommandError as error: sys.exit(f'FAILED: {error}')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=scripts,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def write_slow_revision(directory: Path) -> None:
    """Write a revision that sleeps and then builds an index concurrently."""
    (directory / "slow.py").write_text(
        "from alembic import op\n"
        "revision = 'slow'\n"
        f"down_revision = {revisions()[-1]!r}\n"
        "def upgrade():\n"
        "    with op.get_context().autocommit_block():\n"
        "        op.execute('SELECT pg_sleep(1)')\n"
        "        op.create_index('ix_slow', '" + sample.TABLE + "', ['name'], postgresql_concurrently=True)\n"
        "def downgrade():\n"
        "    op.drop_index('ix_slow')\n"
    )
