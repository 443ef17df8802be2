"""Measure how soon statements end when clients leave or deadlines pass: `make bench-cancellation` (needs Docker).

The times come from the processes themselves: the benchmark notes when it closes a connection, the worker when it learns
of that, and the server's log has the arrival of cancel requests and the end of statements. The interval at which the
benchmark reads the log is not part of the times.
"""

import argparse
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from fastapi import FastAPI
from sqlalchemy import URL

from app.observability.logging import configure_logging
from app.request_deadline import RequestDeadline
from app.server import protocol
from app.web.cancellation import end_abandoned
from benchmarks.database import POSTGRES, BenchmarkDatabase, benchmark_database
from benchmarks.tables import print_header, print_row
from tests.support import holding
from tests.support.load import percentile
from tests.support.postgres import as_role, connect, run_pgbouncer
from tests.support.serving import gunicorn
from tests.support.waiting import eventually

LOGGING = " -c logging_collector=on -c log_connections=on -c log_line_prefix=%n:"
DRIVERS = ("asyncpg", "psycopg")
PATHS = ("direct", "PgBouncer")
CONNECTIONS = 10
DEADLINE = 0.2
HOLD_MS = 30_000
NOTES = "BENCH_NOTES"
# The log has milliseconds only.
CANCELLED = re.compile(rb"^(\d+\.\d+):ERROR:  canceling statement due to user request", re.MULTILINE)
RECEIVED = re.compile(rb"^(\d+\.\d+):LOG:  connection received", re.MULTILINE)


def create() -> FastAPI:
    """Return the application of load tests. It appends the time of each disconnect and each deadline to a file."""
    notes = os.open(os.environ[NOTES], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    expire = RequestDeadline.expire

    def note_disconnect(scope: Mapping[str, Any]) -> None:
        os.write(notes, b"%.6f\n" % time.time())
        end_abandoned(scope)

    def note_deadline(self: RequestDeadline) -> None:
        os.write(notes, b"%.6f\n" % time.time())
        expire(self)

    vars(protocol)["end_abandoned"] = note_disconnect
    RequestDeadline.expire = note_deadline  # type: ignore[method-assign]
    return holding.create()


class Times(NamedTuple):
    """Delays in seconds since a close or a deadline: one for each request."""

    seen: list[float]
    requested: list[float]
    ended: list[float]


class Log:
    """The part of the server's log that was written since the last call of `skip()`."""

    def __init__(self, admin: psycopg.Connection) -> None:
        self._admin = admin
        self._offset = 0

    def skip(self) -> None:
        """Forget what the log has now."""
        self._offset += len(self.read())

    def read(self) -> bytes:
        """Return what was written since the last call of `skip()`."""
        query = "SELECT pg_read_binary_file(pg_current_logfile(), %s, 100000000)"
        (found,) = self._admin.execute(query, [self._offset]).fetchone() or (b"",)
        return bytes(found)


def matches(pattern: re.Pattern[bytes], text: bytes) -> list[float]:
    """Return the times of matching lines, in order."""
    return sorted(map(float, pattern.findall(text)))


def measure(port: int, notes: Path, admin: psycopg.Connection, batch: int, *, has_deadline: bool) -> Times:
    """Start a batch of statements, end them by closing their clients or by their deadlines, and return the delays."""
    log = Log(admin)
    log.skip()
    noted = notes.stat().st_size
    header = f"Request-Timeout: {DEADLINE}\r\n" if has_deadline else ""
    clients, due = [], []
    for number in range(batch):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        due.append(time.time() + DEADLINE)
        # Equal reads would share a statement.
        client.sendall(f"GET /hold?ms={HOLD_MS + number} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
        clients.append(client)
    if not has_deadline:
        running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'headroom_app' AND state = 'active'"
        eventually(lambda: admin.execute(running).fetchone() == (batch,), within=20, every=0.02)
        log.skip()
        due = []
        for client in clients:
            due.append(time.time())
            client.close()
    else:
        for client in clients:
            assert b" 503 " in client.recv(4096)
            client.close()
    eventually(lambda: len(matches(CANCELLED, log.read())) >= batch, within=20, every=0.05)
    text = log.read()
    seen = sorted(map(float, notes.read_bytes()[noted:].split()))[:batch]
    received, ended = matches(RECEIVED, text)[-batch:], matches(CANCELLED, text)
    # In order: the requests of a batch are sent, and so are due, in their order.
    return Times(*([at - since for at, since in zip(each, due, strict=True)] for each in (seen, received, ended)))


@contextmanager
def servers(database: BenchmarkDatabase, paths: Sequence[str], drivers: Sequence[str]) -> Iterator[dict[str, URL]]:
    """Yield the API's database URL for each driver and path."""
    direct = as_role(database.url, "headroom_app")
    with ExitStack() as stack:
        urls = {}
        if "direct" in paths:
            urls["direct"] = direct
        if "PgBouncer" in paths:
            urls["PgBouncer"] = stack.enter_context(run_pgbouncer(database.server, database.directory)).reached(direct)
        yield {
            f"{driver}, {path}": url.set(drivername=f"postgresql+{driver}")
            for path, url in urls.items()
            for driver in drivers
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000, help="requests in a row (default: 1000)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, CONNECTIONS], help="at a time (default: 1 10)")
    parser.add_argument("--drivers", nargs="+", choices=DRIVERS, default=DRIVERS, help="default: both")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS, help="default: both")
    options = parser.parse_args()
    with benchmark_database(POSTGRES + LOGGING) as database, tempfile.TemporaryDirectory() as name:
        configure_logging(format="json", level="error")
        notes = Path(name) / "notes"
        settings = {
            "WEB_CONCURRENCY": "1",
            "DB_POOL_SIZE": str(CONNECTIONS),
            "DB_MAX_OVERFLOW": "0",
            "DB_EXPENSIVE_AFTER": "0",
            NOTES: str(notes),
        }
        stages = ("the worker knows", "cancel request at the server", "the statement has ended")
        print_header(
            ("database", "end by", "at a time", *(f"{each}: p50, p99, longest ms" for each in stages), "over", "load")
        )
        with servers(database, options.paths, options.drivers) as urls, connect(database.url) as admin:
            for path, url in urls.items():
                with gunicorn("benchmarks.cancellation:create()", url, database.directory, **settings) as served:
                    for has_deadline in (False, True):
                        for batch in options.batches:
                            show(path, served.port, notes, admin, batch, options.requests, has_deadline=has_deadline)


def show(
    path: str, port: int, notes: Path, admin: psycopg.Connection, batch: int, requests: int, *, has_deadline: bool
) -> None:
    """Measure as many requests, and print a row."""
    for _ in range(3):
        measure(port, notes, admin, CONNECTIONS, has_deadline=has_deadline)  # opens the connections
    limit = 0.05 if has_deadline else 0.5 if "PgBouncer" in path else 0.1
    got = [measure(port, notes, admin, batch, has_deadline=has_deadline) for _ in range(requests // batch)]
    stages = [sorted(each for times in got for each in times[stage]) for stage in range(3)]
    print_row(
        (
            path,
            "deadline" if has_deadline else "close",
            batch,
            *(", ".join(f"{percentile(stage, share) * 1000:.0f}" for share in (0.5, 0.99, 1)) for stage in stages),
            f"{sum(each > limit for each in stages[-1])} of {len(stages[-1])} over {limit * 1000:.0f} ms",
            f"{os.getloadavg()[0]:.1f}",
        )
    )


if __name__ == "__main__":
    main()
