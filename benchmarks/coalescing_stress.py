"""Stress the coalesced reads on both drivers, directly and through PgBouncer: `make bench-coalescing`.

Exits with 1 if a row was wrong, a read waited beyond its deadline, or a read that began after a commit was acknowledged
did not see it.
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from benchmarks.tables import print_header, print_row
from tests.support.coalescing_stress import stress
from tests.support.postgres import as_role, run_pgbouncer, run_postgres

COLUMNS = (
    "driver",
    "path",
    "reads",
    "right after a commit",
    "outcomes",
    "shared reads",
    "in statements",
    "longest s",
    "violations",
    "seconds",
    "load",
)


def main() -> None:
    """Run the stress with each driver, directly and through PgBouncer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=20_000, help="for each driver and path (default: 20000)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    args = parser.parse_args()
    print(f"seed {args.seed}")
    failed = False
    with TemporaryDirectory() as directory, run_postgres(Path(directory)) as server:
        print_header(COLUMNS)
        for path in ("direct", "pgbouncer"):
            for driver in ("asyncpg", "psycopg"):
                pgbouncer = Path(directory) / f"{path}-{driver}"
                pgbouncer.mkdir()
                started = time.monotonic()
                with server.database() as database:
                    url = as_role(database, "headroom_app").set(drivername=f"postgresql+{driver}")
                    with run_pgbouncer(server, pgbouncer) if path == "pgbouncer" else nullcontext() as pooler:
                        reached = url if pooler is None else pooler.url(url)
                        report = uvloop.run(stress(reached, database, reads=args.reads, seed=args.seed))
                outcomes = ", ".join(f"{count} {name}" for name, count in report.outcomes.most_common())
                violations = ", ".join(f"{count} {name}" for name, count in report.violations.items() if count)
                print_row(
                    (
                        driver,
                        path,
                        report.reads,
                        report.read_after_commit,
                        outcomes,
                        report.shared,
                        report.statements,
                        f"{report.longest:.2f}",
                        violations or "0",
                        f"{time.monotonic() - started:.0f}",
                        f"{os.getloadavg()[0]:.1f}",
                    )
                )
                failed |= bool(violations)
    sys.exit(failed)


if __name__ == "__main__":
    main()
