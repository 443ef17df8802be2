"""Liveness and readiness while the database does what databases do."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support.proxy import Proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncClient]:
    """An API whose way to the database leads through the proxy."""
    app: FastAPI = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY, db_pool_timeout=30))
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


async def test_it_is_ready_while_the_database_answers(client: AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ok"}


@pytest.mark.parametrize("connected", [True, False], ids=["with a connection", "without one"])
async def test_readiness_is_answered_within_two_seconds_while_the_database_hangs(
    client: AsyncClient, proxy: Proxy, connected: bool
) -> None:
    if connected:
        await client.get("/readyz")
    proxy.pause()

    async def ask() -> tuple[int, float]:
        started = time.monotonic()
        answer = await client.get("/readyz")
        return answer.status_code, time.monotonic() - started

    answers = await asyncio.gather(*(ask() for _ in range(5)))

    assert [status for status, _ in answers] == [503] * 5
    assert max(seconds for _, seconds in answers) < 2
    assert proxy.opened <= 2, "five questions take one connection, beside the one that was there"


async def test_it_lives_while_the_database_hangs(client: AsyncClient, proxy: Proxy) -> None:
    proxy.pause()
    before = proxy.opened

    assert (await client.get("/livez")).status_code == 200
    assert proxy.opened == before


async def test_it_is_ready_again_when_the_database_is(client: AsyncClient, proxy: Proxy) -> None:
    await client.get("/readyz")
    proxy.pause()
    assert (await client.get("/readyz")).status_code == 503

    proxy.resume()

    async with asyncio.timeout(10):
        while (await client.get("/readyz")).status_code != 200:
            pass


async def test_a_connection_whose_other_side_is_gone_does_not_keep_it_unready(
    client: AsyncClient, proxy: Proxy
) -> None:
    await client.get("/readyz")
    proxy.forget()
    assert (await client.get("/readyz")).status_code == 503

    async with asyncio.timeout(10):
        while (await client.get("/readyz")).status_code != 200:
            pass


async def test_stopping_does_not_wait_for_a_server_that_hangs(proxy: Proxy) -> None:
    app = create_app(Settings(database_url=proxy.url, secret_key=SECRET_KEY))
    async with app.router.lifespan_context(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            assert (await client.get("/readyz")).status_code == 200
        proxy.pause()
        started = time.monotonic()

    assert time.monotonic() - started < 2


async def test_it_is_not_ready_while_the_database_refuses_connections(client: AsyncClient, proxy: Proxy) -> None:
    await proxy.close()

    answer = await client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/database-unavailable"
    assert answer.headers["retry-after"] == "1"
