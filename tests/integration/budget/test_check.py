"""Over budget, or on a schema that is not there: what starts, and what is said. The programs, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.postgres import Server, as_role, connect, run_pgbouncer
from tests.support.stacks import free_port

API = [sys.executable, "-m", "app.cli.main", "api"]
BUDGET = [sys.executable, "-m", "app.cli.main", "budget"]
MIGRATE = [sys.executable, "-m", "alembic", "--config", str(PROJECT_ROOT / "pyproject.toml"), "upgrade", "head"]


@pytest.fixture
def database_setup() -> str:
    return "psycopg"


def run(program: list[str], url: URL, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that is expected to end by itself."""
    return subprocess.run(
        program,
        cwd=directory,
        env=os.environ
        | {
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "SECRET_KEY": "for tests only, for tests only, for tests only",
            "METRICS_DIR": str(directory / "metrics"),
            "API_PORT": str(free_port()),
        }
        | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The test server has PostgreSQL's own limits: 100 - 3.
OVER = {
    "workers": ({"WEB_CONCURRENCY": "8"}, "WEB_CONCURRENCY 8", "124 demanded, 97 available"),
    "pool": ({"DB_POOL_SIZE": "50"}, "DB_POOL_SIZE 50", "244 demanded, 97 available"),
    "overflow": ({"DB_MAX_OVERFLOW": "20"}, "DB_MAX_OVERFLOW 20", "104 demanded, 97 available"),
    "replicas": ({"API_REPLICAS": "2"}, "API_REPLICAS 2", "124 demanded, 97 available"),
    "surge": ({"API_SURGE": "1"}, "API_SURGE 1", "124 demanded, 97 available"),
    "max_connections": ({"POSTGRES_MAX_CONNECTIONS": "60"}, "max_connections 60", "64 demanded, 57 available"),
}
# By variable: a value, and what is said of it. All are said at once, so one start is enough for many.
REFUSED = {
    "too small": {
        "DB_POOL_SIZE": ("0", "must be at least 1, got 0"),
        "DB_MAX_OVERFLOW": ("-1", "must be at least 0, got -1"),
        "WEB_CONCURRENCY": ("0", "must be at least 1, got 0"),
        "API_REPLICAS": ("0", "must be at least 1, got 0"),
        "API_SURGE": ("-1", "must be at least 0, got -1"),
    },
    "no such value": {
        "DB_POOL_SIZE": ("many", "must be a valid integer"),
        "API_REPLICAS": ("1.5", "must be a valid integer"),
        "DB_BUDGET": ("maybe", "must be 'enforce', 'warn' or 'off', got maybe"),
    },
}


@pytest.mark.parametrize("program", [API, BUDGET, MIGRATE], ids=["api", "budget", "migrate"])
@pytest.mark.parametrize(("environment", "named", "numbers"), OVER.values(), ids=OVER.keys())
def test_over_budget_nothing_starts_and_the_line_has_the_variable_and_both_numbers(
    database_url: URL, tmp_path: Path, program: list[str], environment: dict[str, str], named: str, numbers: str
) -> None:
    ended = run(program, database_url, tmp_path, **environment)
    said = ended.stdout + ended.stderr

    assert ended.returncode != 0
    assert "OVER BUDGET" in said, "the table"
    [line] = [line for line in said.splitlines() if "over budget: server connections" in line]
    assert named in line
    assert numbers in line
    assert "Traceback" not in said
    assert "Booting worker" not in said


@pytest.mark.parametrize("program", [API, BUDGET, MIGRATE], ids=["api", "budget", "migrate"])
@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED.keys())
def test_a_number_that_cannot_be_starts_nothing_and_is_named(
    database_url: URL, tmp_path: Path, program: list[str], wrong: dict[str, tuple[str, str]]
) -> None:
    ended = run(program, database_url, tmp_path, **{name: value for name, (value, _) in wrong.items()})
    said = ended.stdout + ended.stderr

    assert ended.returncode != 0
    for name, (_, complaint) in wrong.items():
        assert f"{name}: {complaint}" in said
    assert "Traceback" not in said


def test_the_limits_of_a_role_and_of_a_database_count(postgres: Server, database_url: URL, tmp_path: Path) -> None:
    with connect(database_url) as connection:
        connection.execute(f"ALTER DATABASE {database_url.database} CONNECTION LIMIT 10".encode())
        over = run(BUDGET, database_url, tmp_path)
        connection.execute(f"ALTER DATABASE {database_url.database} CONNECTION LIMIT -1".encode())
    assert over.returncode == 1
    assert "connections to the database: 64 demanded, 10 available" in over.stderr


def test_what_is_reserved_on_the_server_is_not_supply(postgres: Server, database_url: URL, tmp_path: Path) -> None:
    """Only a restart changes them, so the settings stand in: they count where the server cannot be asked."""
    nobody = database_url.set(host="127.0.0.1", port=1)
    over = run(BUDGET, nobody, tmp_path, POSTGRES_RESERVED_CONNECTIONS="34")

    assert over.returncode == 1
    assert "64 demanded, 63 available" in over.stderr
    assert "the server was not queried: cannot connect" in over.stdout


def test_a_warning_instead_of_a_refusal(database_url: URL, tmp_path: Path) -> None:
    warned = run(MIGRATE, as_role(database_url, "headroom_owner"), tmp_path, DB_BUDGET="warn", WEB_CONCURRENCY="8")
    silent = run(MIGRATE, as_role(database_url, "headroom_owner"), tmp_path, DB_BUDGET="off", WEB_CONCURRENCY="8")

    assert (warned.returncode, silent.returncode) == (0, 0)
    assert "over budget: server connections: 124 demanded" in warned.stdout + warned.stderr
    assert "budget" not in silent.stdout + silent.stderr


def test_the_document_for_programs_has_every_number(database_url: URL, tmp_path: Path) -> None:
    shown = run([*BUDGET, "--json", "--suggest"], database_url, tmp_path)
    document = json.loads(shown.stdout)

    assert shown.returncode == 0
    assert (document["ok"], document["demand"], document["supply"], document["headroom"]) == (True, 64, 97, 33)
    assert document["sources"] == {"server": "the server"}
    assert document["observed"] >= 1
    assert document["suggestion"] == {"DB_POOL_SIZE": 8, "DB_MAX_OVERFLOW": 15}
    adopted = {name: str(value) for name, value in document["suggestion"].items()}
    assert run(BUDGET, database_url, tmp_path, **adopted).returncode == 0


def test_offline_nobody_is_asked(tmp_path: Path) -> None:
    unroutable = URL.create("postgresql+asyncpg", host="127.0.0.1", port=1)
    shown = run([*BUDGET, "--offline"], unroutable, tmp_path)

    assert shown.returncode == 0
    assert "not asked" not in shown.stdout


POOLER_OVER = {
    "clients": ({"max_client_conn": 61}, "max_client_conn 61", "62 demanded, 61 available"),
    "pool": ({"default_pool_size": 90, "max_db_connections": 0}, "default_pool_size 90", "194 demanded, 97 available"),
    "reserve": (
        {"default_pool_size": 20, "reserve_pool_size": 30, "max_db_connections": 0},
        "reserve_pool_size 30",
        "104 demanded, 97 available",
    ),
    "cap": ({"default_pool_size": 90, "max_db_connections": 95}, "max_db_connections 95", "99 demanded, 97 available"),
}


@pytest.mark.parametrize(("limits", "named", "numbers"), POOLER_OVER.values(), ids=POOLER_OVER.keys())
def test_the_poolers_own_limits_are_asked_and_refused(
    postgres: Server, database_url: URL, tmp_path: Path, limits: dict[str, int], named: str, numbers: str
) -> None:
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    with run_pgbouncer(postgres, folder, **limits) as pgbouncer:
        for program in (API, BUDGET, MIGRATE):
            over = run(program, pgbouncer.url(database_url), tmp_path, DB_POOLER="pgbouncer", STARTUP_TIMEOUT="10")
            said = over.stdout + over.stderr
            assert over.returncode != 0
            [line] = [line for line in said.splitlines() if "over budget: " in line]
            assert named in line
            assert numbers in line


def test_a_pooler_without_a_console_is_believed_by_the_settings(database_url: URL, tmp_path: Path) -> None:
    shown = run(
        BUDGET, database_url, tmp_path, DB_POOLER="pgbouncer", PGBOUNCER_MAX_CLIENT_CONN="61", STARTUP_TIMEOUT="0"
    )

    assert shown.returncode == 1
    assert "PgBouncer's console was not queried" in shown.stdout
    assert "pooler clients: 62 demanded, 61 available" in shown.stderr


def test_the_api_does_not_start_on_a_schema_it_does_not_know(database_url: URL, tmp_path: Path) -> None:
    with connect(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'future'")
    ended = run(API, database_url, tmp_path)

    assert ended.returncode != 0
    [line] = [line for line in ended.stderr.splitlines() if "revision" in line]
    assert line.startswith("headroom: the database is at revision future, this release needs ")


def test_a_migration_job_waits_for_its_database_as_long_as_it_may(empty_database: URL, tmp_path: Path) -> None:
    nobody = empty_database.set(host="127.0.0.1", port=free_port(), query={})
    ended = run(MIGRATE, nobody, tmp_path, STARTUP_TIMEOUT="1")

    assert ended.returncode != 0
    assert "cannot connect" in ended.stdout + ended.stderr
