"""The servers of a trial: one or two PostgreSQL servers, PgBouncer, the API, its exporter, and relays between them.

API -> relay -> PostgreSQL                         setup "asyncpg"
API -> relay -> PgBouncer -> relay -> PostgreSQL   setup "psycopg-pgbouncer"
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from benchmarks.fault.api import Api, ApiContainer, ApiProcess, Exporter, environment_of, python_of
from benchmarks.fault.containers import PgBouncer
from benchmarks.fault.dns import NAME, NameServer, resolving_with
from benchmarks.fault.interrupts import deferred
from benchmarks.fault.network import Network
from benchmarks.fault.postgres import (
    PASSWORD,
    PostgresServer,
    copy_data,
    copy_primary,
    data_directory,
    initialise,
    wait_for_standby,
)
from benchmarks.fault.relay import Relay
from tests.support.ports import free_port
from tests.support.waiting import eventually

ASYNCPG, PSYCOPG_PGBOUNCER = "asyncpg", "psycopg-pgbouncer"
SETUPS = {ASYNCPG: "asyncpg, direct", PSYCOPG_PGBOUNCER: "psycopg, behind PgBouncer"}
SMALL_DISK = "160m"
PAGE = 4096
POSTS = 2000
API_BACKENDS = "application_name LIKE 'headroom:api:%'"


@dataclass(frozen=True)
class Plan:
    """Requirements of a fault: how the API runs, and which servers run next to it."""

    in_container: bool = False
    has_standby: bool = False
    names_both_servers: bool = False
    on_small_disk: bool = False
    resolves_name: bool = False
    has_own_network: bool = False
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def needs_root(self) -> bool:
        return self.on_small_disk or self.resolves_name or self.has_own_network


class Template:
    """A stopped server's data directory with the schema of a checkout and some rows, copied for each trial."""

    def __init__(self, checkout: Path, directory: Path) -> None:
        self.data = directory / "template"
        initialise(self.data)
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(network_settings(checkout))
        with PostgresServer(self.data) as server:
            server.execute("CREATE DATABASE headroom", database="postgres")
            server.execute((checkout / "ops/postgres/roles.sql").read_text())
            for role in ("owner", "app", "monitor", "pgbouncer"):
                server.execute(f"ALTER ROLE headroom_{role} PASSWORD '{PASSWORD}'")
            migrate(checkout, checkout, directory, {"MIGRATION_DATABASE_URL": owner_url(server)})
            server.execute(
                "INSERT INTO users (email, name, password_hash) VALUES ('reader@example.com', 'Reader', 'none')",
                "INSERT INTO posts (author_id, title, content)"
                f" SELECT u.id, 'Post ' || n, repeat('x', 200) FROM users u, generate_series(1, {POSTS}) n",
            )
            server.stop()  # cleanly: the copies need no recovery


def network_settings(checkout: Path) -> list[str]:
    """Return the lines of the checkout's postgresql.conf that say how the server notices a lost client."""
    lines = (checkout / "ops/postgres/postgresql.conf").read_text().splitlines(keepends=True)
    return [line for line in lines if line.startswith("tcp_")]


def owner_url(server: PostgresServer) -> str:
    """Return the URL for migrations."""
    return server.url("headroom_owner", "asyncpg").render_as_string(hide_password=False)


def migrate(checkout: Path, project: Path, directory: Path, settings: dict[str, str]) -> None:
    """Run the migration job of a `checkout` on the revisions of `project`, as a deploy does."""
    command = [python_of(checkout), "-m", "alembic", "-c", str(project / "pyproject.toml"), "upgrade", "head"]
    environment = environment_of(checkout, {"LOG_FORMAT": "json", "METRICS_DIR": str(directory), **settings})
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=90
    )
    if done.returncode != 0:
        raise RuntimeError(f"the migration failed: {(done.stdout + done.stderr)[-2000:]}")


class Topology:
    """Everything that runs in a trial. Faults act on its parts."""

    api: Api
    standby: PostgresServer | None = None

    def __init__(self, checkout: Path, template: Template, directory: Path, setup: str, plan: Plan) -> None:
        self.checkout = checkout
        self.directory = directory
        self.setup = setup
        self.plan = plan
        self._template = template
        self._stack = ExitStack()

    @property
    def is_pooled(self) -> bool:
        return self.setup == PSYCOPG_PGBOUNCER

    def __enter__(self) -> Self:
        # A signal that arrives meanwhile is raised inside the first block, which then ends the started programs.
        with ExitStack() as starting:
            with deferred():
                self._stack = starting
                self._start()
            self._stack = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with deferred():
            self._stack.close()

    def _start(self) -> None:
        enter = self._stack.enter_context
        disk = enter(small_disk(self.directory / "disk")) if self.plan.on_small_disk else self.directory
        self.disk = disk
        data = enter(data_directory(disk / "postgres"))
        copy_data(self._template.data, data)
        if self.plan.has_own_network:
            self.network = enter(Network())
            self.primary = enter(PostgresServer(data, self.network))
        else:
            self.primary = enter(PostgresServer(data))
        if self.plan.has_standby:
            copy = enter(data_directory(self.directory / "standby"))
            copy_primary(self.primary, copy)
            self.standby = enter(PostgresServer(copy))
            wait_for_standby(self.primary)
        # `server_relay` is in front of PostgreSQL; `relay` is in front of what the API connects to.
        self.server_relay = self.relay = enter(Relay(free_port(), self.primary.port))
        if self.is_pooled:
            server = ("127.0.0.1", self.server_relay.port)
            if self.plan.has_own_network:
                server = (self.primary.host, self.primary.port)
            self.pgbouncer = enter(PgBouncer(self.checkout, self.directory, server))
            self.relay = enter(Relay(free_port(), self.pgbouncer.port))
        wrapper: list[str] = []
        if self.plan.resolves_name:
            self.names = enter(NameServer())
            wrapper = resolving_with(self.names, self.directory)
        settings = self.settings()
        if self.plan.in_container:
            self.api = enter(ApiContainer(self.checkout, self.directory, settings))
        else:
            self.api = enter(ApiProcess(self.checkout, self.directory, settings, wrapper))
        monitor = self.primary.url("headroom_monitor").render_as_string(hide_password=False)
        self._exporter = enter(Exporter(self.checkout, self.directory, self.api, settings, monitor))
        self.account = self.api.sign_up()

    def settings(self) -> dict[str, str]:
        """Return the settings of the API. Those of the pool and of the workers are the defaults."""
        pooler = {"DB_POOLER": "pgbouncer"} if self.is_pooled else {}
        url = self.database_url().render_as_string(hide_password=False)
        return {"DATABASE_URL": url, **pooler, **self.plan.settings}

    def database_url(self) -> URL:
        """Return the URL that the API uses."""
        driver = "psycopg" if self.is_pooled else "asyncpg"
        host = NAME if self.plan.resolves_name else "127.0.0.1"
        url = self.primary.url("headroom_app", driver)
        if self.plan.has_own_network and not self.is_pooled:
            return url
        if not self.plan.names_both_servers:
            return url.set(host=host, port=self.relay.port)
        assert self.standby is not None
        hosts = [f"127.0.0.1:{server.port}" for server in (self.primary, self.standby)]
        query = {"host": hosts, "target_session_attrs": "read-write"}
        return URL.create(url.drivername, url.username, url.password, database=url.database, query=query)

    def start_container(self) -> ApiContainer:
        """Start a second container of the API, next to the first."""
        return self._stack.enter_context(ApiContainer(self.checkout, self.directory, self.settings()))

    def stored(self, prefix: str) -> list[str]:
        """Return the titles of the posts that begin with `prefix`.

        Wait some seconds for the last statements of the API. A backend may take longer to notice that its client has
        gone; it counts as leaked.
        """
        busy = f"SELECT FROM pg_stat_activity WHERE usename = 'headroom_app' AND state <> 'idle' AND {API_BACKENDS}"
        with suppress(AssertionError):
            eventually(lambda: not self.primary.query(busy), within=10)
        rows = self.primary.query("SELECT title FROM posts WHERE starts_with(title, %s)", prefix)
        return [str(title) for (title,) in rows]

    def leaked(self, within: float = 20.0) -> int:
        """Return the connections that are in use without a request, or open without being in a pool.

        Wait `within` seconds for them to become idle, and for the pools to publish what they hold.
        """
        found = 0

        def none_leaked() -> bool:
            nonlocal found
            pools = self._exporter.connections()
            found = int(pools["used"] + max(0.0, self._open_connections() - pools["idle"] - pools["used"]))
            return found == 0

        try:
            eventually(none_leaked, within=within, every=0.3)
        except AssertionError as error:
            if error.__cause__ is not None:  # the exporter did not answer
                raise
        return found

    def _open_connections(self) -> int:
        """Return the connections of the API that the other side counts."""
        if not self.is_pooled:
            [(number,)] = self.primary.query(f"SELECT count(*) FROM pg_stat_activity WHERE {API_BACKENDS}")
            return int(str(number))
        header, *clients = [line for line in self.pgbouncer.console("SHOW CLIENTS") if len(line) > 1]
        name = header.index("application_name")
        return sum(client[name].startswith("headroom:api:") for client in clients)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system. Requires root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK},mode=0755", "headroom-fault", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


def fill_disk(folder: Path) -> Path:
    """Fill a file system to the last page. Delete the returned file to free it."""
    file = folder / "filler"
    size = 1 << 26
    with file.open("wb") as filler:
        while size >= PAGE:
            try:
                os.posix_fallocate(filler.fileno(), filler.seek(0, os.SEEK_END), size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return file
