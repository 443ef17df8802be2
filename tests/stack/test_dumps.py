"""`make backup`, `make restore` and `make restore-drill` for the stacks of development, which have dumps."""

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from app.database.conninfo import parameters
from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.stacks import ComposeStack, LocalStack, Stack


def make(stack: Stack, command: str, data: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run what the target of this name runs. The dumps are in `data`."""
    if isinstance(stack, ComposeStack):
        variables |= stack.environment | {"stack": "dev", "COMPOSE_PROJECT_NAME": stack.name}
    else:
        variables |= {"stack": "local"}
    return subprocess.run(
        [PROJECT_ROOT / "ops/backup.sh", command],
        env=os.environ | {"COMPOSE_ENV_FILES": os.devnull, "DATA_DIR": str(data)} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def data_of(stack: Stack, tmp_path: Path) -> Path:
    return stack.directory if isinstance(stack, LocalStack) else tmp_path


def test_dump_is_private_and_restored_aside_by_the_drill(stack: Stack, tmp_path: Path) -> None:
    data = data_of(stack, tmp_path)
    stack.seed(users=20, posts=30)

    made = make(stack, "backup", data)
    drill = make(stack, "restore-drill", data)

    assert made.returncode == 0, made.stderr
    [dump] = (data / "backups").iterdir()
    assert dump.stat().st_mode & 0o077 == 0
    assert str(dump) in made.stdout
    assert drill.returncode == 0, drill.stderr
    with psycopg.connect(**parameters(stack.database_url())) as connection:
        for table in ("users", "posts"):
            row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
            assert row is not None
            assert f"rows of public.{table}: {row[0]}\n" in drill.stdout
    assert "RPO: " in drill.stdout
    assert "RTO: " in drill.stdout


def test_restore_over_rows_without_force_is_refused(stack: Stack, tmp_path: Path) -> None:
    data = data_of(stack, tmp_path)
    stack.seed(users=1, posts=0)
    make(stack, "backup", data)

    refused = make(stack, "restore", data)

    assert refused.returncode != 0
    assert "the database has data; to replace it with" in refused.stderr
    assert "force=yes" in refused.stderr


def test_restored_dump_has_the_rows_and_privileges_of_its_time(new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    with LocalStack(directory).running() as stack:
        url = stack.database_url()

        def rows() -> int:
            with psycopg.connect(**parameters(url.set(username="headroom_app"))) as connection:
                row = connection.execute(f"SELECT count(*) FROM {sample.TABLE}".encode()).fetchone()
                assert row is not None
                return int(row[0])

        stack.seed(users=10, posts=10)
        assert make(stack, "backup", directory).returncode == 0
        stack.seed(users=5, posts=0)
        assert rows() == 15

        too_early = make(stack, "restore", directory, at=str(datetime.now(UTC) - timedelta(days=1)), force="yes")
        assert "has no dump from" in too_early.stderr
        restored = make(stack, "restore", directory, force="yes")

        assert restored.returncode == 0, restored.stderr
        assert rows() == 10
        with psycopg.connect(**parameters(url), autocommit=True) as connection:
            owners = connection.execute(
                "SELECT pg_get_userbyid(datdba), has_database_privilege('headroom_pgbouncer', datname, 'CONNECT'),"
                " has_database_privilege('public', datname, 'CONNECT') FROM pg_database WHERE datname = 'headroom'"
            ).fetchall()
            databases = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").fetchall()
        assert owners == [("headroom_owner", True, False)]
        assert {name for (name,) in databases} == {"headroom", "postgres"}


@pytest.mark.parametrize("command", ["backup", "restore", "restore-drill"])
def test_command_without_a_running_database_names_what_to_start(tmp_path: Path, command: str) -> None:
    finished = subprocess.run(
        [PROJECT_ROOT / "ops/backup.sh", command],
        env=os.environ | {"DATA_DIR": str(tmp_path), "stack": "local"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == f"{command}: PostgreSQL is not running: make run\n"


def test_unknown_stack_is_refused() -> None:
    finished = subprocess.run(
        [PROJECT_ROOT / "ops/backup.sh", "backup"],
        env=os.environ | {"stack": "production"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (1, "backup: stack: must be prod, dev or local, got production\n")
