"""compose.replica.yml: a standby that serves reads, is lost under load, and comes back."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.deployed import operate
from tests.support.stacks import ProdStack, total
from tests.support.waiting import eventually, eventually_async

CLIENTS = 8


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
        eventually(lambda: total(self, "db_read_standby_up") > 0, within=120)

    def reads(self, route: str) -> float:
        return total(self, "db_reads_total", route=route)


@pytest.fixture(scope="module")
def replicated(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicatedStack]:
    with ReplicatedStack(tmp_path_factory.mktemp("secrets") / "prod").running() as stack:
        yield stack


class Load:
    """Clients that change the name of a row and read it at once, with the cookie of the write, and read without it."""

    def __init__(self, stack: ReplicatedStack) -> None:
        self._stack = stack
        self._stopped = False
        self.failures: list[str] = []
        self.rounds = 0

    async def run(self, number: int) -> None:
        options: dict[str, Any] = {"base_url": self._stack.api, "verify": self._stack.tls, "timeout": 30}
        async with httpx.AsyncClient(**options) as writer, httpx.AsyncClient(**options) as reader:
            location, headers = await asyncio.to_thread(sample.create, self._stack.client, f"n{number}")
            writer.headers.update(headers)
            while not self._stopped:
                name = f"N{number} {self.rounds}"
                responses = [
                    await writer.patch(location, json={"name": name}),
                    own := await writer.get(location),
                    await reader.get(location),
                ]
                self.failures += [
                    f"{each.request.method} {each.request.url.path}: {each.status_code} {each.text}"
                    for each in responses
                    if each.status_code != 200
                ]
                if own.status_code == 200 and own.json()["name"] != name:
                    self.failures.append(f"wrote {name}, read {own.text}")
                self.rounds += 1

    def stop(self) -> None:
        self._stopped = True


async def test_standby_under_load_serves_reads_and_its_loss_fails_none(replicated: ReplicatedStack) -> None:
    stack, load = replicated, Load(replicated)

    async def grows(route: str) -> None:
        before = await asyncio.to_thread(stack.reads, route)
        target, rounds = before + 100, load.rounds + 100

        async def has_grown() -> bool:
            return await asyncio.to_thread(stack.reads, route) >= target and load.rounds >= rounds

        await eventually_async(has_grown, within=120, jobs=clients)

    clients = [asyncio.create_task(load.run(number)) for number in range(CLIENTS)]
    try:
        await grows("standby")
        await asyncio.to_thread(stack.compose, "stop", "standby")
        await grows("unavailable")
        await asyncio.to_thread(stack.compose, "start", "standby")
        await grows("standby")
    finally:
        load.stop()
        await asyncio.gather(*clients)

    print(f"{load.rounds} rounds, {len(load.failures)} failed")
    assert load.failures == []
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE usename = 'headroom_replication'"
    eventually(lambda: stack.sql(streaming) == [["1"]], within=60)


def test_password_of_the_standby_rotates_while_it_streams(replicated: ReplicatedStack, tmp_path: Path) -> None:
    stack = replicated
    senders = "SELECT pid FROM pg_stat_replication WHERE usename = 'headroom_replication'"
    [[before]] = stack.sql(senders)
    own = {"COMPOSE_FILE": ":".join(stack.files), "DEPLOY_LOG": str(tmp_path / "log.jsonl")}
    done = operate(stack, "rotate", "replication_password", environment=own)
    assert "the standby can sign in" in done.stdout
    assert stack.sql(senders) == [[before]]

    stack.sql(f"SELECT pg_terminate_backend({before})")  # the next one needs the new password
    eventually(lambda: stack.sql(senders) not in ([], [[before]]), within=60)


def test_budget_has_the_connections_of_the_standby(replicated: ReplicatedStack) -> None:
    shown = replicated.compose("exec", "-T", "api", "headroom", "budget")

    assert "read server connections" in shown
    assert "limits of the read server: from the read server" in shown


def test_no_secret_is_in_an_environment_or_a_command_of_the_standby(replicated: ReplicatedStack) -> None:
    secrets = [file.read_text().strip() for file in Path(replicated.environment["SECRETS_DIR"]).glob("*_password")]
    secrets.remove("")  # alert_smtp_password, which is optional

    for service in ("standby", "replication"):
        shown = json.dumps(replicated.inspect(service)) + replicated.compose("logs", service)
        assert not [secret for secret in secrets if secret in shown]
    # Fails, and is repeated, if a process starts or ends meanwhile.
    read = ("exec", "-T", "standby", "bash", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline")
    processes = eventually(partial(replicated.compose, *read), within=60)
    assert "PGDATA" in processes
    assert not [secret for secret in secrets if secret in processes]
