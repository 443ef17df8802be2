"""At full load of containers the server counts as many connections as the budget says, and not one more."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.paths import PROJECT_ROOT
from tests.support.full_load import SECONDS, assert_honest, attack, locked, maximum_opened
from tests.support.stacks import ComposeStack, ProdStack
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone

POSTS = "/posts?cursor=&author_id="


def test_two_replicas_at_full_load_open_what_the_budget_says(replicas: ComposeStack) -> None:
    url = replicas.database_url()
    with maximum_opened(url) as seen, locked(url, "posts"):
        answers = attack(replicas.apis, POSTS)
    assert_honest(answers)
    assert seen == [2 * 4 * (5 + 5)]


def test_pgbouncer_at_full_load_opens_its_own_limit(prod: ProdStack) -> None:
    lock = "BEGIN; LOCK TABLE posts IN ACCESS EXCLUSIVE MODE;"
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'headroom_app'"
    with psql(prod, lock):
        eventually(
            lambda: prod.sql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'") != [["0"]], within=20
        )
        with psql(prod, f"{query} \\watch i=0.05 c={SECONDS * 20}") as watching:
            answers = attack([prod.api], POSTS, clients=500, tls=prod.tls)
            seen = [int(line) for line in watching.communicate(timeout=60)[0].split() if line.isdigit()]

    console = prod.compose(
        "exec", "-T", "pgbouncer", *"psql -h /run/headroom-pgbouncer -p 6432 -U pgbouncer pgbouncer -Atc".split(),
        "SHOW POOLS",
    )  # fmt: skip
    assert_honest(answers)
    assert len(seen) == SECONDS * 20
    assert max(seen) == 20 + 5, "default_pool_size + reserve_pool_size"
    [clients] = [line.split("|") for line in console.splitlines() if line.startswith("headroom|headroom_app|")]
    assert int(clients[2]) <= 2 * 4 * (5 + 10)


@contextmanager
def psql(prod: ProdStack, script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in psql, in the container. Its session ends with the block."""
    options = ["--env-file", os.devnull, "--project-name", prod.name, "--file", prod.files[0], "exec", "-T", "postgres"]
    process = subprocess.Popen(
        ["docker", "compose", *options, "psql", "-U", "postgres", "-d", "headroom", "-At"],
        cwd=PROJECT_ROOT,
        env=os.environ | prod.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    with process:  # at its end it closes the input, which ends psql, and waits
        process.stdin.write(f"{script}\n")
        process.stdin.flush()
        yield process
