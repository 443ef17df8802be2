"""What processes have cost. Linux only."""

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all it has started, those that have ended included."""
    # utime and stime; cutime and cstime, of children that have ended and been waited for.
    return sum(sum(map(int, fields[11:15])) for fields in _family(pid).values()) / _TICKS


def private_bytes(pid: int) -> int:
    """Memory of a process and of all it has started that no other process has part in."""
    total = 0
    for each in _family(pid):
        with suppress(OSError):  # it has just ended
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    return total * 1024


def _family(pid: int) -> dict[int, list[str]]:
    """A process and all it has started, with the fields of their /proc/<pid>/stat that follow the name."""
    stats: dict[int, list[str]] = {}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name is in parentheses, and may be anything. What follows: state, parent, ...
            fields = stat.read_text().rpartition(")")[2].split()
            stats[int(stat.parent.name)] = fields
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    family = [pid]
    for each in family:
        family += children.get(each, [])
    return {each: stats[each] for each in family if each in stats}
