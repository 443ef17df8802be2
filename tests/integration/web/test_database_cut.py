"""The API while the network to the database is cut: every request is answered, in time."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from httpx import ASGITransport, AsyncClient

from app.main import create_app
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.support import contacts
from tests.support.proxy import Proxy

POOL_TIMEOUT = STATEMENT_DEADLINE = 4.0
BUSY_SECONDS = 10.0


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncClient]:
    app = create_app(
        Settings(
            database_url=proxy.url,
            secret_key=SECRET_KEY,
            db_pool_timeout=POOL_TIMEOUT,
            db_statement_deadline=STATEMENT_DEADLINE,
        )
    )
    app.include_router(contacts.router)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test", timeout=60) as client,
    ):
        yield client


async def test_every_request_is_answered_while_the_network_is_cut(client: AsyncClient, proxy: Proxy) -> None:
    ann = {"email": "ann@example.com", "name": "Ann"}
    location = (await client.post("/test-contacts", json=ann)).headers["location"]
    assert (await client.get(location)).status_code == 200
    proxy.pause()
    started = monotonic()

    answers = await asyncio.gather(
        *(client.get(f"/test-contacts/{number}") for number in range(1, 21)),
        *(client.put(location, json=ann | {"name": "Anna"}) for _ in range(20)),
    )

    assert {answer.status_code for answer in answers} == {503}
    assert monotonic() - started < POOL_TIMEOUT + STATEMENT_DEADLINE + BUSY_SECONDS
    for answer in answers:
        slug = answer.json()["type"].removeprefix("/problems/")
        assert slug in ("database-unavailable", "pool-exhausted", "outcome-unknown")
        assert ("retry-after" in answer.headers) == (slug != "outcome-unknown")
    proxy.resume()
    assert (await client.get(location)).status_code == 200
