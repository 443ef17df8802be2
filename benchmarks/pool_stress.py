"""A randomised stress of the pool: cancellations, terminated backends, cut and silent connections.

`make bench-pool-stress args="--operations 200000"`. Exits with 1 if an answer was wrong, a caller waited beyond its
deadline, the pool had too many connections, or a row was lost or stored although it was refused.
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
from tests.support.pool_stress import OPTIONS, Report, stress
from tests.support.postgres import as_role, run_pgbouncer, run_postgres

COLUMNS = (
    "driver",
    "path",
    "operations",
    "outcomes",
    "faults",
    "wrong answers",
    "beyond deadline",
    "longest s",
    f"most connections (of {OPTIONS.max_size})",
    "most on server",
    "acknowledged and missing",
    "refused and present",
    "unknown present/absent",
    "left",
    "seconds",
    "load",
)


def show(driver: str, path: str, report: Report, seconds: float) -> None:
    """Print a row, and the violations."""
    print_row(
        (
            driver,
            path,
            report.operations,
            ", ".join(f"{count} {name}" for name, count in report.outcomes.most_common()),
            ", ".join(f"{count} {name}" for name, count in report.faults.most_common()),
            report.wrong_answers,
            report.late,
            f"{report.longest:.1f}",
            report.most_connections,
            report.most_on_server,
            report.missing,
            report.present,
            "/".join(map(str, report.unknown)),
            report.left_on_server,
            f"{seconds:.0f}",
            f"{os.getloadavg()[0]:.1f}",
        )
    )
    for violation in report.violations:
        print(f"VIOLATION: {violation}", file=sys.stderr)


def main() -> None:
    """Run the stress with each driver, directly and through PgBouncer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=5_000, help="for each driver and path")
    parser.add_argument("--drivers", nargs="+", default=["asyncpg", "psycopg"])
    parser.add_argument("--paths", nargs="+", default=["direct", "pgbouncer"])
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    args = parser.parse_args()
    print(f"seed {args.seed}")
    failed = False
    with TemporaryDirectory() as directory, run_postgres(Path(directory)) as server:
        print_header(COLUMNS)
        for path in args.paths:
            for driver in args.drivers:
                pgbouncer = Path(directory) / f"{path}-{driver}"
                pgbouncer.mkdir()
                started = time.monotonic()
                with server.database() as database:
                    url = as_role(database, "headroom_app").set(drivername=f"postgresql+{driver}")
                    with run_pgbouncer(server, pgbouncer) if path == "pgbouncer" else nullcontext() as pooler:
                        report = uvloop.run(
                            stress(
                                url if pooler is None else pooler.url(url),
                                database,
                                operations=args.operations,
                                pooled=pooler is not None,
                                seed=args.seed,
                            )
                        )
                show(driver, path, report, time.monotonic() - started)
                failed |= bool(report.violations)
    sys.exit(failed)


if __name__ == "__main__":
    main()
