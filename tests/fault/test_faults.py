"""A selection of the faults of `make fault`: what clients are told under a fault is what the database then holds."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from app.paths import PROJECT_ROOT
from benchmarks.fault.__main__ import Run, chosen_faults
from benchmarks.fault.report import violations
from benchmarks.fault.topology import ASYNCPG, PSYCOPG_PGBOUNCER
from tests.support.docker import require_engine

pytestmark = pytest.mark.alone

SECONDS = 1.5
# After these the API itself was gone for a while: requests break, whatever it does.
BREAKS_REQUESTS = ("API: all workers killed",)


@pytest.fixture(scope="module")
def run(new_directory: Callable[[], Path]) -> Run:
    directory = new_directory()
    directory.chmod(0o755)
    directory.parent.chmod(0o755)
    return Run(PROJECT_ROOT, directory, SECONDS)


def test_harness_counts_a_connection_that_no_pool_knows(run: Run) -> None:
    with run.topology(chosen_faults(["PostgreSQL: restarted"])[0], ASYNCPG) as topology:
        assert topology.leaked() == 0
        with psycopg.connect(
            host="127.0.0.1",
            port=topology.primary.port,
            user="headroom_app",
            dbname="headroom",
            application_name="headroom:api:lost:1",
        ):
            assert topology.leaked(within=1) == 1


@pytest.mark.parametrize(
    ("setup", "name"),
    [
        (ASYNCPG, "PostgreSQL: restarted"),
        (ASYNCPG, "PostgreSQL: killed"),
        (ASYNCPG, "PostgreSQL: read-only"),
        (ASYNCPG, "PostgreSQL: disk full"),
        (ASYNCPG, "PostgreSQL: all backends terminated"),
        (ASYNCPG, "API: all workers killed"),
        (ASYNCPG, "Clients: 300 disconnect"),
        (PSYCOPG_PGBOUNCER, "PostgreSQL: killed"),
        (PSYCOPG_PGBOUNCER, "PgBouncer: killed"),
        (PSYCOPG_PGBOUNCER, "Migration: column's type changed"),
        (PSYCOPG_PGBOUNCER, "PgBouncer: PAUSE, PostgreSQL restarted, RESUME"),
    ],
)
def test_fault_loses_no_write_and_no_connection(run: Run, setup: str, name: str) -> None:
    if setup == PSYCOPG_PGBOUNCER:
        require_engine()
    [fault] = chosen_faults([name])

    row = run.trial(fault, setup)

    assert row.note == ""
    assert violations(row) == []
    assert row.others == {}, "only 503 besides the successes"
    assert row.recovery is not None
    assert row.comparison is not None
    assert row.comparison.acknowledged > 0
    if name not in BREAKS_REQUESTS:
        assert (row.broken, row.not_connected) == (0, 0)
