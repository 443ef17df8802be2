"""compose.external.yml: PostgreSQL elsewhere, with TLS and an administrator who is no superuser."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.callers import Caller
from tests.support.deployed import DeployedStack
from tests.support.operations import OPERATIONS, path_of
from tests.support.people import person
from tests.support.ports import free_port
from tests.support.postgres import IMAGE as SERVER_IMAGE
from tests.support.postgres import connect
from tests.support.proxied import docker
from tests.support.stacks import IMAGE, ProdStack, total
from tests.support.waiting import eventually

HOST = "db.example.test"
ADMIN = "cloud_admin"
PASSWORD = "of-the-administrator"
# Only encrypted connections, as providers configure it.
HBA = "local all all trust\nhostssl all all all scram-sha-256\n"
START = """
printf '%s' "$HBA" >/tmp/hba
install -o postgres -m 0600 /tls/tls_key /tmp/tls_key
install -o postgres /tls/tls_certificate /tmp/tls_certificate
exec docker-entrypoint.sh postgres -c listen_addresses=$ADDRESS -c port=$PORT -c hba_file=/tmp/hba \
  -c ssl=on -c ssl_cert_file=/tmp/tls_certificate -c ssl_key_file=/tmp/tls_key
"""
HOSTS = f"{{ extra_hosts: ['{HOST}:host-gateway'] }}"


class ExternalServer:
    """A server on this host, outside of the Compose project's networks. Containers reach it as HOST."""

    def __init__(self, directory: Path) -> None:
        self.name = f"headroom-external-{os.getpid()}"
        self.tls = directory / "server"
        subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", self.tls, HOST], check=True, capture_output=True)
        address = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
        self.port = free_port()
        self.superuser = URL.create(
            "postgresql+asyncpg", "postgres", PASSWORD, address, self.port, "postgres", {"sslmode": "require"}
        )
        variables = {"POSTGRES_PASSWORD": PASSWORD, "HBA": HBA, "ADDRESS": address, "PORT": str(self.port)}
        options = [f"--env={name}={value}" for name, value in variables.items()]
        mount = f"--volume={self.tls}:/tls:ro"
        place = ["--network=host", "--name", self.name, "--entrypoint=bash"]
        docker("run", "--detach", *place, *options, mount, SERVER_IMAGE, "-c", START)

    def set_up(self) -> None:
        """Create the administrator, who may do what those of providers may."""

        def statement(text: str) -> None:
            with connect(self.superuser) as superuser:
                superuser.execute(text.encode())

        def is_up() -> bool:
            statement("SELECT 1")
            return True

        eventually(is_up, within=60)
        statement(f"CREATE ROLE {ADMIN} LOGIN CREATEROLE CREATEDB PASSWORD '{PASSWORD}'")
        statement(f"GRANT pg_monitor, pg_read_all_stats TO {ADMIN} WITH ADMIN OPTION")


class ExternalStack(DeployedStack):
    """compose.external.yml, and compose.direct.yml unless `pooled`: the API with psycopg or with asyncpg.

    With PgBouncer, a deploy starts it, so that secrets can be rotated.
    """

    def __init__(self, directory: Path, server: ExternalServer, *, pooled: bool) -> None:
        secrets = directory / "secrets"
        address = f"{HOST}:{server.port}"
        command = [str(PROJECT_ROOT / "ops/make-secrets.sh"), str(secrets), "", address]
        subprocess.run([*command, *([] if pooled else [address])], check=True, capture_output=True)
        self.authority = secrets / "database_ca"
        self.authority.write_text((server.tls / "tls_ca_certificate").read_text())
        (secrets / "admin_password").write_text(PASSWORD)
        super().__init__(directory, IMAGE, workers=1, POSTGRES_ADMIN=ADMIN)
        self.is_deployed = pooled
        services = ["roles", "migrate", "exporter", "pgbouncer" if pooled else "api"]
        hosts = directory / "hosts.yml"
        hosts.write_text("\n".join(["services:", *(f"  {service}: {HOSTS}" for service in services)]))
        self.files += ["compose.external.yml", *([] if pooled else ["compose.direct.yml"]), str(hosts)]
        self.environment["COMPOSE_FILE"] = ":".join(self.files)

    def up(self) -> None:
        self.compose("run", "--rm", "-T", "roles")
        if self.is_deployed:
            super().up()
        else:
            docker("tag", IMAGE, f"headroom:{self.environment['IMAGE_TAG']}")
            ProdStack.up(self)


@pytest.fixture(scope="module")
def server(images: None, new_directory: Callable[[], Path]) -> Iterator[ExternalServer]:
    server = ExternalServer(new_directory())
    try:
        server.set_up()
        yield server
    finally:
        docker("rm", "--force", "--volumes", server.name)


async def send_all_operations(stack: ProdStack, database: URL, superuser: psycopg.Connection) -> None:
    """Send every operation through the proxy, as an administrator. Each finds only the rows that it needs."""
    async with httpx.AsyncClient(base_url=stack.api, verify=stack.tls, timeout=30) as client:
        for name, operation in OPERATIONS.items():
            superuser.execute(f"TRUNCATE {sample.TABLE} CASCADE".encode())
            admin: Caller = await person(client, "Admin", database, is_admin=True)
            owner: Caller = await person(client, "Owner", database)
            path = await path_of(name, owner)
            response = await admin(name.partition(" ")[0], path, **operation.request)
            assert response.status_code == operation.statuses[-1], f"{name}: {response.text}"


@pytest.mark.parametrize("pooled", [True, False], ids=["pgbouncer", "direct"])
def test_stack_works_on_a_server_elsewhere(
    server: ExternalServer, new_directory: Callable[[], Path], pooled: bool
) -> None:
    """The second run has new passwords and the schema of the first one. The server has no superuser but its own."""
    database = server.superuser.set(database="headroom")
    with ExternalStack(new_directory(), server, pooled=pooled).running() as stack, connect(database) as superuser:
        assert set(stack.compose("ps", "--services").split()) == {
            *("alertmanager", "api", "exporter", "prometheus", "proxy"),
            *(["pgbouncer"] if pooled else []),
        }
        asyncio.run(send_all_operations(stack, database, superuser))
        assert "limits of the server: from the server" in stack.compose("exec", "-T", "api", "headroom", "budget")
        up = ("db_server_up", "pgbouncer_up")
        eventually(lambda: [total(stack, name) for name in up] == [1, int(pooled)], within=60)

        backends = """SELECT usename, application_name, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
                      WHERE usename LIKE 'headroom_%' AND application_name LIKE 'headroom:%'"""
        encrypted = {(role, name.split(":")[1], ssl) for role, name, ssl in superuser.execute(backends).fetchall()}
        # PgBouncer keeps the server connections that the checks of the start and of a deploy have opened.
        assert encrypted - {("headroom_app", name, True) for name in ("check", "schema")} == {
            ("headroom_app", "api", True),
            ("headroom_monitor", "exporter", True),
        }
        privileged = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'"
        assert superuser.execute(privileged).fetchall() == []

        # Another authority: no new connection is trusted.
        trusted = stack.authority.read_text()
        stack.authority.write_text((Path(stack.environment["SECRETS_DIR"]) / "tls_ca_certificate").read_text())
        reconnect(stack, superuser)
        verifier = "pgbouncer" if pooled else "api"
        eventually(lambda: "certificate verify failed" in stack.compose("logs", verifier), within=60)
        assert stack.client.get(sample.READ).status_code == 503
        stack.authority.write_text(trusted)
        reconnect(stack, superuser)
        eventually(lambda: stack.client.get(sample.READ).status_code in (200, 404), within=60)
        if pooled:
            check_rotation(stack, superuser)


def check_rotation(stack: ExternalStack, superuser: psycopg.Connection) -> None:
    """Rotate the API's password as the administrator. A PgBouncer that starts later has it too."""
    stack.run("rotate", "app_password")
    query = "SELECT rolname FROM pg_authid WHERE rolname LIKE 'headroom_app%' AND rolpassword IS NOT NULL"
    assert superuser.execute(query).fetchall() == [("headroom_app_2",)]
    stack.compose("restart", "pgbouncer")
    eventually(lambda: stack.client.get(sample.READ).status_code in (200, 404), within=60)


def reconnect(stack: ProdStack, superuser: psycopg.Connection) -> None:
    """Make PgBouncer read the authority again, if there is one, and end the connections of the API's role."""
    if "pgbouncer" in stack.compose("ps", "--services").split():
        stack.compose("restart", "pgbouncer")
    superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'headroom_app'")
