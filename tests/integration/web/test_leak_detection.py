"""A connection that is held for too long is logged with the request that holds it."""

import logging

import pytest
from fastapi import FastAPI, Request
from httpx import AsyncClient
from sqlalchemy import text

from app.web import leak_detection
from app.web.deps import WriteDb


async def test_leak_suspect_in_request_is_logged_once_with_its_route(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/reports/{id}")
    async def report(id: int, request: Request, db: WriteDb) -> None:
        await db.execute(text("SELECT 1"))
        for _ in range(2):
            leak_detection.report(request.app.state.database.engine, after=0)

    with caplog.at_level(logging.WARNING, "headroom.leaks"):
        await client.get("/reports/7", headers={"x-request-id": "sent-by-the-test"})

    [record] = [record for record in caplog.records if record.name == "headroom.leaks"]
    assert record.getMessage().startswith("leak suspect: a connection held for 0.")
    assert record.getMessage().endswith(" s by request sent-by-the-test, GET /reports/{id}")


async def test_leak_suspect_outside_a_request_is_logged(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    engine = app.state.database.engine
    async with engine.connect():
        leak_detection.report(engine, after=60)
        leak_detection.report(engine, after=0)

    [record] = [record for record in caplog.records if record.name == "headroom.leaks"]
    assert record.getMessage().endswith(" s by request -, no request")
