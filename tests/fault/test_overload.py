"""More requests than connections: who cannot be served is told so in time, and everything else goes on."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
import uvloop
from sqlalchemy import URL

from tests.support.load import Answers, load, percentile
from tests.support.postgres import as_role, connect
from tests.support.serving import holding_api
from tests.support.waiting import eventually

SECONDS = 5


@pytest.fixture(scope="module", params=["asyncpg", "psycopg"])
def api(request: pytest.FixtureRequest, database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = as_role(database, "headroom_app").set(drivername=f"postgresql+{request.param}")
    with holding_api(url, tmp_path_factory.mktemp("api")) as api:
        yield api


async def attacked(api: str, path: str, clients: int) -> tuple[Answers, Answers, Answers]:
    """The clients' answers, and those of /livez and /readyz meanwhile."""
    return await asyncio.gather(
        load([f"{api}{path}"], clients=clients, seconds=SECONDS, patient=False, pause=0.1),
        load([f"{api}/livez"], clients=1, seconds=SECONDS, pause=0.1),
        load([f"{api}/readyz"], clients=1, seconds=SECONDS, pause=0.1),
    )


def back_to_normal(api: str) -> None:
    def served() -> bool:
        answers = uvloop.run(load([f"{api}/hold?ms=1"], clients=10, seconds=0.5))
        return set(answers.statuses) == {200}

    eventually(served, within=5)


@pytest.mark.parametrize("clients", [300, 1000])
def test_beyond_the_pool_and_its_queue_the_answer_is_quick_and_honest(api: str, clients: int) -> None:
    answers, livez, readyz = uvloop.run(attacked(api, "/hold?ms=50", clients))

    assert set(answers.statuses) <= {200, 503}
    assert answers.statuses[200] > 100 * SECONDS, "the pool is used, not only defended"
    # 3 s, and what a machine with two cores needs to write a thousand answers.
    assert answers.seconds(200, 503)[-1] < 5
    assert set(livez.statuses) == {200}
    assert livez.seconds(200)[-1] < 1
    assert set(readyz.statuses) == {200}, "busy is not broken"
    assert readyz.seconds(200)[-1] < 2
    back_to_normal(api)


def test_a_lock_that_stops_every_statement_stops_nothing_else(api: str, database: URL) -> None:
    with connect(database) as connection, connection.transaction():
        connection.execute("LOCK TABLE posts IN ACCESS EXCLUSIVE MODE")
        answers, livez, readyz = uvloop.run(attacked(api, "/posts?cursor=", 300))

    assert set(answers.statuses) == {503}
    # Waiting for a connection, up to 3 s, and then for the lock, 2 s.
    assert answers.seconds(503)[-1] < 6.5
    assert percentile(livez.seconds(200), 1) < 1
    assert set(livez.statuses) == {200}
    assert set(readyz.statuses) == {200}
    back_to_normal(api)


def test_a_refusal_says_which_connections_there_are_and_when_to_come_back(api: str) -> None:
    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=600)) as client:
            return await asyncio.gather(*(client.get(f"{api}/hold?ms=500") for _ in range(600)))

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code == 503]

    assert refused
    assert {answer.json()["type"] for answer in refused} == {"/problems/pool-exhausted"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def test_a_thousand_clients_that_hang_up_leave_nothing_behind(api: str, database: URL) -> None:
    """In every stage: before the request is sent, while it waits for a connection, while its statement runs."""

    async def hang_up(number: int) -> None:
        address = httpx.URL(api)
        _, writer = await asyncio.open_connection(address.host, address.port)
        request = b"GET /hold?ms=100 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(request if number % 10 else request[: number % len(request)])
        await asyncio.sleep((number % 20) / 100)
        writer.transport.abort()

    async def storm() -> None:
        for batch in range(10):
            await asyncio.gather(*(hang_up(batch * 100 + number) for number in range(100)))

    with connect(database) as connection:

        def opened(condition: str = "true") -> int:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                f" WHERE application_name LIKE 'headroom:api:%' AND {condition}".encode()
            ).fetchone()
            assert row is not None
            return int(row[0])

        asyncio.run(storm())
        assert opened() <= 4 * (5 + 10)
        eventually(lambda: opened("state <> 'idle'") == 0, within=10)
        back_to_normal(api)
        eventually(lambda: opened() <= 4 * 5, within=10)
