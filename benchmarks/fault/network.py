"""A network of its own for PostgreSQL, on which packets can be dropped. Requires root."""

import os
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Self

from tests.support.waiting import eventually

PROGRAMS = ("unshare", "nsenter", "ip", "iptables")
# Link-local addresses: no packet leaves the machine.
SUBNET = "169.254.0.0/16"
_numbers = count(os.getpid())


def is_available() -> bool:
    """Return True if this machine can make such a network."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


class Network:
    """A network namespace with the address `host`, and a virtual cable to it. The kernel removes both at the end."""

    def __init__(self) -> None:
        number = next(_numbers)
        # A network of four addresses: this machine's end of the cable is the first, the namespace's the second. All
        # are below 169.254.169.254, which means something to clouds.
        first = 4 * (number % 10_000) + 1
        self._own, self.host = (f"169.254.{each // 256}.{each % 256}" for each in (first, first + 1))
        self._cable = f"fault{number % 100_000_000}"

    def __enter__(self) -> Self:
        # The namespace lives as long as this process.
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], start_new_session=True)
        try:
            namespace = Path(f"/proc/{self._holder.pid}/ns/net")
            eventually(lambda: namespace.readlink() != Path("/proc/self/ns/net").readlink(), within=10)
            peer = ["peer", "name", "eth0", "netns", str(self._holder.pid)]
            _run("ip", "link", "add", self._cable, "type", "veth", *peer)
            _run("ip", "address", "add", f"{self._own}/30", "dev", self._cable)
            _run("ip", "link", "set", self._cable, "up")
            _run(*self.enter(), "ip", "address", "add", f"{self.host}/30", "dev", "eth0")
            _run(*self.enter(), "ip", "link", "set", "eth0", "up")
            _run(*self.enter(), "ip", "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.wait()

    def enter(self, uid: int | None = None) -> list[str]:
        """Return a command that runs another one in the namespace, as the user `uid`."""
        user = [] if uid is None else ["--setuid", str(uid), "--setgid", str(uid)]
        return ["nsenter", "--target", str(self._holder.pid), "--net", *user]

    def drop(self) -> None:
        """Drop every packet, as a cut cable does: no side receives an error."""
        _run(*self.enter(), "iptables", "-A", "INPUT", "-i", "eth0", "-j", "DROP")
        _run(*self.enter(), "iptables", "-A", "OUTPUT", "-o", "eth0", "-j", "DROP")

    def restore(self) -> None:
        """Let packets pass again."""
        _run(*self.enter(), "iptables", "-F")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
