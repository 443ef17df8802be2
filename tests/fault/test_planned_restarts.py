"""PostgreSQL and PgBouncer are replaced on purpose, under load. `make bench-restarts` has the whole of it."""

import json
import subprocess
from pathlib import Path

import pytest
import uvloop

from benchmarks.deploy import Traffic
from benchmarks.restarts import restart, slow_start
from tests.support.stacks import ProdStack
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone


def test_planned_restarts_fail_no_request(prod: ProdStack, tmp_path: Path) -> None:
    """PostgreSQL is away for longer than DB_POOL_TIMEOUT and the proxy's health checks allow."""
    before = {service: prod.inspect(service)["Id"] for service in ("postgres", "pgbouncer", "api", "proxy")}
    traffic = Traffic(prod)
    files = [*prod.files]
    slow_start(prod, tmp_path, seconds=4)
    printed = []

    def choreography() -> None:
        for service in ("postgres", "pgbouncer"):
            finished = restart(prod, service)
            assert finished.returncode == 0, finished.stdout + finished.stderr
            printed.append(finished.stdout)

    try:
        uvloop.run(traffic.run(10, choreography))
    finally:
        prod.files[:] = files

    after = {service: prod.inspect(service)["Id"] for service in before}
    assert {service for service in before if after[service] != before[service]} == {"postgres", "pgbouncer"}
    assert all("released 10 requests" in each for each in printed), printed
    assert [each for each in traffic.exchanges if not each.succeeded] == []
    assert max(each.seconds for each in traffic.exchanges) > 4
    assert (traffic.wrong, traffic.lost()) == (0, 0)
    # Otherwise the next `docker compose up` replaces it, and all that depend on it.
    label = prod.inspect("pgbouncer")["Config"]["Labels"]["com.docker.compose.config-hash"]
    assert prod.compose("config", "--hash", "pgbouncer").split() == ["pgbouncer", label]
    assert prod.replicas_in_proxy() == 2


def test_postgres_with_another_address_is_found(prod: ProdStack) -> None:
    """PgBouncer's resolver keeps an address for 600 s. A container that was stopped may get another one."""

    def address(container: str) -> str:
        [found] = json.loads(run("docker", "inspect", container))
        return str(found["NetworkSettings"]["Networks"][network]["IPAddress"])

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    network, postgres = f"{prod.name}_back", prod.inspect("postgres")["Id"]
    image, before = prod.inspect("postgres")["Image"], address(postgres)
    assert prod.client.get("/posts?limit=1").status_code == 200
    occupants: list[str] = []
    try:
        prod.compose("stop", "postgres")
        while before not in map(address, occupants):
            assert len(occupants) < 10
            occupants.append(
                run("docker", "run", "--detach", "--network", network, "--entrypoint", "sleep", image, "600")
            )
        prod.compose("start", "postgres")
        assert address(postgres) != before
        eventually(lambda: prod.client.get("/posts?limit=1").status_code == 200, within=60)
    finally:
        if occupants:
            run("docker", "rm", "--force", *occupants)
        prod.compose("start", "postgres")
