"""compose.replica.yml: a standby that serves reads, is lost under load, and comes back."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.paths import PROJECT_ROOT
from tests.support.stacks import ProdStack, total
from tests.support.waiting import eventually, eventually_async

CLIENTS = 8
ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}


class ReplicatedStack(ProdStack):
    """The stack of production with one replica of the API and a standby, without what the subject does not need."""

    def __init__(self, secrets: Path) -> None:
        limits = {"API_REPLICAS": "1", "WEB_CONCURRENCY": "2"}
        super().__init__(f"headroom-replica-{os.getpid()}", secrets, build=False, **limits)
        command = [str(PROJECT_ROOT / "ops/make-secrets.sh"), str(secrets), "", "", "", "standby:5432"]
        subprocess.run(command, check=True, capture_output=True)
        self.files.append("compose.replica.yml")

    def up(self) -> None:
        services = ("postgres", "pgbouncer", "migrate", "api", "proxy", "exporter", "replication", "standby")
        self.compose("up", *self.build, "--detach", *services)
        eventually(lambda: self.replicas_in_proxy() == 1, within=120)

    def reads(self, route: str) -> float:
        return total(self, "db_reads_total", route=route)


@pytest.fixture(scope="module")
def replicated(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedStack]:
    with ReplicatedStack(tmp_path_factory.mktemp("secrets") / "prod").running() as stack:
        yield stack


class Load:
    """Clients that write a post and read it at once, with the cookie of the write, and read a list without it."""

    def __init__(self, stack: ReplicatedStack) -> None:
        self._stack = stack
        self._stopped = False
        self.failures: list[str] = []
        self.pairs = 0

    async def run(self, token: str) -> None:
        options: dict[str, Any] = {"base_url": self._stack.api, "verify": self._stack.tls, "timeout": 30}
        async with httpx.AsyncClient(**options) as writer, httpx.AsyncClient(**options) as reader:
            writer.headers["Authorization"] = f"Bearer {token}"
            while not self._stopped:
                created = await writer.post("/posts", json={"title": "a", "content": "b"})
                responses = [created]
                if created.status_code == 201:
                    responses.append(await writer.get(created.headers["location"]))
                responses.append(await reader.get("/posts?limit=1"))
                self.failures += [
                    f"{each.request.method} {each.request.url.path}: {each.status_code} {each.text}"
                    for each in responses
                    if not each.is_success
                ]
                self.pairs += 1

    def stop(self) -> None:
        self._stopped = True


async def test_standby_under_load_serves_reads_and_its_loss_fails_none(replicated: ReplicatedStack) -> None:
    stack, load = replicated, Load(replicated)
    stack.client.post("/users", json=ANN).raise_for_status()
    form = {"username": ANN["email"], "password": ANN["password"]}
    token = stack.client.post("/auth/token", data=form).raise_for_status().json()["access_token"]

    async def grows(route: str) -> None:
        before = await asyncio.to_thread(stack.reads, route)
        target, pairs = before + 100, load.pairs + 100

        async def has_grown() -> bool:
            return await asyncio.to_thread(stack.reads, route) >= target and load.pairs >= pairs

        assert await eventually_async(has_grown, within=120), f"no reads with the route {route}: {load.failures[:3]}"

    clients = [asyncio.create_task(load.run(token)) for _ in range(CLIENTS)]
    try:
        await grows("standby")
        await asyncio.to_thread(stack.compose, "stop", "standby")
        await grows("unavailable")
        await asyncio.to_thread(stack.compose, "start", "standby")
        await grows("standby")
    finally:
        load.stop()
        await asyncio.gather(*clients)

    print(f"{load.pairs} pairs, {len(load.failures)} failed")
    assert load.failures == []
    [[streaming]] = stack.sql("SELECT count(*) FROM pg_stat_replication WHERE usename = 'headroom_replication'")
    assert streaming == "1"


def test_budget_has_the_connections_of_the_standby(replicated: ReplicatedStack) -> None:
    shown = replicated.compose("exec", "-T", "api", "headroom", "budget")

    assert "read server connections" in shown
    assert "limits of the read server: from the read server" in shown


def test_no_secret_is_in_an_environment_or_a_command_of_the_standby(replicated: ReplicatedStack) -> None:
    secrets = [file.read_text().strip() for file in Path(replicated.environment["SECRETS_DIR"]).glob("*_password")]

    for service in ("standby", "replication"):
        shown = json.dumps(replicated.inspect(service)) + replicated.compose("logs", service)
        assert not [secret for secret in secrets if secret and secret in shown]
    command = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline"
    processes = replicated.compose("exec", "-T", "standby", "bash", "-c", command)
    assert not [secret for secret in secrets if secret and secret in processes]
