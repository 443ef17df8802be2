"""The postgres service of both Compose files, on both versions: its configuration, and the roles of a new volume."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from testcontainers.core.container import DockerContainer

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.postgres import DATA, DEFAULT_IMAGE, NEXT_IMAGE
from tests.support.waiting import eventually

MOUNTS = {
    "start.sh": "/etc/postgresql/start.sh",
    "postgresql.conf": "/etc/postgresql/postgresql.conf",
    "roles.sql": "/etc/postgresql/roles.sql",
    "init": "/docker-entrypoint-initdb.d",
}
# Passwords with characters that a shell, psql or a string literal would interpret.
PASSWORDS = {"owner": "it's", "app": r"a\nb\'c", "monitor": '$(id) `id` "$HOME"', "pgbouncer": ":'owner' :app; --"}
PASSWORD_VARIABLES = {f"HEADROOM_{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()}


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
def run(image: str, environment: dict[str, str], *, volume: str | None = None, **options: Any) -> Iterator[Postgres]:
    require_engine()
    start = ["bash", "/etc/postgresql/start.sh"]
    container = DockerContainer(image, user="postgres", entrypoint=start, **options).with_exposed_ports(5432)
    container.with_command("postgres -c config_file=/etc/postgresql/postgresql.conf")
    defaults = {"PGDATA": DATA, "POSTGRES_PASSWORD": "superuser", "POSTGRES_DB": "headroom"}
    for name, value in (defaults | environment).items():
        container.with_env(name, value)
    for name, path in MOUNTS.items():
        container.with_volume_mapping(PROJECT_ROOT / "ops/postgres" / name, path, "ro")
    if volume:
        container.with_volume_mapping(volume, DATA, "rw")
    for path in ("/tmp", "/run/postgresql"):
        container.with_tmpfs_mount(path)
    with container:
        yield Postgres(container)


@pytest.fixture(scope="module", params=[DEFAULT_IMAGE, NEXT_IMAGE])
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    with run(request.param, PASSWORD_VARIABLES) as postgres:
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
    with run(DEFAULT_IMAGE, {"HEADROOM_OWNER_PASSWORD": "owner", "HEADROOM_APP_PASSWORD": ""}) as postgres:
        eventually(lambda: postgres.state() == "exited", within=60)
        assert "HEADROOM_APP_PASSWORD: must be set, or HEADROOM_APP_PASSWORD_FILE" in postgres.log()

        # Start it again, as `restart: unless-stopped` does: it must not run on a volume without roles.
        postgres.container.get_wrapped_container().start()
        eventually(lambda: "exists but is not empty" in postgres.log(), within=60)
        eventually(lambda: postgres.state() == "exited", within=60)


@pytest.mark.parametrize("base", [DEFAULT_IMAGE, NEXT_IMAGE])
def test_production_image_starts_on_a_new_volume(base: str) -> None:
    """The container of compose.prod.yml cannot change the owner of its volume: the image must have prepared it."""
    require_engine()
    tag = f"headroom-postgres:test-{base.partition(':')[2]}"
    build = ["docker", "build", "--quiet", "--tag", tag, "--build-arg", f"POSTGRES_IMAGE={base}", "ops/postgres"]
    subprocess.run(build, cwd=PROJECT_ROOT, check=True, capture_output=True)
    volume = f"headroom-postgres-{os.getpid()}-{base.partition(':')[2]}"
    try:
        with run(tag, PASSWORD_VARIABLES, volume=volume, read_only=True, cap_drop=["ALL"]) as postgres:
            eventually(lambda: postgres.connect_as("app"), within=60).close()
            container = postgres.container.get_wrapped_container()
            version = container.exec_run("cat PG_VERSION", workdir=DATA).output.decode().strip()
            assert base.startswith(f"postgres:{version}-")
            path = container.exec_run("printenv PGBACKREST_PG1_PATH").output.decode().strip()
            assert path == DATA
    finally:
        subprocess.run(["docker", "volume", "rm", "--force", volume], check=True, capture_output=True)
