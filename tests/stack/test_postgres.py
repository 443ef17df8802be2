"""The postgres service of both Compose files: its configuration, and the roles of a new volume."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from testcontainers.core.container import DockerContainer

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.postgres import IMAGE
from tests.support.waiting import eventually

MOUNTS = {
    "postgresql.conf": "/etc/postgresql/postgresql.conf",
    "roles.sql": "/etc/postgresql/roles.sql",
    "init": "/docker-entrypoint-initdb.d",
}
# Passwords with characters that a shell, psql or a string literal would interpret.
PASSWORDS = {"owner": "it's", "app": r"a\nb\'c", "monitor": '$(id) `id` "$HOME"', "pgbouncer": ":'owner' :app; --"}


@dataclass(frozen=True)
class Postgres:
    container: DockerContainer

    def connect(self, role: str, password: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=int(self.container.get_exposed_port(5432)),
            dbname="headroom",
            user=role,
            password=password,
            connect_timeout=5,
            autocommit=True,
        )

    def connect_as(self, role: str) -> psycopg.Connection:
        return self.connect(f"headroom_{role}", PASSWORDS[role])

    def state(self) -> str:
        wrapped = self.container.get_wrapped_container()
        wrapped.reload()
        return str(wrapped.status)

    def log(self) -> str:
        return b"".join(self.container.get_logs()).decode()


@contextmanager
def run(**environment: str) -> Iterator[Postgres]:
    require_engine()
    container = DockerContainer(IMAGE, user="postgres").with_exposed_ports(5432)
    container.with_command("postgres -c config_file=/etc/postgresql/postgresql.conf")
    for name, value in {"POSTGRES_PASSWORD": "superuser", "POSTGRES_DB": "headroom", **environment}.items():
        container.with_env(name, value)
    for name, path in MOUNTS.items():
        container.with_volume_mapping(PROJECT_ROOT / "ops/postgres" / name, path, "ro")
    with container:
        yield Postgres(container)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run(**{f"HEADROOM_{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()}) as postgres:
        eventually(lambda: postgres.connect("postgres", "superuser"), within=60).close()
        yield postgres


@pytest.mark.parametrize("role", PASSWORDS)
def test_role_has_the_password_of_its_variable(postgres: Postgres, role: str) -> None:
    with postgres.connect_as(role) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (f"headroom_{role}",)


def test_mounted_configuration_file_is_applied_completely(postgres: Postgres) -> None:
    with postgres.connect("postgres", "superuser") as superuser:
        settings = superuser.execute("SELECT name, applied, error, sourcefile FROM pg_file_settings").fetchall()

    assert "max_connections" in {name for name, *_ in settings}
    assert {tuple(rest) for _, *rest in settings} == {(True, None, "/etc/postgresql/postgresql.conf")}


def test_monitor_connects_when_the_api_uses_every_connection(postgres: Postgres) -> None:
    taken: list[psycopg.Connection] = []
    try:
        with pytest.raises(psycopg.OperationalError, match="remaining connection slots are reserved"):
            while len(taken) < 100:
                taken.append(postgres.connect_as("app"))
        with postgres.connect_as("monitor") as monitor:
            [(seen,)] = monitor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'headroom_app'"
            ).fetchall()
    finally:
        for connection in taken:
            connection.close()

    assert seen == len(taken) == 100 - 3 - 5


def test_missing_password_stops_the_start_and_is_named() -> None:
    with run(HEADROOM_OWNER_PASSWORD="owner", HEADROOM_APP_PASSWORD="") as postgres:
        eventually(lambda: postgres.state() == "exited", within=60)
        assert "HEADROOM_APP_PASSWORD: must be set, or HEADROOM_APP_PASSWORD_FILE" in postgres.log()

        # Start it again, as `restart: unless-stopped` does: it must not run on a volume without roles.
        postgres.container.get_wrapped_container().start()
        eventually(lambda: "exists but is not empty" in postgres.log(), within=60)
        eventually(lambda: postgres.state() == "exited", within=60)
