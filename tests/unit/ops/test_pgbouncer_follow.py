"""ops/pgbouncer/follow.sh, with programs in place of PgBouncer and of the resolver."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.support.waiting import eventually

# It writes down what it reads, at its start and at SIGHUP.
PGBOUNCER = """#!{python}
import pathlib, re, signal, sys
def read(*_):
    [databases] = re.findall("^%include (.+)$", pathlib.Path(sys.argv[1]).read_text(), re.MULTILINE)
    with open(sys.argv[1] + ".seen", "a") as seen:
        seen.write(pathlib.Path(databases).read_text())
signal.signal(signal.SIGHUP, read)
read()
while True:
    signal.pause()
"""


@dataclass(frozen=True)
class Container:
    directory: Path
    process: "subprocess.Popen[str]"

    def resolve(self, address: str) -> None:
        """Set what the resolver answers."""
        (self.directory / "address").write_text(address)

    @property
    def hosts(self) -> list[str]:
        """Return the hosts that PgBouncer has read, in their order."""
        seen = self.directory / "run/pgbouncer.ini.seen"
        lines = seen.read_text().splitlines() if seen.exists() else []
        return [line.split("host=")[1].split()[0] for line in lines if "host=" in line]


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    for name in ("bin", "etc", "run"):
        (tmp_path / name).mkdir()
    resolver = f"#!/bin/sh\n[ \"$*\" = 'ahostsv4 postgres' ] && cat {tmp_path}/address\n"
    for program, text in (("pgbouncer", PGBOUNCER.replace("{python}", sys.executable)), ("getent", resolver)):
        (tmp_path / "bin" / program).write_text(text)
        (tmp_path / "bin" / program).chmod(0o755)
    for file in ("pgbouncer.ini", "databases.ini"):
        text = (PROJECT_ROOT / "ops/pgbouncer" / file).read_text()
        (tmp_path / "etc" / file).write_text(text.replace("/etc/pgbouncer/", f"{tmp_path}/etc/"))
    process = subprocess.Popen(
        ["sh", PROJECT_ROOT / "ops/pgbouncer/follow.sh", "pgbouncer", tmp_path / "etc/pgbouncer.ini"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PGBOUNCER_RUNTIME": str(tmp_path / "run")},
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield Container(tmp_path, process)
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)
        process.wait()


def test_pgbouncer_reads_each_new_address_of_its_server(container: Container) -> None:
    """Until the first address is known, PgBouncer has the name."""
    eventually(lambda: container.hosts == ["postgres"], within=60)

    container.resolve("10.0.1.2       STREAM postgres\n10.0.1.2       DGRAM\n")
    eventually(lambda: container.hosts[-1] == "10.0.1.2", within=60)
    container.resolve("")  # no container runs
    container.resolve("10.0.1.15       STREAM postgres\n")
    eventually(lambda: container.hosts[-1] == "10.0.1.15", within=60)

    assert container.process.poll() is None
    text = (container.directory / "run/databases.ini").read_text()
    assert "headroom = host=10.0.1.15 port=5432" in text
