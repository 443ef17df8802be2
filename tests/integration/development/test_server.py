"""The development server reloads code and migrations, and warns of mistakes with their line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL

from tests.support import sample
from tests.support.ports import free_port
from tests.support.tree import copy_tree
from tests.support.waiting import eventually

ROUTE = '''

@router.get("/mistakes")
async def mistakes(db: WriteDb, number: int) -> dict[str, int]:
    """Make every mistake that the development server knows."""
    import asyncio

    from sqlalchemy import text

    for _ in range(number):
        await db.execute(text("SELECT 1 AS repeated"))
    await db.execute(text("SELECT pg_sleep(0.2)"))
    await asyncio.sleep(0.01)
    if number > 5:
        raise RuntimeError("as an example")
    return {"number": number}
'''


class DevelopmentServer:
    """A server on a copy of the tree. `log` has what it has written."""

    def __init__(self, root: Path, url: URL, owner: URL) -> None:
        self.root = root
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        self._log = root / "log"
        environment = {
            "PYTHONPATH": str(root),
            "DATABASE_URL": url.render_as_string(hide_password=False),
            "MIGRATION_DATABASE_URL": owner.render_as_string(hide_password=False),
            "SECRET_KEY": "for tests only, for tests only, for tests only",
            "API_PORT": str(port),
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.development.server", "--sql"],
                cwd=root,
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def status(self, path: str) -> int:
        """Return the status of a GET, or 0 if nothing answers."""
        try:
            return httpx.get(self.address + path, timeout=30).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture
def server(tmp_path: Path, database_url: URL) -> Iterator[DevelopmentServer]:
    root = copy_tree(tmp_path, ("app", "migrations", "pyproject.toml"))
    server = DevelopmentServer(root, database_url, database_url.set(username="headroom_owner"))
    yield server
    server.process.terminate()
    try:
        server.process.wait(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)


def test_change_of_code_and_of_migrations_is_served(server: DevelopmentServer) -> None:
    eventually(lambda: server.status("/readyz") == 200, within=60)
    router = server.root / f"app/domains/{sample.TABLE}/router.py"
    original = router.read_text()

    # A file that cannot be imported does not end the server.
    router.write_text("def\n")
    eventually(lambda: "SyntaxError" in server.log, within=60)

    scripts = ScriptDirectory.from_config(Config(toml_file=server.root / "pyproject.toml"))
    scripts.generate_revision(
        "0123456789ab", "add drafts", upgrades='op.create_table("drafts", sa.Column("id", sa.Integer))'
    )
    router.write_text(original + ROUTE)
    eventually(lambda: server.status(f"{sample.PATH}/mistakes?number=5") == 200, within=60)
    assert server.status(f"{sample.PATH}/mistakes?number=6") == 500
    eventually(lambda: "slow statement" in server.log and "as an example" in server.log, within=60)

    log = server.log
    assert "migrated to 0123456789ab: add drafts" in log
    route, line = f"GET {sample.PATH}/mistakes", f"app/domains/{sample.TABLE}/router.py:"
    assert f"{route} holds a connection while it waits for something else: {line}" in log
    assert f"N+1: sent 5 times in one request: {route} | {line}" in log
    assert f"slow statement: {route} | {line}" in log
    assert "\n    Result  (cost=" in log
    assert "app/development/" not in log.partition("N+1")[2]  # its own statements are no mistakes
    assert "SELECT 1 AS repeated" in log
