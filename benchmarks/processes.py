"""CPU time and memory of a process and its descendants, read from /proc. Linux only."""

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process tree, including descendants that have ended."""
    # utime, stime, and cutime, cstime of the children that have ended and been waited for.
    return sum(sum(map(int, fields[11:15])) for fields in _process_tree(pid).values()) / _TICKS


def private_bytes(pid: int) -> int:
    """Return the memory of a process tree that no other process shares."""
    total = 0
    for each in _process_tree(pid):
        with suppress(OSError):  # the process has just ended
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    return total * 1024


def process_ids(pid: int) -> list[int]:
    """Return the ids of a process and of its descendants, parents first."""
    return list(_process_tree(pid))


def _process_tree(pid: int) -> dict[int, list[str]]:
    """Return a process and its descendants by pid, with the fields of /proc/<pid>/stat that follow the name."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name is in parentheses and may contain anything. State, parent and so on follow it.
            fields = stat.read_text().rpartition(")")[2].split()
            stats[int(stat.parent.name)] = fields
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    tree = [pid]
    for each in tree:
        tree += children.get(each, [])
    return {each: stats[each] for each in tree if each in stats}
