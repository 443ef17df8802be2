"""PostgreSQL 17 to 18 with docker-compose.yml: `make upgrade-postgres`, the start without it, and the way back."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psycopg
import pytest

from app.database.conninfo import parameters
from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.postgres import DEFAULT_IMAGE, NEXT_IMAGE
from tests.support.stacks import ComposeStack
from tests.support.waiting import eventually

OLD = {"POSTGRES_IMAGE": DEFAULT_IMAGE, "POSTGRES_VOLUME": "postgres"}
NEW = {"POSTGRES_IMAGE": NEXT_IMAGE, "POSTGRES_VOLUME": "postgres-18"}
TABLES = ("alembic_version", "posts", "schema_revisions", "users")


class UpgradedStack(ComposeStack):
    """PostgreSQL, the migration job and the API, on one of two versions. The checkout's .env is not read."""

    def start(self, version: dict[str, str], *services: str) -> None:
        """Start a version of PostgreSQL, with the volume of that version. An API that runs is not restarted."""
        self.environment |= version
        self.compose("up", "--no-build", "--detach", "--wait", "--wait-timeout", "120", "postgres", *services)
        eventually(lambda: httpx.get(f"{self.api}/readyz").status_code == 200, within=60)

    def up(self) -> None:
        self.start(OLD, "migrate", "api")

    def run_foreground(self, version: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the service postgres until it exits."""
        return self._run(["docker", "compose", "run", "--rm", "--no-TTY", "--no-deps", "postgres"], version)

    def go_back(self) -> None:
        """Use the old volume again, as docs/postgres-upgrade.md#go-back says."""
        remove = [
            "--rm",
            "--no-TTY",
            "--no-deps",
            "--entrypoint",
            "rm",
            "postgres",
            "/var/lib/postgresql/data/upgraded",
        ]
        removed = self._run(["docker", "compose", "run", *remove], OLD)
        assert removed.returncode == 0, removed.stderr
        self.start(OLD)

    def upgrade(self, method: str) -> subprocess.CompletedProcess[str]:
        """Do what `make upgrade-postgres` does."""
        return self._run([PROJECT_ROOT / "ops/postgres/upgrade/run.sh", self.files[0], method], {})

    def _run(self, command: Sequence[str | Path], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        project = {"COMPOSE_PROJECT_NAME": self.name, "COMPOSE_ENV_FILES": os.devnull}
        return subprocess.run(
            command,
            cwd=PROJECT_ROOT,
            env=os.environ | self.environment | project | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def rows(self) -> dict[str, tuple[int, str]]:
        """Return the number of rows and a checksum of each table."""
        with psycopg.connect(**parameters(self.database_url())) as connection:
            query = "SELECT count(*), coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {} AS t"
            found = {table: connection.execute(query.format(table).encode()).fetchone() for table in TABLES}
        return {table: (row[0], row[1]) for table, row in found.items() if row}

    def setting(self, name: str) -> str:
        with psycopg.connect(**parameters(self.database_url())) as connection:
            [(value,)] = connection.execute("SELECT current_setting(%s)", [name]).fetchall()
        return str(value)


def volume_of(stack: UpgradedStack, version: dict[str, str]) -> str:
    return f"{stack.name}_{version['POSTGRES_VOLUME']}"


def remove_volume(stack: UpgradedStack, version: dict[str, str]) -> None:
    command = ["docker", "volume", "rm", "--force", volume_of(stack, version)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def database(images: None) -> Iterator[UpgradedStack]:
    """Run the stack on PostgreSQL 17, with users and posts. The tests upgrade it in turn."""
    stack = UpgradedStack(f"headroom-upgrade-{os.getpid()}", build=False)
    with stack.running():
        httpx.post(f"{stack.api}{sample.PATH}", json=sample.new("ann")).raise_for_status()
        stack.seed(users=500, posts=1500)
        yield stack
    for version in (OLD, NEW):  # Compose has removed the volume in use
        remove_volume(stack, version)


@pytest.fixture(scope="module")
def rows(database: UpgradedStack) -> dict[str, tuple[int, str]]:
    """Return the rows of the volume of 17, before any upgrade."""
    return database.rows()


@pytest.fixture
def new_volume(database: UpgradedStack) -> str:
    """Run PostgreSQL 17, and return the name of the volume for 18, which does not exist."""
    if database.environment["POSTGRES_IMAGE"] != OLD["POSTGRES_IMAGE"]:
        database.go_back()
    remove_volume(database, NEW)
    return volume_of(database, NEW)


def test_start_of_18_on_a_volume_of_17_is_refused(database: UpgradedStack, rows: dict[str, tuple[int, str]]) -> None:
    database.compose("stop", "postgres")

    started = database.run_foreground(OLD | {"POSTGRES_IMAGE": NEW["POSTGRES_IMAGE"]})

    assert started.returncode == 1
    assert [line for line in started.stderr.splitlines() if "PostgreSQL" in line] == [
        "PostgreSQL 18 does not start: the volume has the data of PostgreSQL 17; run make upgrade-postgres, "
        "or set POSTGRES_IMAGE to an image of 17 (docs/postgres-upgrade.md)"
    ]
    database.compose("start", "postgres")
    eventually(lambda: database.rows() == rows, within=60)


def test_upgrade_into_a_used_volume_leaves_the_server_running(database: UpgradedStack, new_volume: str) -> None:
    files = f"{new_volume}:/new"
    touch = ["docker", "run", "--rm", "--volume", files, "--entrypoint", "touch", OLD["POSTGRES_IMAGE"], "/new/mine"]
    subprocess.run(touch, check=True, capture_output=True)

    upgraded = database.upgrade("dump")

    assert upgraded.returncode == 1
    assert "upgrade failed: the new volume is not empty" in upgraded.stderr
    assert database.setting("server_version").startswith("17.")


@pytest.mark.usefixtures("new_volume")
def test_upgrade_after_a_failed_one_keeps_the_rows(database: UpgradedStack, rows: dict[str, tuple[int, str]]) -> None:
    execute(database, "headroom", "CREATE TABLE not_portable AS SELECT 'now'::regproc AS function")
    forget_newer_options(database)

    failed = database.upgrade("pg_upgrade")

    assert failed.returncode == 1
    assert "reg*" in failed.stderr
    assert failed.stderr.splitlines()[-1] == "PostgreSQL runs on the old volume again"
    execute(database, "headroom", "DROP TABLE not_portable")
    check_upgrade(database, "dump", rows)


def test_old_volume_has_its_rows_after_an_upgrade(database: UpgradedStack, rows: dict[str, tuple[int, str]]) -> None:
    """It takes no writes before the operator says so: a deploy could start it before `.env` has the new volume."""
    started = database.run_foreground(OLD)
    assert started.returncode == 1
    assert "this volume was copied to one of PostgreSQL 18" in started.stderr

    database.go_back()

    assert database.setting("server_version").startswith("17.")
    assert database.rows() == rows


@pytest.mark.usefixtures("new_volume")
def test_pg_upgrade_keeps_rows_and_roles(database: UpgradedStack, rows: dict[str, tuple[int, str]]) -> None:
    forget_newer_options(database)

    check_upgrade(database, "pg_upgrade", rows)


def forget_newer_options(database: UpgradedStack) -> None:
    """Remove options of columns that an older release of 18 does not know, as if the tables were older than them.

    The images here can be stand-ins (.ci/images), with releases of different dates. pg_upgrade refuses such a pair.
    """
    for name in ("headroom", "postgres", "template1"):
        execute(
            database,
            name,
            "SET allow_system_table_mods = on",
            "UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '%pg\\_attver%'",
        )


def execute(database: UpgradedStack, name: str, *statements: str) -> None:
    with psycopg.connect(**parameters(database.database_url().set(database=name)), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def check_upgrade(database: UpgradedStack, method: str, rows: dict[str, tuple[int, str]]) -> None:
    upgraded = database.upgrade(method)

    assert upgraded.returncode == 0, upgraded.stderr
    assert f"equal: {len(TABLES) + 1} tables, " in upgraded.stdout  # and sign_in_attempts
    database.start(NEW)
    assert database.setting("server_version").startswith("18.")
    assert database.setting("data_checksums") == "on"
    assert database.rows() == rows
    # The API's role has its password, and writes after the copied rows.
    written = httpx.post(f"{database.api}{sample.PATH}", json=sample.new("bob"))
    assert written.status_code == 201
