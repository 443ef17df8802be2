"""At full load the server counts as many connections as the budget says, and not one more."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from threading import Event, Thread

import psycopg
import pytest
import uvloop
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.load import Answers, load
from tests.support.postgres import connect
from tests.support.stacks import ComposeStack, ProdStack, Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone

SECONDS = 4
OPEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%'"


@contextmanager
def posts_locked(url: URL) -> Iterator[psycopg.Connection]:
    """Lock the table: each read of a post holds its connection until the lock times out."""
    with connect(url) as connection, connection.transaction():
        connection.execute("LOCK TABLE posts IN ACCESS EXCLUSIVE MODE")
        yield connection


@contextmanager
def maximum(read: Callable[[], int]) -> Iterator[list[int]]:
    """Read a number every 50 ms until the block ends. Yield a list with the maximum."""
    seen = [0]
    stop = Event()

    def sample() -> None:
        while not stop.wait(0.05):
            seen[0] = max(seen[0], read())

    sampler = Thread(target=sample)
    sampler.start()
    try:
        yield seen
    finally:
        stop.set()
        sampler.join()


def attack(apis: list[str], clients: int = 250, tls: SSLContext | None = None) -> Answers:
    """Let each client read the posts of another author: equal reads would share a statement and a connection."""
    return uvloop.run(
        load(
            [f"{api}/posts?cursor=&author_id={author}" for author in range(1, clients + 1) for api in apis],
            clients=clients * len(apis),
            seconds=SECONDS,
            patient=False,
            keep_alive=False,
            tls=tls,
        )
    )


def assert_honest(answers: Answers) -> None:
    assert set(answers.statuses) == {503}, "nothing can be read; no request hangs and none gets a 500"
    # 3 s for a connection, 2 s in PgBouncer's queue, 2 s for the lock, and 3 s on a machine that also runs the clients.
    assert answers.seconds(503)[-1] < 3 + 2 + 2 + 3


# Two replicas run in containers.
@pytest.mark.parametrize("stack", ["local"], indirect=True)
def test_one_replica_at_full_load_opens_what_the_budget_says(stack: Stack) -> None:
    with connect(stack.database_url()) as connection:

        def opened() -> int:
            row = connection.execute(OPEN).fetchone()
            assert row is not None
            return int(row[0])

        with maximum(opened) as seen, posts_locked(stack.database_url()):
            answers = attack([stack.api])
    assert_honest(answers)
    assert seen == [4 * (5 + 10)]


def test_two_replicas_at_full_load_open_what_the_budget_says(replicas: ComposeStack) -> None:
    with connect(replicas.database_url()) as connection:

        def opened() -> int:
            row = connection.execute(OPEN).fetchone()
            assert row is not None
            return int(row[0])

        with maximum(opened) as seen, posts_locked(replicas.database_url()):
            answers = attack(replicas.apis)
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
            answers = attack([prod.api], clients=500, tls=prod.tls)
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
