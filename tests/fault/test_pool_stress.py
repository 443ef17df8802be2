"""The pool under random faults. `make bench-pool-stress` runs more operations."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.support.pool_stress import stress
from tests.support.postgres import Server, as_role, run_pgbouncer, run_postgres

OPERATIONS = 4_000

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def postgres(new_directory: Callable[[], Path]) -> Iterator[Server]:
    with run_postgres(new_directory()) as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> Iterator[URL]:
    with postgres.database() as url:
        yield url


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_random_faults_cause_no_wrong_answer_and_no_leak(database: URL, driver: str) -> None:
    url = as_role(database, "headroom_app").set(drivername=f"postgresql+{driver}")

    report = asyncio.run(stress(url, database, operations=OPERATIONS, pooled=False))

    assert report.violations == []
    assert report.outcomes["answered"] > OPERATIONS / 10
    assert sum(report.faults.values()) > 10


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_random_faults_in_front_of_pgbouncer_cause_no_wrong_answer(
    postgres: Server, database: URL, tmp_path: Path, driver: str
) -> None:
    url = as_role(database, "headroom_app").set(drivername=f"postgresql+{driver}")

    with run_pgbouncer(postgres, tmp_path) as pgbouncer:
        report = asyncio.run(stress(pgbouncer.url(url), database, operations=OPERATIONS, pooled=True))

    assert report.violations == []
    assert report.outcomes["answered"] > OPERATIONS / 10
