"""`/livez`: this process answers. `/readyz`: it can also reach its database."""

import asyncio
import logging
from asyncio import Task
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import literal, select

from app.database import Database
from app.database.liveness import check_accepts_connections
from app.database.pool import pool_state
from app.errors import DatabaseUnavailable, TransientDatabaseError
from app.web.problems import problem_responses

logger = logging.getLogger(__name__)
router = APIRouter(tags=["health"])

# An answer is promised within 2 s; this leaves a busy machine some time to give it.
DEADLINE_SECONDS = 1.5
PROBE_SECONDS = 3.0
_ONE = select(literal(1).label("one"))


class Health(BaseModel):
    status: str = "ok"


@router.get("/livez")
async def livez() -> Health:
    """200 while the process answers. Touches no database: restarting the API mends no database."""
    return Health()


@router.get("/readyz", responses=problem_responses(DatabaseUnavailable))
async def readyz(request: Request) -> Health:
    """200 while the database answers within the deadline, else 503."""
    probe = _probe(request.app.state)
    # Waits for the probe without cancelling it: cancelling a query on a hung server takes seconds by itself.
    done, _ = await asyncio.wait({probe}, timeout=DEADLINE_SECONDS)
    if not done:
        raise DatabaseUnavailable(f"no answer within {DEADLINE_SECONDS} s")
    if isinstance(error := probe.exception(), TransientDatabaseError):
        raise DatabaseUnavailable(str(error)) from error
    probe.result()
    return Health()


async def _ask(database: Database) -> None:
    # Being busy is not being broken: with every connection in use, a probe neither waits for one nor takes another's
    # place in the queue.
    state = pool_state(database.engine)
    if state is not None and not state.has_capacity:
        await check_accepts_connections(database.engine.url)
        return
    # Without an end, a connection whose other side is gone would hold the next probe up for as long as TCP hopes.
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await database.read.first(_ONE)
    except TimeoutError:
        raise DatabaseUnavailable(f"no answer within {PROBE_SECONDS} s") from None


def _probe(state: Any) -> Task[None]:
    """The check under way, or a new one: however often a hung database is asked about, one connection waits for it."""
    probe: Task[None] | None = getattr(state, "readiness_probe", None)
    if probe is None or probe.done():
        database: Database = state.database
        probe = asyncio.create_task(_ask(database), name="readiness probe")
        # It may fail when nobody waits for it any more.
        probe.add_done_callback(lambda done: done.cancelled() or done.exception())
        state.readiness_probe = probe
    return probe
