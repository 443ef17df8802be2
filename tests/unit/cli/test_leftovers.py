"""What a killed `headroom up` leaves running is ended by the next one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.leftovers import _start_of, end_leftovers, note_processes
from tests.support.waiting import eventually

# Starts a child in its group, and says so: the group must end too.
PROGRAM = (
    "import subprocess, time; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
)


@pytest.fixture
def left() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a process in a session of its own. Yield it and the number of its child."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout
        yield process, int(process.stdout.readline())
        process.kill()


def noted_by_a_dead_process(file: Path, pid: int, start: str) -> None:
    file.write_text(f"{2**30} 1\n{pid} {start}\n")


def test_processes_of_a_killed_program_end_with_their_groups(
    tmp_path: Path, left: tuple[subprocess.Popen[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    process, child = left
    noted_by_a_dead_process(tmp_path / "processes", process.pid, _start_of(process.pid))

    end_leftovers(tmp_path / "processes")

    assert process.wait(10) < 0
    eventually(lambda: not _start_of(child), within=60)
    assert not (tmp_path / "processes").exists()
    assert f"has left: processes {process.pid}" in capsys.readouterr().out


def test_processes_of_a_running_program_are_left_alone(tmp_path: Path, left: tuple[subprocess.Popen[str], int]) -> None:
    note_processes(tmp_path / "processes", [left[0].pid])  # by this process, which runs

    end_leftovers(tmp_path / "processes")

    assert left[0].poll() is None
    assert (tmp_path / "processes").read_text().split()[::2] == [str(os.getpid()), str(left[0].pid)]


def test_process_that_got_the_number_of_another_is_left_alone(
    tmp_path: Path, left: tuple[subprocess.Popen[str], int]
) -> None:
    noted_by_a_dead_process(tmp_path / "processes", left[0].pid, "1")

    end_leftovers(tmp_path / "processes")

    assert left[0].poll() is None


@pytest.mark.parametrize("content", ["", "nonsense\n", "\n\n"])
def test_file_without_processes_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "processes").write_text(content)

    end_leftovers(tmp_path / "processes")
    end_leftovers(tmp_path / "missing")
