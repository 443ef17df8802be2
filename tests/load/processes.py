"""What processes have cost. Linux only."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all it has started, those that have ended included."""
    children: dict[int, list[int]] = {}
    times: dict[int, tuple[int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which is in parentheses and may be anything: state, parent, ...
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        # utime and stime; cutime and cstime, of children that have ended and been waited for.
        times[int(stat.parent.name)] = (int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]))
    family = [pid]
    for each in family:
        family += children.get(each, [])
    return sum(sum(times.get(each, (0, 0))) for each in family) / _TICKS
