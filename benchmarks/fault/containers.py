"""Containers of a trial: PgBouncer, and the API as an image. They use the host's network and 127.0.0.1 only."""

import os
import subprocess
from contextlib import ExitStack
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Self

import psycopg
from sqlalchemy import URL

from benchmarks.fault.postgres import DATABASE, PASSWORD
from tests.support.docker import engine_answers
from tests.support.ports import free_port
from tests.support.waiting import eventually

CONSOLE_USER = "headroom_console"
_numbers = count(1)


def docker(*arguments: str | Path, check: bool = True, within: float = 60) -> str:
    """Run a command of Docker and return its output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=within)
    if check and done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


@cache
def build_image(folder: Path) -> str:
    """Build the image of a folder and return its name."""
    name = f"headroom-fault:{sha256(str(folder).encode()).hexdigest()[:12]}"
    docker("build", "--quiet", "--tag", name, folder, within=600)
    return name


def has_engine() -> bool:
    """Return True if a Docker engine responds."""
    return engine_answers()


class Container:
    """A container that is removed at the end of the block."""

    def __init__(self, image: str, options: list[str], command: list[str]) -> None:
        self.name = f"headroom-fault-{os.getpid()}-{next(_numbers)}"
        self._create = [
            "run",
            "--detach",
            "--init",
            "--network",
            "host",
            "--name",
            self.name,
            *options,
            image,
            *command,
        ]

    def __enter__(self) -> Self:
        try:
            docker(*self._create)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "--force", "--volumes", self.name, check=False)

    def signal(self, name: str) -> None:
        """Send a signal to the program in the container."""
        docker("kill", "--signal", name, self.name)

    def freeze(self) -> None:
        """Stop every process of the container with the kernel's freezer, which acts as SIGSTOP."""
        docker("pause", self.name)

    def thaw(self) -> None:
        """Let the processes go on."""
        docker("unpause", self.name)

    def wait(self) -> None:
        """Wait until the program has ended."""
        docker("wait", self.name)

    def start(self) -> None:
        """Start the container again."""
        docker("start", self.name)

    def stop(self) -> None:
        """Stop the container as a deploy does, with 15 s for its running requests."""
        docker("stop", "--time", "15", self.name)

    def execute(self, *command: str) -> str:
        """Run a command in the container and return its output."""
        return docker("exec", self.name, *command)

    def log(self) -> str:
        """Return what the program has logged."""
        done = subprocess.run(
            ["docker", "logs", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60
        )
        return done.stdout.decode(errors="replace")


class PgBouncer:
    """PgBouncer with the configuration and the image of a checkout, in front of a server's host and port."""

    def __init__(self, checkout: Path, directory: Path, server: tuple[str, int]) -> None:
        self.port = free_port()
        folder = checkout / "ops/pgbouncer"
        ini = (folder / "pgbouncer.ini").read_text()
        ini = ini.replace("listen_port = 6432", f"listen_port = {self.port}").replace(
            "listen_addr = *", "listen_addr = 127.0.0.1"
        )
        self._has_console_user = f"admin_users = {CONSOLE_USER}" in ini
        options = ["--env", f"HEADROOM_PGBOUNCER_PASSWORD={PASSWORD}", "--env", f"HEADROOM_CONSOLE_PASSWORD={PASSWORD}"]
        databases = f"[databases]\n{DATABASE} = host={server[0]} port={server[1]}\n"
        for name, text in {"pgbouncer.ini": ini, "databases.ini": databases}.items():
            file = directory / name
            file.write_text(text)
            file.chmod(0o644)
            options += ["--volume", f"{file}:/etc/pgbouncer/{name}:ro"]
        command = ["pgbouncer", "/etc/pgbouncer/pgbouncer.ini"]
        self.container = Container(build_image(folder), options, command)

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.enter_context(self.container)
            self.wait_until_accepting()
            self._stack = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_until_accepting(self) -> None:
        """Wait until PgBouncer accepts connections."""
        conninfo = f"host=127.0.0.1 port={self.port} dbname={DATABASE} user=headroom_app connect_timeout=2".encode()
        eventually(lambda: psycopg.pq.PGconn.ping(conninfo) == psycopg.pq.Ping.OK, within=30)

    def start(self) -> None:
        """Start PgBouncer again."""
        self.container.start()
        self.wait_until_accepting()

    def migration_settings(self) -> dict[str, str]:
        """Return the settings of the migration job that name PgBouncer's console, if the checkout has a user for it."""
        if not self._has_console_user:
            return {}
        url = URL.create("postgresql+psycopg", CONSOLE_USER, PASSWORD, "127.0.0.1", self.port, "pgbouncer")
        return {"PGBOUNCER_ADMIN_URL": url.render_as_string(hide_password=False)}

    def console(self, command: str) -> list[list[str]]:
        """Run a command on the console as its administrator. Return rows of text, the names of the columns first."""
        psql = f"psql -h /run/headroom-pgbouncer -p {self.port} -U pgbouncer -d pgbouncer -A -P footer=off -c".split()
        return [line.split("|") for line in self.container.execute(*psql, command).splitlines()]
