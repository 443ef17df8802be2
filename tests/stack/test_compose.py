"""docker-compose.yml: what only Compose promises."""

import re
import subprocess

import httpx
import pytest
from websockets.sync.client import connect

from app.paths import PROJECT_ROOT
from tests.support.ports import free_port
from tests.support.stacks import ComposeStack
from tests.support.waiting import eventually

pytestmark = pytest.mark.parametrize("stack", ["compose"], indirect=True)


def test_api_starts_after_the_migration_has_succeeded(compose: ComposeStack) -> None:
    migrate, api = compose.inspect("migrate")["State"], compose.inspect("api")["State"]

    assert (migrate["Status"], migrate["ExitCode"]) == ("exited", 0)
    assert migrate["FinishedAt"] <= api["StartedAt"]


def test_ports_are_published_on_the_loopback_address_only(compose: ComposeStack) -> None:
    for service in ("api", "exporter", "postgres", "prometheus"):
        bindings = compose.inspect(service)["HostConfig"]["PortBindings"]
        assert {binding["HostIp"] for published in bindings.values() for binding in published} == {"127.0.0.1"}


def test_image_runs_as_a_numeric_user_who_cannot_change_the_code(compose: ComposeStack) -> None:
    assert compose.inspect("api")["Config"]["User"] == "10001:10001"
    writable = compose.compose(
        "exec", "-T", "api", "find", "/srv/headroom", "/opt/venv", "-writable", "-not", "-type", "l"
    )
    assert writable == ""


def test_image_contains_no_compiler_no_pip_and_no_files_of_the_host(compose: ComposeStack) -> None:
    found = compose.compose(
        "exec", "-T", "api", "sh", "-c", "ls /opt/venv/bin; ls -A /srv/headroom; which gcc cc || true"
    )

    assert {"gunicorn", "alembic", "headroom"} <= set(found.split())
    assert not {"pip", "pip3", "gcc", "cc", ".env", ".git", ".venv", "tests"} & set(found.split())


def test_websocket_route_works_in_the_image(compose: ComposeStack) -> None:
    """The product has no WebSocket route: another container serves it, with a module of the tests."""
    port = free_port()
    module = PROJECT_ROOT / "tests/support/websocket_app.py"
    options = ["--detach", "--rm", "--no-deps", f"--publish=127.0.0.1:{port}:8000"]
    options += [f"--volume={module}:/srv/headroom/{module.name}:ro"]
    options += ["--env=WEB_CONCURRENCY=1", "--env=METRICS_DIR=/tmp/metrics"]
    command = ["gunicorn", "--config=ops/gunicorn/gunicorn.conf.py", f"{module.stem}:create()"]
    container = compose.compose("run", *options, "api", *command).split()[-1]
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200, within=60)
        with connect(f"ws://127.0.0.1:{port}/tables") as websocket:
            websocket.send("tables")
            assert re.fullmatch(r"tables: \d+", str(websocket.recv(timeout=60)))
    finally:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=False)


def test_prometheus_scrapes_the_exporter(compose: ComposeStack) -> None:
    def scraped() -> bool:
        query = {"query": "sum(db_pool_connections_max)"}
        answer = httpx.get(f"{compose.prometheus}/api/v1/query", params=query).json()
        return bool(answer["data"]["result"][0]["value"][1] == "60")

    eventually(scraped, within=60)
