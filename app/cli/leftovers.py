"""The processes that a killed `headroom up` leaves behind. The next one ends them.

A file names the process of `headroom up` and those that it started, each with the time of its start: the system
uses the numbers of processes again.
"""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from app.cli.embedded_postgres import log

# In DATA_DIR.
PROCESSES_FILE = "processes"
STOP_SECONDS = 10.0
KILL_SECONDS = 2.0


def note_processes(file: Path, started: list[int]) -> None:
    """Write this process and those that it started to the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{pid} {_start_of(pid)}" for pid in (os.getpid(), *started)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def end_leftovers(file: Path) -> None:
    """End the processes that the file names, with their groups, unless the `headroom up` that started them runs."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    noted = [(int(pid), start) for pid, _, start in (line.partition(" ") for line in lines) if pid.isdecimal()]
    running = [pid for pid, start in noted if start and _start_of(pid) == start]
    if not noted or noted[0][0] in running:
        return
    if running:
        log(f"ending what a killed `headroom up` has left: processes {', '.join(map(str, running))}")
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = monotonic() + STOP_SECONDS
    while any(_start_of(pid) for pid in running) and monotonic() < deadline:
        sleep(0.05)
    deadline = monotonic() + KILL_SECONDS
    for pid in running:
        with suppress(ProcessLookupError, PermissionError):  # macOS: no permission for a group of zombies
            while monotonic() < deadline:  # until the group has no process, and its ports are free
                os.killpg(pid, signal.SIGKILL)
                sleep(0.01)
    file.unlink(missing_ok=True)


def _start_of(pid: int) -> str:
    """Return when a process was started, in the system's own form; an empty string if it does not run."""
    if Path("/proc/self/stat").exists():
        try:
            state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if state == "Z" else fields[18]
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    state, _, start = printed.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()
