"""TCP ports for servers that tests and benchmarks start."""

import fcntl
import os
import socket
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom

# Below the ports that Linux (32768 to 60999) and macOS give to clients. A load takes thousands of those, each for a
# minute, and the server that a test starts a second later could not have one.
PORTS = range(10_240, 32_768)

_given: set[int] = set()
_locks: int | None = None


def free_port() -> int:
    """Return a port that no server listens on. Until this process ends, no other process of this user gets it."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Return such ports, one after the other."""
    while True:
        first = SystemRandom().randrange(PORTS.start, PORTS.stop - number + 1)
        ports = list(range(first, first + number))
        if _given.isdisjoint(ports) and all(map(_reserve, ports)) and _are_free(ports):
            _given.update(ports)
            return ports


def _reserve(port: int) -> bool:
    """Lock the port's byte of a file. Return False if another process has locked it."""
    global _locks
    if _locks is None:
        path = Path(tempfile.gettempdir()) / f"headroom-test-ports-{os.getuid()}"
        _locks = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _are_free(ports: list[int]) -> bool:
    with suppress(OSError), ExitStack() as listeners:
        for port in ports:
            listeners.enter_context(socket.create_server(("127.0.0.1", port)))
        return True
    return False
