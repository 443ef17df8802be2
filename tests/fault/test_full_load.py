"""The budget under attack: as many connections as it says, and not one more, counted by the server."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psycopg
import uvloop
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.load import Answers, load
from tests.support.postgres import connect
from tests.support.stacks import ComposeStack, ProdStack, Stack
from tests.support.waiting import eventually

SECONDS = 6
OPEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%'"


@contextmanager
def everything_waits(url: URL) -> Iterator[psycopg.Connection]:
    """Each read of a post holds its connection until it gives up on the table's lock."""
    with connect(url) as connection, connection.transaction():
        connection.execute("LOCK TABLE posts IN ACCESS EXCLUSIVE MODE")
        yield connection


@contextmanager
def greatest(look: Callable[[], int]) -> Iterator[list[int]]:
    """The greatest of what was seen while the block ran, looking every 50 ms."""
    seen = [0]
    stop = Event()

    def sample() -> None:
        while not stop.wait(0.05):
            seen[0] = max(seen[0], look())

    sampler = Thread(target=sample)
    sampler.start()
    try:
        yield seen
    finally:
        stop.set()
        sampler.join()


def attack(apis: list[str]) -> Answers:
    return uvloop.run(
        load(
            [f"{api}/posts?cursor=" for api in apis],
            clients=250 * len(apis),
            seconds=SECONDS,
            patient=False,
            keep_alive=False,
        )
    )


def assert_honest(answers: Answers) -> None:
    assert set(answers.statuses) == {503}, "nothing can be read, and nobody is left hanging or gets a 500"
    # 3 s for a connection, 2 s in PgBouncer's queue where there is one, 2 s for the lock; and hundreds of clients, the
    # stack and its database on perhaps two cores.
    assert answers.seconds(503)[-1] < 3 + 2 + 2 + 3


def test_at_full_load_the_server_sees_what_the_budget_says_and_never_more(stack: Stack) -> None:
    with connect(stack.database_url()) as beside:

        def opened() -> int:
            row = beside.execute(OPEN).fetchone()
            assert row is not None
            return int(row[0])

        with greatest(opened) as seen, everything_waits(stack.database_url()):
            answers = attack([stack.api])
    assert_honest(answers)
    assert seen == [4 * (5 + 10)]


def test_with_two_replicas_it_is_twice_as_many() -> None:
    require_engine()
    # 2 * 4 * 15 and the jobs would be over the budget of 92, and neither of them would start.
    replicas = ComposeStack(f"headroom-two-{os.getpid()}", replicas=2, DB_MAX_OVERFLOW="5")
    with replicas.running(), connect(replicas.database_url()) as beside:

        def opened() -> int:
            row = beside.execute(OPEN).fetchone()
            assert row is not None
            return int(row[0])

        with greatest(opened) as seen, everything_waits(replicas.database_url()):
            answers = attack(replicas.apis)
    assert_honest(answers)
    assert seen == [2 * 4 * (5 + 5)]


def test_behind_pgbouncer_the_server_sees_the_poolers_connections_however_many_clients_there_are(
    tmp_path: Path,
) -> None:
    require_engine()
    with ProdStack(f"headroom-full-{os.getpid()}", tmp_path / "secrets").running() as prod:
        lock = f"BEGIN; LOCK TABLE posts IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({SECONDS + 8}); COMMIT"
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'headroom_app'"
        locking = psql(prod, lock)
        eventually(
            lambda: prod.sql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock'") != [["0"]], within=5
        )
        watching = psql(prod, f"{query} \\watch i=0.05 c={SECONDS * 20}")
        answers = attack(prod.apis)
        seen = [int(line) for line in watching.communicate(timeout=60)[0].split() if line.isdigit()]
        locking.communicate(timeout=60)

        console = prod.compose(
            "exec", "-T", "pgbouncer", *"psql -h /run/headroom-pgbouncer -p 6432 -U pgbouncer pgbouncer -Atc".split(),
            "SHOW POOLS",
        )  # fmt: skip
    assert_honest(answers)
    assert len(seen) == SECONDS * 20
    assert max(seen) == 20 + 5, "default_pool_size + reserve_pool_size"
    [clients] = [line.split("|") for line in console.splitlines() if line.startswith("headroom|headroom_app|")]
    assert int(clients[2]) <= 2 * 4 * (5 + 10)


def psql(prod: ProdStack, script: str) -> subprocess.Popen[str]:
    """One that goes on beside us."""
    options = ["--env-file", os.devnull, "--project-name", prod.name, "--file", prod.file, "exec", "-T", "postgres"]
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
    process.stdin.write(f"{script}\n")
    process.stdin.flush()
    return process
