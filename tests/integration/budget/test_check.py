"""The checks before a start, of budget and schema: the programs as a user runs them, and what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.ports import free_port
from tests.support.postgres import Server, as_role, connect, run_pgbouncer

API = [sys.executable, "-m", "app.cli.main", "api"]
BUDGET = [sys.executable, "-m", "app.cli.main", "budget"]
MIGRATE = [sys.executable, "-m", "alembic", "--config", str(PROJECT_ROOT / "pyproject.toml"), "upgrade", "head"]


@pytest.fixture
def database_setup() -> str:
    return "psycopg"


def run(program: list[str], url: URL, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program until it exits."""
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
        timeout=300,
        check=False,
    )


# Settings that exceed the budget. The test server has PostgreSQL's defaults: 100 - 3 connections.
EXCEEDED = {
    "workers": ({"WEB_CONCURRENCY": "8"}, "WEB_CONCURRENCY 8", "124 demanded, 97 available"),
    "pool": ({"DB_POOL_SIZE": "50"}, "DB_POOL_SIZE 50", "244 demanded, 97 available"),
    "overflow": ({"DB_MAX_OVERFLOW": "20"}, "DB_MAX_OVERFLOW 20", "104 demanded, 97 available"),
    "replicas": ({"API_REPLICAS": "2"}, "API_REPLICAS 2", "124 demanded, 97 available"),
    "surge": ({"API_SURGE": "1"}, "API_SURGE 1", "124 demanded, 97 available"),
    "max_connections": ({"POSTGRES_MAX_CONNECTIONS": "60"}, "max_connections 60", "64 demanded, 57 available"),
}
# Invalid settings: a value for each variable, and its complaint. One start prints all complaints.
INVALID = {
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


# All programs call the same check, so `budget` alone runs every case.
PROGRAMS = {"api": API, "budget": BUDGET, "migrate": MIGRATE}
OVER_BUDGET = [("budget", case) for case in EXCEEDED] + [
    (name, case) for name in ("api", "migrate") for case in ("workers", "max_connections")
]


@pytest.mark.parametrize(("name", "case"), OVER_BUDGET)
def test_program_over_budget_exits_and_names_variable_and_numbers(
    database_url: URL, tmp_path: Path, name: str, case: str
) -> None:
    environment, named, numbers = EXCEEDED[case]
    finished = run(PROGRAMS[name], database_url, tmp_path, **environment)
    output = finished.stdout + finished.stderr

    assert finished.returncode != 0
    assert "OVER BUDGET" in output, "the table is printed"
    [line] = [line for line in output.splitlines() if "over budget: server connections" in line]
    assert named in line
    assert numbers in line
    assert "Traceback" not in output
    assert "Booting worker" not in output


@pytest.mark.parametrize("program", [API, BUDGET, MIGRATE], ids=["api", "budget", "migrate"])
@pytest.mark.parametrize("settings", INVALID.values(), ids=INVALID.keys())
def test_program_with_invalid_settings_exits_and_names_each(
    database_url: URL, tmp_path: Path, program: list[str], settings: dict[str, tuple[str, str]]
) -> None:
    finished = run(program, database_url, tmp_path, **{name: value for name, (value, _) in settings.items()})
    output = finished.stdout + finished.stderr

    assert finished.returncode != 0
    for name, (_, complaint) in settings.items():
        assert f"{name}: {complaint}" in output
    assert "Traceback" not in output


def test_connection_limit_of_the_database_is_checked(database_url: URL, tmp_path: Path) -> None:
    with connect(database_url) as connection:
        connection.execute(f"ALTER DATABASE {database_url.database} CONNECTION LIMIT 10".encode())
        finished = run(BUDGET, database_url, tmp_path)
        connection.execute(f"ALTER DATABASE {database_url.database} CONNECTION LIMIT -1".encode())
    assert finished.returncode == 1
    assert "connections to the database: 64 demanded, 10 available" in finished.stderr


def test_settings_replace_the_limits_of_an_unreachable_server(database_url: URL, tmp_path: Path) -> None:
    """Reserved connections reduce the supply. A server would need a restart to change them, so settings set them."""
    unreachable = database_url.set(host="127.0.0.1", port=1)
    finished = run(BUDGET, unreachable, tmp_path, POSTGRES_RESERVED_CONNECTIONS="34")

    assert finished.returncode == 1
    assert "64 demanded, 63 available" in finished.stderr
    assert "the server was not queried: cannot connect" in finished.stdout


def test_connections_to_a_standby_are_compared_with_its_own_limits(database_url: URL, tmp_path: Path) -> None:
    """And a standby that is gone keeps no API from starting: PostgreSQL requires the primary's limit of it."""
    url = database_url.render_as_string(hide_password=False)
    unreachable = database_url.set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)

    finished = run([*BUDGET, "--json"], database_url, tmp_path, DATABASE_READ_URL=url)
    exceeded = run(BUDGET, database_url, tmp_path, DATABASE_READ_URL=unreachable, DB_READ_POOL_SIZE="25")

    document = json.loads(finished.stdout)
    assert document["checks"][1]["name"] == "read server connections"
    assert (document["checks"][1]["demand"], document["checks"][1]["supply"]) == (20, 97)
    assert document["sources"]["read server"] == "the read server"
    assert exceeded.returncode == 1
    assert "read server connections: 100 demanded, 97 available (reads 100, with reads = (API_REP" in exceeded.stderr
    assert "the read server was not queried: " in exceeded.stdout


def test_migration_over_budget_with_db_budget_warn_or_off_runs(database_url: URL, tmp_path: Path) -> None:
    warned = run(MIGRATE, as_role(database_url, "headroom_owner"), tmp_path, DB_BUDGET="warn", WEB_CONCURRENCY="8")
    silent = run(MIGRATE, as_role(database_url, "headroom_owner"), tmp_path, DB_BUDGET="off", WEB_CONCURRENCY="8")

    assert (warned.returncode, silent.returncode) == (0, 0)
    assert "over budget: server connections: 124 demanded" in warned.stdout + warned.stderr
    assert "budget" not in silent.stdout + silent.stderr


def test_budget_as_json_has_every_number_and_the_suggestion(database_url: URL, tmp_path: Path) -> None:
    finished = run([*BUDGET, "--json", "--suggest"], database_url, tmp_path)
    document = json.loads(finished.stdout)

    assert finished.returncode == 0
    assert (document["ok"], document["demand"], document["supply"], document["headroom"]) == (True, 64, 97, 33)
    assert document["sources"] == {"server": "the server"}
    assert document["observed"] >= 1
    assert document["suggestion"] == {"DB_POOL_SIZE": 8, "DB_MAX_OVERFLOW": 15}
    assert document["suggestion_for_coalesced_reads"] == {"DB_POOL_SIZE": 2, "DB_MAX_OVERFLOW": 2}
    suggested = {name: str(value) for name, value in document["suggestion"].items()}
    assert run(BUDGET, database_url, tmp_path, **suggested).returncode == 0


def test_budget_offline_does_not_query_the_server(tmp_path: Path) -> None:
    unreachable = URL.create("postgresql+asyncpg", host="127.0.0.1", port=1)
    finished = run([*BUDGET, "--offline"], unreachable, tmp_path)

    assert finished.returncode == 0
    assert "limits of the server: from settings" in finished.stdout
    assert "not queried" not in finished.stdout


EXCEEDED_WITH_POOLER = {
    "clients": ({"max_client_conn": 61}, "max_client_conn 61", "62 demanded, 61 available"),
    "pool": ({"default_pool_size": 90, "max_db_connections": 0}, "default_pool_size 90", "194 demanded, 97 available"),
    "reserve": (
        {"default_pool_size": 20, "reserve_pool_size": 30, "max_db_connections": 0},
        "reserve_pool_size 30",
        "104 demanded, 97 available",
    ),
    "cap": ({"default_pool_size": 90, "max_db_connections": 95}, "max_db_connections 95", "99 demanded, 97 available"),
}


@pytest.mark.parametrize(("limits", "named", "numbers"), EXCEEDED_WITH_POOLER.values(), ids=EXCEEDED_WITH_POOLER.keys())
def test_program_over_the_limits_of_pgbouncer_exits(
    postgres: Server, database_url: URL, tmp_path: Path, limits: dict[str, int], named: str, numbers: str
) -> None:
    folder = tmp_path / "pgbouncer"
    folder.mkdir()
    with run_pgbouncer(postgres, folder, **limits) as pgbouncer:
        for program in (API, BUDGET, MIGRATE) if "max_client_conn" in limits else (BUDGET,):
            finished = run(
                program,
                pgbouncer.url(database_url),
                tmp_path,
                DB_POOLER="pgbouncer",
                STARTUP_TIMEOUT="30",
                MIGRATION_DATABASE_URL=as_role(database_url, "headroom_owner").render_as_string(hide_password=False),
            )
            output = finished.stdout + finished.stderr
            assert finished.returncode != 0
            [line] = [line for line in output.splitlines() if "over budget: " in line]
            assert named in line
            assert numbers in line


def test_settings_replace_the_limits_of_a_pooler_without_console(database_url: URL, tmp_path: Path) -> None:
    finished = run(
        BUDGET, database_url, tmp_path, DB_POOLER="pgbouncer", PGBOUNCER_MAX_CLIENT_CONN="61", STARTUP_TIMEOUT="0"
    )

    assert finished.returncode == 1
    assert "PgBouncer's console was not queried" in finished.stdout
    assert "pooler clients: 62 demanded, 61 available" in finished.stderr


def test_pooler_whose_console_is_off_is_not_queried(database_url: URL, tmp_path: Path) -> None:
    """A start must not wait for a console that no client can reach, as that of CloudNativePG's Pooler."""
    finished = run(
        BUDGET,
        database_url,
        tmp_path,
        DB_POOLER="pgbouncer",
        PGBOUNCER_CONSOLE="off",
        PGBOUNCER_INSTANCES="3",
        PGBOUNCER_DEFAULT_POOL_SIZE="20",
        STARTUP_TIMEOUT="0",
    )

    assert finished.returncode == 1
    assert "console" not in finished.stdout
    assert "server connections: 124 demanded, 97 available (pgbouncer 120" in finished.stderr


def test_api_on_an_unknown_revision_exits(database_url: URL, tmp_path: Path) -> None:
    with connect(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'future'")
    finished = run(API, database_url, tmp_path)

    assert finished.returncode != 0
    [line] = [line for line in finished.stderr.splitlines() if "revision" in line]
    assert line.startswith("headroom: the database is at revision future, and this release (")


def test_migration_without_a_server_exits_after_startup_timeout(empty_database: URL, tmp_path: Path) -> None:
    unreachable = empty_database.set(host="127.0.0.1", port=free_port(), query={})
    started = monotonic()
    finished = run(MIGRATE, unreachable, tmp_path, STARTUP_TIMEOUT="1")

    assert finished.returncode != 0
    assert "cannot connect" in finished.stdout + finished.stderr
    assert monotonic() - started >= 1
