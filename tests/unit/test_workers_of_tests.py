"""Some tests run pytest in a copy of the project, in workers with locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.support import workers

# The fixture ends when the other test waits to be alone, which then runs at the first opportunity.
TESTS = """
import fcntl
from pathlib import Path

import pytest

from tests.support.waiting import eventually
from tests.support.workers import run_directory

ORDER = Path(__file__).with_name("order")


def note(text):
    with ORDER.open("a") as file:
        print(text, file=file)


def another_waits():
    with (run_directory() / "queue.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def prepared():
    note("setup")
    eventually(another_waits, within=60)
    yield
    note("teardown")


def test_with_others(prepared):
    note("call")


@pytest.fixture
def after_the_other():
    eventually(ORDER.exists, within=60)


@pytest.mark.alone
def test_alone(after_the_other):
    note("alone")
"""


def test_pytest_that_a_test_starts_has_no_lock_in_common_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_directory", None)
    monkeypatch.setenv(workers.VARIABLE, str(tmp_path))

    workers.enter_run_directory()

    assert workers.run_directory() == tmp_path
    inherited = subprocess.run(
        [sys.executable, "-c", f"import os; print({workers.VARIABLE!r} in os.environ)"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert inherited.stdout == "False\n"


def test_this_process_hands_no_lock_on() -> None:
    assert workers.VARIABLE not in os.environ


def test_no_pause_between_the_setup_and_the_call_of_a_test(tmp_path: Path) -> None:
    """A pause stopped the event loop while a connection was opened, and the server ended its transaction."""
    (tmp_path / "test_order.py").write_text(TESTS)
    configuration = f"--config-file={PROJECT_ROOT / 'pyproject.toml'}"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "2", configuration]

    run = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path / "test_order.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "order").read_text().split() == ["setup", "call", "teardown", "alone"]
