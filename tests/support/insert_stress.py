"""A stress of shared inserts: each acknowledged row is stored once, as it was sent, and each refused one is not.

Writers insert rows whose parent may be closed, missing or locked, and some of which the server refuses. Callers are
cancelled and backends terminated, both at random.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from time import monotonic
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Identity,
    MetaData,
    Table,
    Text,
    bindparam,
    insert,
    select,
)

from app.database import Database, KeyedSelect, PoolOptions, SharedInsert, make_engine
from app.errors import HeadroomError, OutcomeUnknown
from app.request_deadline import RequestDeadline, request_deadline
from tests.support.postgres import connect
from tests.support.stress import SharingObserver, StressReport, terminate_backends

PARENTS, WRITERS = 50, 48
# Every 10th parent is closed.
CLOSED = 10
OPTIONS = PoolOptions(size=4, max_overflow=0, timeout=3.0, statement_deadline=5.0, max_waiters=200)
# A write waits for the pool and a shared statement, for these again if it is sent in parts, and for its own statement.
# The rest is for a busy machine.
LONGEST_SECONDS = 4 * OPTIONS.timeout + 3 * 5.0 * 9 / 8 + 10

_metadata = MetaData()
parents = Table(
    "stress_parents",
    _metadata,
    Column("id", BigInteger, primary_key=True),
    Column("is_open", Boolean, nullable=False),
)
children = Table(
    "stress_children",
    _metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("parent_id", BigInteger, ForeignKey("stress_parents.id"), nullable=False),
    Column("label", Text, nullable=False),
    CheckConstraint("label <> 'bad'"),
)
ADD = SharedInsert(
    insert(children)
    .from_select(
        ["parent_id", "label"],
        select(parents.c.id, bindparam("label", type_=Text())).where(
            parents.c.id == bindparam("parent_id", type_=BigInteger()), parents.c.is_open
        ),
    )
    .returning(children.c.id, children.c.parent_id, children.c.label)
)
BY_ID = KeyedSelect(select(children.c.id, children.c.parent_id, children.c.label), children.c.id)


@dataclass
class InsertReport(StressReport):
    """The report of a stress of writes."""

    writes: int = 0
    acknowledged: int = 0


class _Stress:
    def __init__(self, database: Database, random: Random, writes: int) -> None:
        self.database = database
        self.random = random
        self.left = writes
        self.report = InsertReport()
        # The rows by what the client was told. A row that may be stored is in none of them.
        self.acknowledged: dict[int, tuple[int, str]] = {}
        self.refused: set[str] = set()
        self.sent: Counter[tuple[int, str]] = Counter()

    async def write(self, label: str) -> None:
        """Insert a row, and check the answer. A few callers are cancelled."""
        self.left -= 1
        parent = self.random.randint(1, PARENTS + 2)
        kind = self.random.random()
        if kind < 0.05:
            label = "equal"  # for several writers
        elif kind < 0.06:
            label = "bad"
        self.sent[parent, label] += 1
        started = monotonic()
        deadline = RequestDeadline(monotonic() + 600, lambda: False, lambda: task.cancel())
        task = asyncio.create_task(self.add(deadline, parent, label))
        ending = self.random.random()
        if ending < 0.1:
            await asyncio.wait({task}, timeout=self.random.choice([0, 0.0005, 0.002]))
            if ending < 0.05:
                task.cancel()
            else:
                deadline.expire()
        outcome = "acknowledged"
        row: Any = None
        is_refused = False
        try:
            row = await asyncio.wait_for(task, LONGEST_SECONDS)
        except asyncio.CancelledError:
            outcome = "cancelled"
            # A deadline that has passed before the row was sent: nothing is stored.
            is_refused = deadline.is_over
        except TimeoutError:
            self.report.violations["beyond the deadline"] += 1
        except OutcomeUnknown:
            outcome = "OutcomeUnknown"
        except Exception as error:  # noqa: BLE001 - the drivers' errors have no common class
            outcome, is_refused = type(error).__name__, True
        else:
            self.report.longest = max(self.report.longest, monotonic() - started)
            outcome = "acknowledged" if row else "no parent"
            is_refused = row is None
            if (row is not None) != (parent <= PARENTS and parent % CLOSED != 0):
                self.report.violations["wrong parent"] += 1
        if row is not None:
            if (row["parent_id"], row["label"]) != (parent, label):
                self.report.violations["row of another caller"] += 1
            if row["id"] in self.acknowledged:
                self.report.violations["one row for two callers"] += 1
            self.acknowledged[row["id"]] = parent, label
            self.report.acknowledged += 1
            with suppress(HeadroomError):
                found = await self.database.read.one(BY_ID, row["id"])
                if found is None or found["label"] != label:
                    self.report.violations["not found after the answer"] += 1
        elif is_refused and label not in ("equal", "bad"):
            self.refused.add(label)
        self.report.writes += 1
        self.report.outcomes[outcome] += 1

    async def add(self, deadline: RequestDeadline, parent: int, label: str) -> Any:
        """Insert a row in a request with this deadline."""
        request_deadline.set(deadline)
        return await self.database.statement.returned(ADD, parent_id=parent, label=label)

    async def write_in_turn(self, writer: int) -> None:
        number = 0
        while self.left > 0:
            number += 1
            await self.write(f"{writer}-{number}")

    async def lock_parents(self, server: URL) -> None:
        """Lock a parent at a time, each for a few milliseconds."""
        with connect(server) as admin:
            while True:
                with admin.transaction():
                    admin.execute(
                        "SELECT FROM stress_parents WHERE id = %s FOR UPDATE", [self.random.randint(1, PARENTS)]
                    )
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0.01)

    def compare(self, stored: dict[int, tuple[int, str]]) -> None:
        """Compare what the clients were told with the rows of the table."""
        violations = self.report.violations
        for key, row in self.acknowledged.items():
            violations["acknowledged row is missing or differs"] += stored.get(key) != row
        counts = Counter(stored.values())
        for row, count in counts.items():
            violations["row is stored more often than it was sent"] += count > self.sent[row]
            violations["refused row is stored"] += row[1] in self.refused


async def stress(url: URL, server: URL, *, writes: int, kill_every: float = 0.2, seed: int = 0) -> InsertReport:
    """Run the stress on `url`. It leads to the database of `server`, a superuser's URL."""
    with connect(server) as admin:
        admin.execute("CREATE TABLE stress_parents (id bigint PRIMARY KEY, is_open boolean NOT NULL)")
        admin.execute(
            "CREATE TABLE stress_children (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,"
            " parent_id bigint NOT NULL REFERENCES stress_parents, label text NOT NULL CHECK (label <> 'bad'))"
        )
        admin.execute(f"INSERT INTO stress_parents SELECT n, n % {CLOSED} <> 0 FROM generate_series(1, {PARENTS}) n")
        admin.execute("GRANT ALL ON stress_parents, stress_children TO headroom_app")
    observer = SharingObserver("writes")
    engine = make_engine(url=url, application_name="headroom:stress", pool=OPTIONS, observer=observer)
    run = _Stress(Database(engine), Random(seed), writes)
    observer.report = run.report
    disturbing = [
        asyncio.create_task(terminate_backends(server, run.report, kill_every)),
        asyncio.create_task(run.lock_parents(server)),
    ]
    try:
        await asyncio.gather(*(run.write_in_turn(writer) for writer in range(WRITERS)))
    finally:
        for task in disturbing:
            task.cancel()
        await asyncio.wait(disturbing)
        for task in disturbing:
            if not task.cancelled():
                task.result()
    await engine.dispose()
    with connect(server) as admin, admin.transaction():
        # Statements of cancelled callers may still be ending. An exclusive lock waits for them.
        admin.execute("LOCK TABLE stress_children IN ACCESS EXCLUSIVE MODE")
        rows = admin.execute("SELECT id, parent_id, label FROM stress_children").fetchall()
    run.compare({key: (parent, label) for key, parent, label in rows})
    return run.report
