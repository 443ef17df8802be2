"""Stress the shared statements on both drivers, directly and through PgBouncer: `make bench-coalescing`.

Exits with 1 if a row was wrong, a caller waited beyond its deadline, a read that began after a commit was acknowledged
did not see it, or what the writers were told differs from what is stored.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from sqlalchemy import URL

from benchmarks.tables import print_header, print_row
from tests.support import insert_stress
from tests.support.coalescing_stress import stress
from tests.support.postgres import Server, as_role, run_pgbouncer, run_postgres


def main() -> None:
    """Run both kinds of stress with each driver, directly and through PgBouncer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=20_000, help="for each driver and path (default: 20000)")
    parser.add_argument("--writes", type=int, default=20_000, help="for each driver and path (default: 20000)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    args = parser.parse_args()
    print(f"seed {args.seed}")
    failed = False
    with TemporaryDirectory() as directory, run_postgres(Path(directory)) as server:
        print_header(_columns("reads", "right after a commit", "shared reads"))
        for setup, reads in _reports(
            server,
            Path(directory, "reads"),
            lambda url, database: stress(url, database, reads=args.reads, seed=args.seed),
        ):
            failed |= _print(setup, reads, reads.reads, reads.read_after_commit)
        print()
        print_header(_columns("writes", "acknowledged", "shared rows"))
        for setup, writes in _reports(
            server,
            Path(directory, "writes"),
            lambda url, database: insert_stress.stress(url, database, writes=args.writes, seed=args.seed),
        ):
            failed |= _print(setup, writes, writes.writes, writes.acknowledged)
    sys.exit(failed)


def _columns(done: str, confirmed: str, shared: str) -> tuple[str, ...]:
    found = ("outcomes", shared, "in statements", "longest s", "violations", "seconds", "load")
    return ("driver", "path", done, confirmed, *found)


def _reports(
    server: Server, directory: Path, run: Callable[[URL, URL], Coroutine[Any, Any, Any]]
) -> Iterator[tuple[tuple[str, str, float], Any]]:
    """Yield the driver, the path and the seconds of each run, and its report."""
    for path in ("direct", "pgbouncer"):
        for driver in ("asyncpg", "psycopg"):
            pgbouncer = directory / f"{path}-{driver}"
            pgbouncer.mkdir(parents=True)
            started = time.monotonic()
            with server.database() as database:
                url = as_role(database, "headroom_app").set(drivername=f"postgresql+{driver}")
                with run_pgbouncer(server, pgbouncer) if path == "pgbouncer" else nullcontext() as pooler:
                    reached = url if pooler is None else pooler.url(url)
                    report: Any = uvloop.run(run(reached, database))
            yield (driver, path, time.monotonic() - started), report


def _print(setup: tuple[str, str, float], report: Any, done: int, confirmed: int) -> bool:
    """Print a row of the table. Return True if the stress found a violation."""
    driver, path, seconds = setup
    outcomes = ", ".join(f"{count} {name}" for name, count in report.outcomes.most_common())
    violations = ", ".join(f"{count} {name}" for name, count in report.violations.items() if count)
    print_row(
        (
            driver,
            path,
            done,
            confirmed,
            outcomes,
            report.shared,
            report.statements,
            f"{report.longest:.2f}",
            violations or "0",
            f"{seconds:.0f}",
            f"{os.getloadavg()[0]:.1f}",
        )
    )
    return bool(violations)


if __name__ == "__main__":
    main()
