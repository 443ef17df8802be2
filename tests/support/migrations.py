"""Releases with more revisions than the project, and migration jobs as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.postgres import connect

PYPROJECT = PROJECT_ROOT / "pyproject.toml"
ALEMBIC = [sys.executable, "-m", "alembic"]


def head() -> str:
    """Return the newest revision of the project."""
    [revision] = ScriptDirectory.from_config(Config(toml_file=PYPROJECT)).get_heads()
    return revision


class Release:
    """The project with more revisions, in a directory of its own. Its programs are the project's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "pyproject.toml"  # the only name of a TOML file that Alembic reads
        self._last = head()
        directory.mkdir(exist_ok=True)
        self.config.write_text(
            "[tool.alembic]\n"
            f"script_location = '{PROJECT_ROOT}/migrations'\n"
            f"version_locations = ['{PROJECT_ROOT}/migrations/versions', '{directory}']\n"
            f"prepend_sys_path = ['{PROJECT_ROOT}']\n"
        )

    def add(
        self, revision: str, upgrade: str, downgrade: str = "pass", kind: str | None = None, oldest: str | None = None
    ) -> None:
        """Add a revision after the newest one. `upgrade` and `downgrade` are statements of Python, one per line."""
        lines = [
            "import sqlalchemy as sa",
            "from alembic import op",
            f"revision = {revision!r}",
            f"down_revision = {self._last!r}",
            *([f"kind = {kind!r}"] if kind else []),
            *([f"oldest_that_may_run = {oldest!r}"] if oldest else []),
            "def upgrade():",
            *(f"    {line}" for line in upgrade.splitlines()),
            "def downgrade():",
            *(f"    {line}" for line in downgrade.splitlines()),
        ]
        self.file(revision).write_text("\n".join(lines) + "\n")
        self._last = revision

    def file(self, revision: str) -> Path:
        return self.directory / f"{revision}.py"

    @property
    def scripts(self) -> ScriptDirectory:
        return ScriptDirectory.from_config(Config(toml_file=self.config))

    @property
    def newest(self) -> Script:
        """Return the newest revision."""
        script = self.scripts.get_revision("head")
        assert script is not None
        return script

    def start(self, url: URL, log: Path, **environment: str) -> subprocess.Popen[str]:
        """Start `alembic upgrade head`. Its output goes to `log`."""
        with log.open("w") as output:
            return self._start(url, ("upgrade", "head"), environment, output)

    def run(self, url: URL, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Alembic with the arguments, by default `upgrade head`. The output, errors included, is in `stdout`."""
        with self._start(url, arguments or ("upgrade", "head"), environment, subprocess.PIPE) as process:
            output, _ = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def _start(
        self, url: URL, arguments: tuple[str, ...], environment: dict[str, str], output: int | IO[str]
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ALEMBIC, "--config", str(self.config), *arguments],
            cwd=self.directory,
            env=_environment(url, environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def run_project(program: list[str], url: URL, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the project itself, such as `[*ALEMBIC, ...]`. The output is in `stdout`."""
    return subprocess.run(
        program,
        cwd=directory,
        env=_environment(url, environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def upgrade_project(url: URL, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic with the revisions of the project, by default `upgrade head`."""
    return run_project([*ALEMBIC, "-c", str(PYPROJECT), *(arguments or ("upgrade", "head"))], url, directory)


_COLUMNS = """
    SELECT a.attrelid::regclass::text, a.attname, format_type(a.atttypid, NULL), nullif(a.atttypmod, -1) - 4,
           (SELECT confrelid::regclass::text FROM pg_constraint
            WHERE contype = 'f' AND conrelid = a.attrelid AND conkey = ARRAY[a.attnum]),
           (SELECT min(enumlabel) FROM pg_enum WHERE enumtypid = a.atttypid)
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
          AND a.attidentity = '' AND a.attgenerated = '' AND NOT a.atthasdef
          AND c.relname NOT IN ('alembic_version', 'schema_revisions', 'schema_backfills')
    ORDER BY a.attrelid, a.attnum
"""
_VALUES = {
    "bigint": "{n}",
    "integer": "{n}",
    "smallint": "{n}",
    "numeric": "{n}",
    "double precision": "{n}",
    "boolean": "true",
    "timestamp with time zone": "now()",
    "date": "current_date",
    "uuid": "gen_random_uuid()",
    "jsonb": "'{{}}'",
    "bytea": "''",
}


def fill(url: URL, number: int) -> list[str]:
    """Insert a row into every table, different for each `number`. Return the tables."""
    with connect(url) as connection:
        tables: dict[str, dict[str, str]] = {}
        for table, column, kind, length, other, label in connection.execute(_COLUMNS):
            value = _VALUES.get(kind, f"left('{column}{{n}}', {length or 100})").format(n=number)
            if label is not None:
                value = f"'{label}'"
            if other is not None:
                value = f"(SELECT max(id) FROM {other})"
            tables.setdefault(table, {})[column] = value
        for table, row in tables.items():
            connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(row.values())})".encode())
    return list(tables)


def statements(script: str) -> Iterator[str]:
    """Return the statements of a script of `--sql`, as psql finds them."""
    statement = ""
    for part in script.split(";\n"):
        statement += f"{part};\n"
        if statement.count("$$") % 2 == 0:  # not inside the body of a function
            yield statement
            statement = ""
    assert not statement.strip()


def _environment(url: URL, changes: dict[str, str]) -> dict[str, str]:
    address = url.render_as_string(hide_password=False)
    urls = {"DATABASE_URL": address, "MIGRATION_DATABASE_URL": address}
    return os.environ | urls | {"LOG_FORMAT": "console", "DB_BUDGET": "off", "SECRET_KEY": "x" * 32} | changes


def recorded(url: URL) -> list[tuple[str, str]]:
    """Return the revisions and kinds in `schema_revisions`, oldest first."""
    with connect(url) as connection:
        return connection.execute("SELECT revision, kind FROM schema_revisions ORDER BY position").fetchall()


def version(url: URL) -> str:
    """Return the revision in `alembic_version`."""
    with connect(url) as connection:
        [(revision,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    return str(revision)
