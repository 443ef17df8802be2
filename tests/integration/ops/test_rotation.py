"""The rotation of PgBouncer's password, with a real PgBouncer. tests/unit/ops/deploy has the other rotations."""

import subprocess
from pathlib import Path

from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from ops.deploy.rotation import Rotation
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import FakeStack
from tests.support.postgres import PASSWORD, PgBouncer, Server, as_role, connect, run_pgbouncer


class StackWithPgBouncer(FakeStack):
    """Before and after each command, a client signs in for which PgBouncer opens another look-up connection."""

    def __init__(self, secrets: Path, database: URL, pgbouncer: PgBouncer) -> None:
        super().__init__(PROJECT_ROOT)
        self.database = database
        self.pgbouncer = pgbouncer
        self.sign_ins = 0
        for name in ("pgbouncer_password", "console_password"):
            (secrets / name).write_text(PASSWORD)
        self.model["secrets"] = {file.name: {"file": str(file)} for file in secrets.iterdir()}
        self.model["services"] |= {"postgres": {}, "pgbouncer": {}}

    def container(self, service: str) -> str:
        return service

    def execute(self, container: str, *command: str, stdin: str | None = None) -> str:
        self.sign_in()
        if container == "postgres":
            with connect(self.database) as connection:
                connection.execute((stdin or "").encode())
        else:
            docker = ("docker", "exec", "--interactive", self.pgbouncer.container, *command)
            subprocess.run(docker, input=stdin, text=True, check=True, capture_output=True)
        self.sign_in()
        return ""

    def sign_in(self) -> None:
        console = as_role(self.pgbouncer.url(self.database), "headroom_console").set(database="pgbouncer")
        with connect(console) as connection:
            connection.execute("RECONNECT")
        with connect(as_role(self.pgbouncer.url(self.database), "headroom_monitor")) as connection:
            connection.execute("SELECT 1")
        self.sign_ins += 1


def test_pgbouncer_looks_up_passwords_at_each_step_of_its_rotation(postgres: Server, tmp_path: Path) -> None:
    database = postgres.superuser.set(database="headroom")
    (tmp_path / "secrets").mkdir()
    with run_pgbouncer(postgres, tmp_path) as pgbouncer:
        stack = StackWithPgBouncer(tmp_path / "secrets", database, pgbouncer)
        try:
            Rotation(stack, Timeline("rotate", tmp_path / "log")).rotate("pgbouncer_password")
        finally:
            with connect(database) as connection:
                for role in ("headroom_pgbouncer", "headroom_pgbouncer_2"):
                    connection.execute(f"ALTER ROLE {role} PASSWORD '{PASSWORD}'".encode())
    assert (tmp_path / "secrets/pgbouncer_password").read_text() != PASSWORD
    assert stack.sign_ins == 20
