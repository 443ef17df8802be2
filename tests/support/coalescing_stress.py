"""A stress of coalesced reads: each answer is compared with its key, and must contain what was committed before.

Readers read random keys, some of which do not exist. Writers change a row of their own and read it back, while the
readers read the same rows. Callers are cancelled and backends terminated, both at random.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from time import monotonic
from typing import Any

from sqlalchemy import URL, BigInteger, Column, MetaData, Table, bindparam, select, update

from app.database import Database, KeyedSelect, PoolOptions, make_engine
from app.database.pool import BoundedPool
from app.errors import HeadroomError, OutcomeUnknown
from tests.support.postgres import connect
from tests.support.stress import SharingObserver, StressReport, terminate_backends
from tests.support.waiting import eventually_async

ROWS, WRITERS, READERS = 200, 32, 32
OPTIONS = PoolOptions(size=2, max_overflow=2, timeout=3.0, statement_deadline=5.0, max_waiters=200)
# A read waits for the pool and for one statement. The rest is for a busy machine.
LONGEST_SECONDS = OPTIONS.timeout + 5.0 * 9 / 8 + 10
# The longest time until a connection is back whose reads have all ended.
ENDING_SECONDS = 15.0

rows = Table("stress_rows", MetaData(), Column("id", BigInteger, primary_key=True), Column("version", BigInteger))
BY_ID = KeyedSelect(select(rows.c.id, rows.c.version), rows.c.id)
ALL_OF_FIRST = (
    select(rows.c.id, rows.c.version).where(rows.c.id <= bindparam("last", type_=BigInteger())).order_by("id")
)
SET_VERSION = (
    update(rows)
    .where(rows.c.id == bindparam("row", type_=BigInteger()))
    .values(version=bindparam("to", type_=BigInteger()))
    .returning(rows.c.version)
)


@dataclass
class CoalescingReport(StressReport):
    """The report of a stress of reads."""

    reads: int = 0
    read_after_commit: int = 0


class _Stress:
    def __init__(self, database: Database, random: Random, reads: int) -> None:
        self.database = database
        self.random = random
        self.left = reads
        self.report = CoalescingReport()
        # The newest version that was acknowledged, by row.
        self.committed = dict.fromkeys(range(1, ROWS + 1), 0)

    async def read(self, key: int) -> None:
        """Read a key, and check the answer. A few reads are cancelled."""
        self.left -= 1
        at_least = self.committed.get(key)
        started = monotonic()
        task = asyncio.ensure_future(self.database.read.one(BY_ID, key))
        if self.random.random() < 0.05:
            await asyncio.wait({task}, timeout=self.random.choice([0, 0.0005, 0.002]))
            task.cancel()
        outcome = "answered"
        try:
            row: Any = await asyncio.wait_for(task, LONGEST_SECONDS)
        except asyncio.CancelledError:
            outcome = "cancelled"
        except TimeoutError:
            self.report.violations["beyond the deadline"] += 1
        except HeadroomError as error:
            outcome = type(error).__name__
        else:
            self.report.longest = max(self.report.longest, monotonic() - started)
            if at_least is None:
                self.report.violations["row of a key that does not exist"] += row is not None
            elif row is None or row["id"] != key:
                self.report.violations["wrong row"] += 1
            elif row["version"] < at_least:
                self.report.violations["older than a commit before the read"] += 1
        self.report.reads += 1
        self.report.outcomes[outcome] += 1

    async def read_in_turn(self) -> None:
        while self.left > 0:
            await self.read(self.random.randint(-5, ROWS))

    async def read_lists_in_turn(self) -> None:
        while self.left > 0:
            self.left -= 1
            last = self.random.choice([3, 5])
            at_least = [self.committed[key] for key in range(1, last + 1)]
            with suppress(HeadroomError):
                found = await self.database.read.all(ALL_OF_FIRST, last=last)
                if [row["id"] for row in found] != list(range(1, last + 1)):
                    self.report.violations["wrong list"] += 1
                if any(row["version"] < version for row, version in zip(found, at_least, strict=True)):
                    self.report.violations["older than a commit before the read"] += 1
            self.report.reads += 1

    async def write_in_turn(self, key: int) -> None:
        """Change a row, and read it as soon as the change is acknowledged."""
        version = 0
        while self.left > 0:
            version += 1
            try:
                await self.database.statement.returned(SET_VERSION, row=key, to=version)
            except OutcomeUnknown:
                continue  # the next version is higher in any case
            except HeadroomError:
                continue
            self.committed[key] = version
            self.report.read_after_commit += 1
            await self.read(key)


async def stress(url: URL, server: URL, *, reads: int, kill_every: float = 0.2, seed: int = 0) -> CoalescingReport:
    """Run the stress on `url`. It leads to the database of `server`, a superuser's URL."""
    with connect(server) as admin:
        admin.execute("CREATE TABLE stress_rows (id bigint PRIMARY KEY, version bigint NOT NULL)")
        admin.execute(f"INSERT INTO stress_rows SELECT n, 0 FROM generate_series(1, {ROWS}) n")
        admin.execute("GRANT ALL ON stress_rows TO headroom_app")
    observer = SharingObserver("reads")
    engine = make_engine(url=url, application_name="headroom:stress", pool=OPTIONS, observer=observer)
    run = _Stress(Database(engine), Random(seed), reads)
    observer.report = run.report
    killing = asyncio.create_task(terminate_backends(server, run.report, kill_every))
    pool: Any = engine.pool
    assert isinstance(pool, BoundedPool)
    try:
        await asyncio.gather(
            *(run.write_in_turn(key) for key in range(1, WRITERS + 1)),
            *(run.read_in_turn() for _ in range(READERS)),
            *(run.read_lists_in_turn() for _ in range(8)),
        )
    finally:
        killing.cancel()
        await asyncio.wait({killing})
        if not killing.cancelled():
            killing.result()
    # The statement of the last cancelled read may still be ending. A connection that leaked never comes back.

    async def all_are_back() -> bool:
        return not pool.state.used

    with suppress(AssertionError):
        await eventually_async(all_are_back, within=ENDING_SECONDS)
    if pool.state.used:
        run.report.violations["connections in use at the end"] += pool.state.used
    await engine.dispose()
    return run.report
