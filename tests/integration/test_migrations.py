"""Migrations: both ways, against drift, and by two jobs at once."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from app.observability import logging as logging_module
from app.paths import PROJECT_ROOT
from tests.support.postgres import Server, connect
from tests.support.waiting import eventually

PYPROJECT = PROJECT_ROOT / "pyproject.toml"
# Programs that are started run elsewhere, where there is no .env of the developer's.


@pytest.fixture
def target(empty_database: URL, monkeypatch: pytest.MonkeyPatch) -> URL:
    """An empty database that Alembic migrates."""
    monkeypatch.setenv("MIGRATION_DATABASE_URL", empty_database.render_as_string(hide_password=False))
    return empty_database


def schema(url: URL) -> list[tuple[object, ...]]:
    """Every column, constraint and index that is not PostgreSQL's or Alembic's."""
    with connect(url) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity"
            " FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
            " UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), contype::text, '', ''"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
            " AND conrelid <> coalesce(to_regclass('alembic_version'), 0)"
            " UNION ALL SELECT tablename, indexname, indexdef, '', '', ''"
            " FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2, 3"
        ).fetchall()


def revisions() -> list[str]:
    scripts = ScriptDirectory.from_config(Config(toml_file=PYPROJECT))
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


def test_there_is_one_head(alembic_config: Config) -> None:
    assert len(ScriptDirectory.from_config(alembic_config).get_heads()) == 1


@pytest.mark.parametrize("revision", revisions())
def test_a_revision_goes_up_down_and_up_again(revision: str, target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, f"{revision}-1" if revision != revisions()[0] else "base")
    before = schema(target)

    command.upgrade(alembic_config, revision)
    after = schema(target)
    assert after != before

    command.downgrade(alembic_config, "-1")
    assert schema(target) == before

    command.upgrade(alembic_config, revision)
    assert schema(target) == after


def test_migrating_what_is_migrated_changes_nothing(target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    before = schema(target)

    command.upgrade(alembic_config, "head")

    assert schema(target) == before


def test_the_models_and_the_migrations_describe_the_same_schema(target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    command.check(alembic_config)


def test_a_drift_is_found(target: URL, alembic_config: Config) -> None:
    command.upgrade(alembic_config, "head")
    with connect(target) as connection:
        connection.execute("DROP INDEX ix_posts_created_at_id")

    with pytest.raises(CommandError, match="ix_posts_created_at_id"):
        command.check(alembic_config)


def test_three_jobs_at_once_apply_each_revision_once_even_with_a_concurrent_index_build(
    target: URL, alembic_config: Config, tmp_path: Path
) -> None:
    write_slow_revision(tmp_path)
    environment = os.environ | {"MIGRATION_LOCK_TIMEOUT": "30"}
    jobs = [start_job(tmp_path, environment) for _ in range(3)]
    outputs = [job.communicate(timeout=60)[0] for job in jobs]

    assert [job.returncode for job in jobs] == [0, 0, 0], "\n".join(outputs)
    applied = [line for output in outputs for line in output.splitlines() if "Running upgrade" in line]
    assert len(applied) == len(revisions()) + 1, "each revision was applied once"
    assert any("waiting for another migration job" in output for output in outputs)


def test_a_job_that_waits_too_long_for_the_lock_says_so_in_one_line(target: URL, tmp_path: Path) -> None:
    write_slow_revision(tmp_path, seconds=3)
    first = start_job(tmp_path, dict(os.environ))
    with connect(target) as connection:
        eventually(
            lambda: connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchone() is not None,
            within=20,
        )
    second = start_job(tmp_path, os.environ | {"MIGRATION_LOCK_TIMEOUT": "0.3"})

    output = second.communicate(timeout=20)[0]
    assert second.returncode != 0
    assert output.splitlines()[-1].startswith("FAILED: another migration job has held the lock for more than 0.3 s")
    assert "Traceback" not in output
    first.communicate(timeout=30)
    assert first.returncode == 0


def test_a_database_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    job = subprocess.run(
        [sys.executable, "-m", "alembic", "--config", str(PYPROJECT), "upgrade", "head"],
        cwd=tmp_path,
        env=os.environ | {"MIGRATION_DATABASE_URL": "postgresql+asyncpg://nobody@127.0.0.1:1/none"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert job.returncode != 0
    assert (job.stdout + job.stderr).strip().count("\n") == 0, job.stderr
    assert "cannot connect" in job.stdout + job.stderr


def test_search_is_indexed_where_the_server_can_and_the_migration_says_so_where_not(
    target: URL, alembic_config: Config, json_log: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(target) as connection:
        available = connection.execute("SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'").fetchall()
        monkeypatch.setattr(logging_module, "configure_logging", lambda **_: None)  # this test has configured it
        command.upgrade(alembic_config, "head")
        indexes = connection.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE '%%_trgm'").fetchall()

    assert len(indexes) == (2 if available else 0)
    assert ("the extension pg_trgm is missing" in json_log()) == (not available)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("extension", ["trusted", "not trusted"])
def test_search_without_the_right_to_create_its_extension_is_not_indexed(
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
    """As a server does whose pg_trgm is not marked as trusted."""
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE insufficient_privilege; END $$;"
        "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') EXECUTE FUNCTION refuse()"
    )


INDEXES = "b3d81f6ac945"  # the revision that builds them concurrently


def invalid_indexes(url: URL) -> list[str]:
    """What a build or a drop leaves that was stopped half way: an index that is written to and never read."""
    with connect(url) as connection:
        rows = connection.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").fetchall()
    return [str(name) for (name,) in rows]


@contextmanager
def busy(url: URL, table: str) -> Iterator[None]:
    """Somebody writes to the table and does not commit, and nobody waits for that for long."""
    with connect(url) as connection:
        connection.execute(f"ALTER DATABASE {url.database} SET statement_timeout = '1s'".encode())
        with connection.transaction():
            connection.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE".encode())
            yield
        connection.execute(f"ALTER DATABASE {url.database} RESET statement_timeout".encode())


@pytest.mark.parametrize("table", ["users", "posts"])
def test_an_index_revision_that_was_stopped_half_way_is_finished_by_running_it_again(
    target: URL, alembic_config: Config, table: str
) -> None:
    command.upgrade(alembic_config, f"{INDEXES}-1")
    without = schema(target)
    command.upgrade(alembic_config, INDEXES)
    complete = schema(target)
    command.downgrade(alembic_config, "-1")

    with busy(target, table), pytest.raises(DBAPIError, match="statement timeout"):
        command.upgrade(alembic_config, INDEXES)
    assert invalid_indexes(target)
    command.upgrade(alembic_config, INDEXES)
    assert (schema(target), invalid_indexes(target)) == (complete, [])

    with busy(target, table), pytest.raises(DBAPIError, match="statement timeout"):
        command.downgrade(alembic_config, "-1")
    assert invalid_indexes(target)
    command.downgrade(alembic_config, "-1")
    assert schema(target) == without


def test_an_index_revision_that_ended_before_it_was_recorded_keeps_what_it_has_built(
    target: URL, alembic_config: Config
) -> None:
    command.upgrade(alembic_config, INDEXES)
    built = "SELECT relname, relfilenode FROM pg_class WHERE relkind = 'i' AND relname LIKE 'ix%%' ORDER BY 1"
    with connect(target) as connection:
        before = connection.execute(built).fetchall()
        connection.execute("UPDATE alembic_version SET version_num = %s", (revision_before(INDEXES),))

        command.upgrade(alembic_config, INDEXES)

        assert connection.execute(built).fetchall() == before


def test_the_script_does_what_the_migrations_do_and_can_be_run_again(
    target: URL, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(target) as connection:
        if not connection.execute("SELECT FROM pg_available_extensions WHERE name = 'pg_trgm'").fetchall():
            pytest.skip("a script cannot ask whether the server has pg_trgm, and takes it for granted")
        run_script(connection, "head")
        scripted = schema(target)
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_posts_title_id'::regclass")
        run_script(connection, f"{revision_before(INDEXES)}:{INDEXES}")
    assert (schema(target), invalid_indexes(target)) == (scripted, [])

    with postgres.database() as other:
        monkeypatch.setenv("MIGRATION_DATABASE_URL", other.render_as_string(hide_password=False))
        command.upgrade(Config(toml_file=PYPROJECT), "head")
        assert schema(other) == scripted


def revision_before(revision: str) -> str:
    return revisions()[revisions().index(revision) - 1]


def run_script(connection: psycopg.Connection, what: str) -> None:
    """`alembic upgrade ... --sql`, statement by statement, as psql does."""
    script = io.StringIO()
    command.upgrade(Config(toml_file=PYPROJECT, output_buffer=script), what, sql=True)
    for statement in script.getvalue().split(";\n"):
        connection.execute(statement.encode())


def test_a_revision_that_is_written_from_a_model_runs_and_is_one_file_of_its_own(target: URL, tmp_path: Path) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(PROJECT_ROOT / "migrations", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
from alembic import command
from alembic.config import Config
from sqlalchemy import BigInteger, Identity, Integer, String
from sqlalchemy.orm import Mapped, mapped_column
from app.database import Base, TimestampMixin

class Tag(TimestampMixin, Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)

config = Config(toml_file={str(PYPROJECT)!r})
config.set_main_option("script_location", {str(scripts)!r})
command.upgrade(config, "head")
command.revision(config, "it's a tag", autogenerate=True)
command.upgrade(config, "head")
command.revision(config, "it's a tag", autogenerate=True)
command.upgrade(config, "head")
command.check(config)
command.downgrade(config, "-2")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert finished.returncode == 0, finished.stderr
    written = [path for path in (scripts / "versions").glob("*.py") if "it_s_a_tag" in path.name]
    assert len(written) == 2
    checked = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,I,W"]
    assert subprocess.run([*checked, *written], check=False).returncode == 0
    assert "uq_tags_name" in "".join(path.read_text() for path in written)


def start_job(scripts: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """`alembic upgrade heads` with one more revision than the project has."""
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


def write_slow_revision(directory: Path, *, seconds: float = 1) -> None:
    """A revision that takes its time and then builds an index concurrently."""
    (directory / "slow.py").write_text(
        "from alembic import op\n"
        "revision = 'slow'\n"
        f"down_revision = {revisions()[-1]!r}\n"
        "def upgrade():\n"
        "    with op.get_context().autocommit_block():\n"
        f"        op.execute('SELECT pg_sleep({seconds})')\n"
        "        op.create_index('ix_slow', 'users', ['name'], postgresql_concurrently=True)\n"
        "def downgrade():\n"
        "    op.drop_index('ix_slow')\n"
    )
