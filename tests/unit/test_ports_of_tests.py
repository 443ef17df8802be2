"""The ports that tests give to their servers."""

import subprocess
import sys

from app.paths import PROJECT_ROOT
from tests.support import ports
from tests.support.ports import PORTS, free_port, free_ports

HOLD = "from tests.support.ports import free_ports; print(*free_ports(3), flush=True); input()"


def test_ports_are_given_once_and_not_to_clients() -> None:
    given = [free_port() for _ in range(50)] + free_ports(3)

    assert len(set(given)) == len(given)
    assert all(port in PORTS for port in given)
    assert given[-1] == given[-2] + 1 == given[-3] + 2


def test_port_of_another_process_is_not_given() -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        theirs = list(map(int, process.stdout.readline().split()))
        assert [ports._reserve(port) for port in theirs] == [False] * 3
        process.communicate("\n")

    assert [ports._reserve(port) for port in theirs] == [True] * 3
