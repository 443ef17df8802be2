"""Health endpoints: `/livez` for the process, `/readyz` for the replica's workers and its database."""

import asyncio
from asyncio import Task
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from sqlalchemy import literal, select

from app.database import Database
from app.database.liveness import check_accepts_connections
from app.database.pool import pool_state
from app.errors import DatabaseUnavailable, NotReady, TransientDatabaseError
from app.replica import replica
from app.web.problems import problem_responses

router = APIRouter(tags=["health"])

# The contract is a response within 2 s. The rest is reserve for a busy machine.
DEADLINE_SECONDS = 1.5
PROBE_SECONDS = 3.0
_ONE = select(literal(1).label("one"))


class Health(BaseModel):
    """The state of the service."""

    status: str = "ok"


@router.get("/livez")
async def livez() -> Health:
    """Return 200 while the process responds. The database does not matter: a restart of the API cannot repair it."""
    return Health()


@router.get("/readyz", responses=problem_responses(NotReady, DatabaseUnavailable))
async def readyz(request: Request) -> Health:
    """Return 200 if every worker serves and the database responds within the deadline; otherwise 503.

    While a worker is replaced, the replica stays ready. A replica that was told to stop answers 503 at once, and serves
    for `DRAIN_SECONDS` more.
    """
    if (reason := replica.why_not_ready()) is not None:
        raise NotReady(reason)
    probe = _current_probe(request.app.state)
    # Waits without cancelling the probe at the deadline: cancelling a query on a hung server takes seconds itself.
    done, _ = await asyncio.wait({probe}, timeout=DEADLINE_SECONDS)
    if not done:
        raise DatabaseUnavailable(f"the database did not respond within {DEADLINE_SECONDS} s")
    if isinstance(error := probe.exception(), TransientDatabaseError):
        raise DatabaseUnavailable(str(error)) from error
    probe.result()
    return Health()


def _current_probe(state: Any) -> Task[None]:
    """Return the running probe, or start one. Requests share it, so a hung database occupies only one connection."""
    probe: Task[None] | None = getattr(state, "readiness_probe", None)
    if probe is None or probe.done():
        database: Database = state.database
        probe = asyncio.create_task(_probe(database), name="readiness probe")
        # Retrieves the error of a probe that no request waits for any more; asyncio would log it.
        probe.add_done_callback(lambda done: done.cancelled() or done.exception())
        state.readiness_probe = probe
    return probe


async def _probe(database: Database) -> None:
    # A pool whose connections are all in use is busy, not broken: the probe must not compete with requests.
    state = pool_state(database.engine)
    if state is not None and not state.has_capacity:
        await check_accepts_connections(database.engine.url)
        return
    # Without a time limit, a connection to a host that vanished would block the probe until TCP gives up.
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await database.primary_read.first(_ONE)
    except TimeoutError:
        raise DatabaseUnavailable(f"the database did not respond within {PROBE_SECONDS} s") from None
