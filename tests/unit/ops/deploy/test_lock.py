"""The lock around a command, with a program in place of Docker. tests/stack/test_deploy_lock.py has the lock itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.support.waiting import eventually
from tests.unit.ops.test_backup_scripts import calls, write_program

MODEL = '{"name": "shop", "services": {"proxy": {"image": "haproxy"}}}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a `docker` that logs the end of the lock."""
    lock = f"cat; echo END-OF-LOCK >>{tmp_path}/calls"
    write_program(
        tmp_path / "bin", "docker", f"case \"$*\" in *config*) echo '{MODEL}' ;; *deploy-lock*) {lock} ;; esac"
    )
    return tmp_path


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ops.deploy.lock", "restore", *command],
        cwd=PROJECT_ROOT,
        env=os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "DEPLOY_BY": "ann"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_command_runs_while_the_lock_is_held(folder: Path) -> None:
    with start(folder, "bash", "-c", f"echo COMMAND >>{folder}/calls; exit 7") as process:
        assert process.communicate(timeout=60) == ("", "")

    assert process.returncode == 7
    assert "--label headroom.deploy.by=restore by ann " in calls(folder)
    assert calls(folder).split()[-2:] == ["COMMAND", "END-OF-LOCK"]


def test_command_is_not_run_if_the_lock_is_held(folder: Path) -> None:
    script = f"case \"$*\" in *config*) echo '{MODEL}' ;; run*) echo is already in use >&2; exit 125 ;; esac"
    write_program(folder / "bin", "docker", script)

    with start(folder, "touch", str(folder / "ran")) as process:
        _, messages = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "restore: the stack shop is being changed" in messages
    assert not (folder / "ran").exists()


def test_lock_of_a_killed_program_is_held_until_the_command_ends(folder: Path) -> None:
    command = f"echo started; read -r < {folder}/go; echo COMMAND >>{folder}/calls"
    os.mkfifo(folder / "go")
    with start(folder, "bash", "-c", command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert "END-OF-LOCK" not in calls(folder)
        (folder / "go").write_text("\n")
    eventually(lambda: calls(folder).split()[-2:] == ["COMMAND", "END-OF-LOCK"], within=60)
