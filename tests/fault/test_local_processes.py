"""`headroom up`: however it ends, it leaves no process behind."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.stacks import LocalStack
from tests.support.waiting import eventually


@pytest.fixture
def local(new_directory: Callable[[], Path]) -> Iterator[LocalStack]:
    """Return a stack that has not been started. Kill what is left of it after the test."""
    stack = LocalStack(new_directory())
    yield stack
    for pid in stack.descendants():
        stack.kill_worker(pid)
    stack.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_every_process(local: LocalStack, number: signal.Signals) -> None:
    with local.running():
        # PostgreSQL and its own processes, the exporter, Gunicorn and its four workers.
        eventually(lambda: len(local.descendants()) >= 10 and len(local.worker_pids()) == 4, within=60)
        assert local.stop(number) == 0

    assert local.descendants() == []


def test_signal_during_the_start_leaves_no_process(local: LocalStack) -> None:
    local.start()
    eventually(lambda: "starting PostgreSQL" in local.log.read_text(), within=60)

    assert local.stop(signal.SIGTERM) == 0
    assert local.descendants() == []


@pytest.mark.parametrize("receiver", ["headroom", "process group"])
@pytest.mark.parametrize("program", ["initdb", "pg_ctl"])
def test_repeated_ctrl_c_during_the_start_leaves_no_process(local: LocalStack, program: str, receiver: str) -> None:
    def ended() -> bool:
        local.press_ctrl_c() if receiver == "process group" else local.process.send_signal(signal.SIGINT)
        return local.process.poll() is not None

    def seen() -> bool:
        """Look for the program. On a busy machine it may end between two looks: then start again."""
        if local.is_running(program):
            return True
        if local.is_running("gunicorn"):
            local.stop()
            local.start()
        return False

    local.start()
    eventually(seen, within=60, every=0.002)
    eventually(ended, within=60)

    assert local.descendants() == []
    assert local.process.returncode == 0, local.log.read_text()
    with local.running():
        assert httpx.get(f"{local.api}/readyz").status_code == 200


def test_second_start_finds_the_data_of_the_first(local: LocalStack) -> None:
    with local.running():
        location = httpx.post(f"{local.api}{sample.PATH}", json=sample.new("ann")).headers["location"]
    with local.running():
        assert httpx.get(f"{local.api}{location}").json()["name"] == "ann"


def test_end_of_the_api_ends_every_process_and_is_logged(local: LocalStack) -> None:
    with local.running():
        local.kill_worker(local.master_pid())
        assert local.process.wait(timeout=60) == 1

    assert local.descendants() == []
    assert "headroom up: the api exited unexpectedly with status -9" in local.log.read_text().splitlines()


def test_busy_port_is_reported_in_one_line_before_the_start(local: LocalStack) -> None:
    port = int(local.environment["EXPORTER_PORT"])
    with socket.create_server(("127.0.0.1", port)):
        local.start()
        assert local.process.wait(timeout=30) == 1

    complaint = f"headroom up: EXPORTER_PORT: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert local.log.read_text().startswith(complaint)
    assert len(local.log.read_text().splitlines()) == 1
    assert local.descendants() == []


def test_unreachable_database_is_reported_in_one_line(tmp_path: Path) -> None:
    local = LocalStack(tmp_path, DATABASE_URL="postgresql+asyncpg://someone:secret@127.0.0.1:1/none")
    local.start()

    assert local.process.wait(timeout=30) == 1
    *_, last = local.log.read_text().splitlines()
    assert last.startswith("headroom up: the migration failed: cannot connect: ")
    assert "Traceback" not in local.log.read_text()
    assert "secret" not in local.log.read_text()
    assert local.descendants() == []


def test_over_budget_is_reported_with_the_table_and_one_line(new_directory: Callable[[], Path]) -> None:
    local = LocalStack(new_directory(), API_REPLICAS="2")
    local.start()

    assert local.process.wait(timeout=30) == 1
    *_, last = local.log.read_text().splitlines()
    assert last.startswith("headroom up: over budget: server connections: 124 demanded, 97 available (api 120 + ")
    assert "OVER BUDGET" in local.log.read_text()
    assert local.descendants() == []


def test_broken_data_directory_is_reported_in_one_line(local: LocalStack) -> None:
    (local.directory / "postgres").mkdir()
    (local.directory / "postgres" / "PG_VERSION").write_text("9\n")
    local.start()

    assert local.process.wait(timeout=30) == 1
    *_, last = local.log.read_text().splitlines()
    assert last.startswith("headroom up: PostgreSQL did not start: ")
    assert local.descendants() == []


@pytest.mark.parametrize("stack", ["local"], indirect=True)
def test_second_process_on_the_same_data_is_refused(stack: LocalStack) -> None:
    second = LocalStack(stack.directory)
    second.log = stack.directory / "second.log"
    second.start()

    assert second.process.wait(timeout=30) == 1
    assert httpx.get(f"{stack.api}/readyz").status_code == 200
    [line] = second.log.read_text().splitlines()
    assert line.startswith(f"headroom up: DATA_DIR: another `headroom up` uses {stack.directory};")


def test_folders_above_the_data_stay_closed_to_other_users(new_directory: Callable[[], Path]) -> None:
    private = new_directory() / "private"
    private.mkdir(mode=0o700)
    local = LocalStack(private)
    local.start()
    eventually(lambda: local.is_running("initdb"), within=60, every=0.002)
    assert local.stop() == 0

    assert private.stat().st_mode & 0o066 == 0, "the user of PostgreSQL only needs to pass through it"


def test_stack_in_a_folder_with_a_space_runs(new_directory: Callable[[], Path]) -> None:
    spacious = new_directory() / "a b"
    spacious.mkdir()
    with LocalStack(spacious).running() as stack:
        assert httpx.get(f"{stack.api}/readyz").status_code == 200


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WEB_CONCURRENCY", "abc"), ("METRICS_DIR", "/proc/none"), ("DB_POOL_SIZE", "0"), ("SECRET_KEY", "")],
)
def test_api_with_an_invalid_setting_reports_one_line(tmp_path: Path, variable: str, value: str) -> None:
    environment = {
        "DATABASE_URL": "postgresql+asyncpg://db/none",
        "SECRET_KEY": "x" * 32,
        "METRICS_DIR": str(tmp_path),
        variable: value,
    }
    finished = subprocess.run(
        [sys.executable, "-m", "app.cli.main", "api"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode != 0
    assert finished.stderr.startswith(("headroom: ", "headroom api: "))
    assert f": {variable}: " in f": {finished.stderr.partition(': ')[2]}"
    assert finished.stderr.count("\n") == 1


def test_api_without_a_database_url_reports_one_line(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", str(PROJECT_ROOT / "ops/gunicorn/gunicorn.conf.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode != 0
    assert finished.stderr.startswith("headroom: DATABASE_URL: must be set")
    assert finished.stderr.count("\n") == 1
