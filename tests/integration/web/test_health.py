"""Liveness and readiness while the database hangs, vanishes, refuses connections or recovers."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.main import create_app
from app.replica import Replica
from app.settings import Settings
from app.web import health
from tests.integration.conftest import SECRET_KEY
from tests.support.proxy import Proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncClient]:
    """A client of an API that connects to the database through the proxy."""
    app: FastAPI = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY, db_pool_timeout=30))
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def test_readyz_with_database_returns_200(client: AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ok"}


async def test_readyz_of_stopping_replica_returns_503_and_livez_200(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = Replica()
    stopping.stop(after=60)
    monkeypatch.setattr(health, "replica", stopping)

    response = await client.get("/readyz")

    assert (response.status_code, response.json()["type"]) == (503, "/problems/not-ready")
    assert response.headers["retry-after"]
    assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("connected", [True, False], ids=["idle connection", "empty pool"])
async def test_readyz_with_hung_database_returns_503_in_time(
    client: AsyncClient, proxy: Proxy, connected: bool
) -> None:
    if connected:
        await client.get("/readyz")
    proxy.pause()

    async def get_readyz() -> tuple[int, float]:
        started = time.monotonic()
        response = await client.get("/readyz")
        return response.status_code, time.monotonic() - started

    results = await asyncio.gather(*(get_readyz() for _ in range(5)))

    assert [status for status, _ in results] == [503] * 5
    assert max(seconds for _, seconds in results) < 4.5, "the driver itself would wait for 5 s"
    assert proxy.opened <= 2, "the five requests must share one new connection"


async def test_livez_with_hung_database_returns_200_without_connecting(client: AsyncClient, proxy: Proxy) -> None:
    proxy.pause()
    before = proxy.opened

    assert (await client.get("/livez")).status_code == 200
    assert proxy.opened == before


async def test_readyz_after_database_resumes_returns_200(client: AsyncClient, proxy: Proxy) -> None:
    await client.get("/readyz")
    proxy.pause()
    assert (await client.get("/readyz")).status_code == 503

    proxy.resume()

    async with asyncio.timeout(30):
        while (await client.get("/readyz")).status_code != 200:
            pass


async def test_readyz_after_peer_vanishes_returns_200_again(client: AsyncClient, proxy: Proxy) -> None:
    await client.get("/readyz")
    proxy.forget()
    assert (await client.get("/readyz")).status_code == 503

    async with asyncio.timeout(30):
        while (await client.get("/readyz")).status_code != 200:
            pass


async def test_shutdown_with_hung_database_ends_at_its_deadline(proxy: Proxy) -> None:
    app = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY))
    async with app.router.lifespan_context(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            assert (await client.get("/readyz")).status_code == 200
        proxy.pause()
        started = time.monotonic()

    assert time.monotonic() - started < 12


async def test_readyz_with_refused_connections_returns_503(client: AsyncClient, proxy: Proxy) -> None:
    await proxy.close()

    response = await client.get("/readyz")

    assert response.status_code == 503
    assert response.json()["type"] == "/problems/database-unavailable"
    assert response.headers["retry-after"] == "1"
