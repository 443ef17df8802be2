"""The API, with a route that holds a connection for as long as it is told: `/hold?ms=50`."""

from fastapi import FastAPI
from sqlalchemy import Float, bindparam, func, select

from app.main import create_app
from app.web.deps import ReadDb

_HOLD = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))


def create() -> FastAPI:
    app = create_app()

    @app.get("/hold")
    async def hold(db: ReadDb, ms: float = 50) -> dict[str, float]:
        await db.first(_HOLD, seconds=ms / 1000)
        return {"ms": ms}

    return app
