"""What the stresses of shared statements have in common: their report, its observer, and the end of backends."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import URL

from app.database.pool_events import NullObserver
from tests.support.postgres import connect


@dataclass
class StressReport:
    """What a stress found. `violations` counts what must not happen, by kind.

    `shared` reads or rows had `statements` statements. `terminated` backends were ended. `longest` is in seconds.
    """

    shared: int = 0
    statements: int = 0
    terminated: int = 0
    longest: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)


class SharingObserver(NullObserver):
    """Counts the statements of one kind, `of`: "reads" or "writes"."""

    report: StressReport

    def __init__(self, of: Literal["reads", "writes"]) -> None:
        self._of = of

    def coalesced(self, reads: int, seconds: float) -> None:  # type: ignore[override]
        self._count("reads", reads)

    def coalesced_writes(self, writes: int, seconds: float) -> None:  # type: ignore[override]
        self._count("writes", writes)

    def _count(self, kind: str, number: int) -> None:
        if kind == self._of:
            self.report.statements += 1
            self.report.shared += number


async def terminate_backends(server: URL, report: StressReport, every: float) -> None:
    """Terminate a random backend of the API, again and again, after `every` seconds."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'headroom_app'"
        " AND datname = current_database() ORDER BY random() LIMIT 1"
    )
    with connect(server) as admin:
        while True:
            await asyncio.sleep(every)
            report.terminated += len(admin.execute(query).fetchall())
