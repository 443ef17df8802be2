"""`headroom backfill` with the back-fill of `users.deactivated_at`, next to a live system."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.support.migrations import run_project, upgrade_project
from tests.support.postgres import PgBouncer, connect
from tests.support.waiting import eventually

from .test_backfill import ROWS, locked, waits_for_a_lock

HEADROOM = [sys.executable, "-m", "app.cli.main"]
NAME = "users-deactivated-at"
REVISION = "5c80d1e6f294"


@pytest.fixture
def expanded(owner: URL, tmp_path: Path) -> URL:
    """Return the owner's URL of a database with inactive users from before the expanding revision."""
    upgrade_project(owner, tmp_path, "downgrade", "b3d81f6ac945")
    with connect(owner) as connection:
        connection.execute(
            "INSERT INTO users (email, name, password_hash, is_active, updated_at)"
            " SELECT n || '@example.com', 'Name', '', n %% 2 = 0, now() - n * interval '1 day'"
            " FROM generate_series(1, %s) AS n",
            (ROWS,),
        )
    upgrade_project(owner, tmp_path, "upgrade", "2f5a9c7be310")
    return owner


def test_killed_command_continues_where_it_stopped(expanded: URL, tmp_path: Path) -> None:
    environment = {"MIGRATION_DDL_LOCK_TIMEOUT": "60"}
    with connect(expanded) as watcher, locked(expanded, "SELECT FROM users WHERE id = 1999 FOR UPDATE"):
        job = start(expanded, tmp_path, environment)
        eventually(lambda: waits_for_a_lock(watcher), within=60)
        job.send_signal(signal.SIGKILL)
        job.wait()
        eventually(lambda: not waits_for_a_lock(watcher), within=60)
        [(read,)] = watcher.execute("SELECT rows_read FROM schema_backfills").fetchall()
        assert 0 < read < ROWS
        listed = run_project([*HEADROOM, "backfill"], expanded, tmp_path)
        assert f"stopped or running, at {read}; {read} rows read, {read // 2} changed" in listed.stdout, listed.stdout

    finished = run_project([*HEADROOM, "backfill", NAME], expanded, tmp_path)
    assert finished.returncode == 0, finished.stdout
    assert f"continues after id {read}" in finished.stdout
    assert finished.stdout.endswith(f"{NAME}: finished; {ROWS} rows read, {ROWS // 2} changed\n")
    with connect(expanded) as connection:
        wrong = "SELECT FROM users WHERE is_active <> (deactivated_at IS NULL) OR deactivated_at <> updated_at"
        assert connection.execute(wrong).fetchall() == []


def start(url: URL, directory: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start the command without waiting for it."""
    address = url.render_as_string(hide_password=False)
    variables = os.environ | {"MIGRATION_DATABASE_URL": address, "SECRET_KEY": "x" * 32} | environment
    return subprocess.Popen(
        [*HEADROOM, "backfill", NAME], cwd=directory, env=variables, stdout=subprocess.DEVNULL, text=True
    )


def test_command_knows_the_revisions(expanded: URL, tmp_path: Path) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        finished = run_project([*HEADROOM, "backfill", *arguments], expanded, tmp_path, LOG_LEVEL="error")
        assert "Traceback" not in finished.stdout
        return finished.returncode, finished.stdout.strip()

    def listed() -> str:
        return command()[1].partition(REVISION)[2].strip()

    assert command("unknown") == (1, f"headroom backfill: NAME: there is no back-fill unknown; there are: {NAME}")
    assert listed() == "not started"
    upgrade_project(expanded, tmp_path, "downgrade", "-1")
    assert listed() == "needs revision 2f5a9c7be310"
    assert command(NAME) == (
        1,
        f"headroom backfill: {NAME}: apply revision 2f5a9c7be310 first, which this back-fill needs",
    )
    assert upgrade_project(expanded, tmp_path).returncode == 0
    assert listed() == "applied"
    assert command(NAME) == (0, f"{NAME}: nothing to do, revision {REVISION} is applied")


def test_command_that_gets_no_lock_fails_in_a_few_lines(expanded: URL, tmp_path: Path) -> None:
    with locked(expanded, "SELECT FROM users WHERE id = 1999 FOR UPDATE"):
        finished = run_project(
            [*HEADROOM, "backfill", NAME],
            expanded,
            tmp_path,
            MIGRATION_DDL_LOCK_TIMEOUT="0.1",
            MIGRATION_RETRY_TIMEOUT="0",
            LOG_LEVEL="error",
        )

    assert finished.returncode == 1
    lines = finished.stdout.splitlines()
    assert lines[0] == f"headroom backfill: {NAME}: canceling statement due to lock timeout"
    assert lines[-1] == "run it again: it continues where it stopped"
    assert len(lines) == 3


def test_command_through_pgbouncer_is_refused(database_url: URL, pgbouncer: PgBouncer, tmp_path: Path) -> None:
    finished = run_project(
        [*HEADROOM, "backfill", NAME], pgbouncer.url(database_url), tmp_path, DATABASE_URL="", LOG_LEVEL="error"
    )

    assert finished.returncode == 1
    assert "headroom backfill: MIGRATION_DATABASE_URL: 127.0.0.1:" in finished.stdout
    assert "is a connection pooler" in finished.stdout
