"""Clients that fill every connection while a table is locked, and how many connections the server then counts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from threading import Event, Thread

import psycopg
import uvloop
from sqlalchemy import URL

from tests.support.load import Answers, load
from tests.support.postgres import connect

SECONDS = 4
OPEN = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%'"


@contextmanager
def locked(url: URL, table: str) -> Iterator[psycopg.Connection]:
    """Lock the table: each read of it holds its connection until the lock times out."""
    with connect(url) as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield connection


@contextmanager
def maximum_opened(url: URL) -> Iterator[list[int]]:
    """Count the connections of the API every 50 ms until the block ends. Yield a list with the maximum."""
    with connect(url) as connection:

        def opened() -> int:
            row = connection.execute(OPEN).fetchone()
            assert row is not None
            return int(row[0])

        with maximum(opened) as seen:
            yield seen


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


def attack(apis: list[str], path: str, clients: int = 250, tls: SSLContext | None = None) -> Answers:
    """Let each client read another page, `path` with its number: equal reads would share a statement."""
    return uvloop.run(
        load(
            [f"{api}{path}{number}" for number in range(1, clients + 1) for api in apis],
            clients=clients * len(apis),
            seconds=SECONDS,
            patient=False,
            keep_alive=False,
            tls=tls,
        )
    )


def assert_honest(answers: Answers) -> None:
    assert set(answers.statuses) == {503}, "nothing can be read; no request hangs and none gets a 500"
    # 3 s for a connection, 2 s in the queue of PgBouncer, 2 s for the lock, and room for a busy machine.
    assert answers.seconds(503)[-1] < 3 + 2 + 2 + 10
