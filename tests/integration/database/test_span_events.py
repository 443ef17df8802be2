"""Waits for a lane and for a connection are events of the caller's span."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan
from sqlalchemy import URL

from app.database import Database, PoolOptions, make_engine
from app.database.lanes import in_lane
from app.lanes import EXPENSIVE
from app.observability.span_events import ACQUIRED, LANE_ENTERED, TracedPoolMetrics
from tests.integration.database.helpers import PID, SLEEP, allow_long_statements, checked_out, state, wait_until


class Span(NonRecordingSpan):
    """A span that keeps its events. The SDK, which has one, is not among the requirements."""

    def __init__(self) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self.events: list[tuple[str, Any]] = []

    def is_recording(self) -> bool:
        return True

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.events.append((name, dict(attributes)))


@pytest.fixture
def database_setup() -> str:
    """The driver makes no difference to the pool's events."""
    return "asyncpg"


@pytest.fixture
async def traced(database_url: URL) -> AsyncIterator[Database]:
    allow_long_statements(database_url)
    engine = make_engine(
        url=database_url,
        application_name="headroom:traced",
        pool=PoolOptions(size=1, max_overflow=0, timeout=60, expensive_timeout=60),
        observer=TracedPoolMetrics("traced"),
    )
    yield Database(engine)
    await engine.dispose()


async def read(database: Database, lane: Any = None) -> Span:
    """Read in a task and a span of its own."""
    span = Span()
    with trace.use_span(span):
        if lane is None:
            await database.read.first(PID)
        else:
            with in_lane(lane):
                await database.read.first(PID)
    return span


async def test_wait_for_a_connection_is_an_event_of_the_span(traced: Database) -> None:
    async with checked_out(traced):
        waiting = [asyncio.create_task(read(traced)) for _ in range(2)]
        await wait_until(lambda: state(traced).waiting == 2, *waiting)

    for span in await asyncio.gather(*waiting):
        [(name, attributes)] = span.events
        assert name == ACQUIRED
        assert attributes["db.client.connection.pool.name"] == "traced"
        assert attributes["db.client.connection.wait_time"] > 0


async def test_wait_for_a_lane_is_an_event_of_the_span(traced: Database) -> None:
    with in_lane(EXPENSIVE):
        running = asyncio.create_task(traced.read.first(SLEEP, seconds=60))
    await wait_until(lambda: state(traced).used == 1, running)
    waiting = asyncio.create_task(read(traced, EXPENSIVE))
    await asyncio.sleep(0)
    running.cancel()

    span = await waiting

    assert [name for name, _ in span.events] == [LANE_ENTERED, ACQUIRED]
    lane, acquired = (attributes for _, attributes in span.events)
    assert lane["db.lane"] == EXPENSIVE
    assert 0 < lane["db.lane.wait_time"] <= acquired["db.client.connection.wait_time"]
