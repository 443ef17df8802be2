"""The API with more routes for load tests.

- `/hold?ms=50` holds a connection for that time.
- `/names?after=7` reads the table `sample.TABLE`. Equal reads share a statement, others do not.
- `/critical` reads in the lane for requests that are never shed.
- `/client` returns the address of the client.
- `/stick?seconds=5&waiting=3` queues that many requests for a connection, then blocks the worker's event loop.
"""

import asyncio
import time

from fastapi import FastAPI, Request
from sqlalchemy import BigInteger, Float, String, bindparam, column, func, select, table
from sqlalchemy.util import greenlet_spawn

from app.database import Database
from app.database.pool import pool_state
from app.main import create_app
from app.observability.multiprocess import current_slot
from app.web.deps import ReadDb, lane
from tests.support import sample

_HOLD = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))
_ROWS = table(sample.TABLE, column("id", BigInteger), column("name", String))
_AFTER = bindparam("after", type_=BigInteger())
_NAMES = select(_ROWS.c.id, _ROWS.c.name).where(_ROWS.c.id > _AFTER).order_by(_ROWS.c.id).limit(20)


def create() -> FastAPI:
    """Return the application, with the routes added."""
    app = create_app()

    @app.get("/hold")
    async def hold(db: ReadDb, ms: float = 50) -> dict[str, str]:
        await db.first(_HOLD, seconds=ms / 1000)
        return {"worker": current_slot()}

    @app.get("/names")
    async def names(db: ReadDb, after: int = 0) -> list[str]:
        return [row["name"] for row in await db.all(_NAMES, after=after)]

    @app.get("/critical", dependencies=[lane("critical")])
    async def critical(db: ReadDb) -> int:
        return len(await db.all(_NAMES, after=0))

    @app.get("/client")
    async def client(request: Request) -> str:
        assert request.client
        return request.client.host

    @app.get("/stick")
    async def stick(request: Request, seconds: float, waiting: int) -> dict[str, str]:
        database: Database = request.app.state.database
        state = pool_state(database.engine)
        assert state is not None
        held = [await database.engine.raw_connection() for _ in range(state.size + state.max_overflow)]
        queue = [asyncio.create_task(database.read.first(_HOLD, seconds=0)) for _ in range(waiting)]
        while (now := pool_state(database.engine)) and now.waiting < waiting:  # noqa: ASYNC110 - the pool has no event
            await asyncio.sleep(0.01)
        time.sleep(seconds)  # noqa: ASYNC251 - blocks the event loop on purpose
        for connection in held:
            await greenlet_spawn(connection.close)
        await asyncio.gather(*queue)
        return {"worker": current_slot()}

    return app
