"""Observes and holds back the statements of waiting reads and writes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import URL

from app.database import Database, PoolOptions, ReadSession, StatementSession, make_engine
from app.database.pool_events import NullObserver
from tests.integration.database.helpers import wait_until


class Observer(NullObserver):
    """Records the events of coalescing."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.refused: list[str] = []

    def coalesced(self, reads: int, seconds: float) -> None:  # type: ignore[override]
        assert seconds >= 0
        self.batches.append(reads)

    def coalesced_writes(self, writes: int, seconds: float) -> None:  # type: ignore[override]
        self.coalesced(writes, seconds)

    def rejected(self) -> None:  # type: ignore[override]
        self.refused.append("rejected")

    def timed_out(self) -> None:  # type: ignore[override]
        self.refused.append("timed out")


def _place(value: Any) -> tuple[bool, Any]:
    """Return where a value is in a sorted array: NULL is first."""
    return value is not None, 0 if value is None else value


class Gate:
    """Records the arguments of each statement on the fast path of a session, and holds them back while it is shut.

    Arrays are sorted.
    """

    def __init__(self, session: ReadSession | StatementSession, observer: Observer) -> None:
        path = session._fast_path
        assert path is not None
        self._fetch = path._fetch
        self.observer = observer
        self.sent: list[list[Any]] = []
        self._open = asyncio.Event()
        self._open.set()
        path._fetch = self

    async def __call__(self, connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
        self.sent.append([sorted(each, key=_place) if isinstance(each, list) else each for each in arguments])
        await self._open.wait()
        return await self._fetch(connection, statement, arguments)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def wait_for(self, statements: int, *jobs: asyncio.Future[Any]) -> None:
        await wait_until(lambda: len(self.sent) == statements, *jobs)


@asynccontextmanager
async def gated(
    url: URL, session_of: Callable[[Database], ReadSession | StatementSession], **options: Any
) -> AsyncIterator[tuple[Database, Gate]]:
    """Yield a database with a small pool, and the gate of one of its sessions."""
    observer = Observer()
    options = {"size": 5, "max_overflow": 0, "timeout": 30, "ping_after": None} | options
    engine = make_engine(url=url, application_name="headroom:gate", pool=PoolOptions(**options), observer=observer)
    database = Database(engine)
    try:
        yield database, Gate(session_of(database), observer)
    finally:
        await engine.dispose()
