"""More requests than connections: the surplus gets a 503 in time, and everything else goes on."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest
import uvloop
from sqlalchemy import URL

from tests.support import sample
from tests.support.load import Answers, load, percentile
from tests.support.postgres import as_role, connect
from tests.support.serving import holding_api
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone

SECONDS = 4
# Room for a machine that pauses: the limits themselves hold for half of the answers at least.
PAUSE_SECONDS = 10


@pytest.fixture(scope="module", params=["asyncpg", "psycopg"])
def api(request: pytest.FixtureRequest, database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = as_role(database, "headroom_app").set(drivername=f"postgresql+{request.param}")
    with holding_api(url, tmp_path_factory.mktemp("api"), DB_POOL_SHRINK_AFTER="2") as api:
        yield api


async def attack(api: str, path: str, clients: int) -> tuple[Answers, Answers, Answers]:
    """Return the clients' answers, and those of /livez and /readyz at the same time."""
    return await asyncio.gather(
        load([f"{api}{path}"], clients=clients, seconds=SECONDS, patient=False, pause=0.1),
        load([f"{api}/livez"], clients=1, seconds=SECONDS, pause=0.1),
        load([f"{api}/readyz"], clients=1, seconds=SECONDS, pause=0.1),
    )


def check_readiness(readyz: Answers) -> None:
    """Check that an overloaded API stays ready. A proxy takes it out after two answers of 503 in a row.

    A slow machine may need longer for a query than /readyz waits.
    """
    assert set(readyz.statuses) <= {200, 503}
    statuses = [status for _, status, _ in readyz.each]
    assert (503, 503) not in pairwise(statuses)


def assert_recovered(api: str) -> None:
    def served() -> bool:
        answers = uvloop.run(load([f"{api}/hold?ms=1"], clients=10, seconds=0.5))
        return set(answers.statuses) == {200}

    eventually(served, within=60)


@pytest.mark.parametrize("clients", [300, 1000])
def test_overload_beyond_the_queue_gets_503_in_time(api: str, clients: int) -> None:
    answers, livez, readyz = uvloop.run(attack(api, "/hold?ms=50", clients))

    assert set(answers.statuses) <= {200, 503}
    assert answers.statuses[200] > 50 * SECONDS, "an overloaded API still serves requests"
    # 3 s for a connection, and 3 s to write a thousand answers on two busy cores.
    assert answers.seconds(200, 503)[-1] < 6 + PAUSE_SECONDS
    assert set(livez.statuses) == {200}
    assert percentile(livez.seconds(200), 0.5) < 1
    assert livez.seconds(200)[-1] < 1 + PAUSE_SECONDS
    check_readiness(readyz)
    assert percentile(readyz.seconds(200), 0.5) < 2
    assert readyz.seconds(200)[-1] < 2 + PAUSE_SECONDS
    assert_recovered(api)


def test_table_lock_stops_neither_livez_nor_readyz(api: str, database: URL) -> None:
    with connect(database) as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {sample.TABLE} IN ACCESS EXCLUSIVE MODE".encode())
        answers, livez, readyz = uvloop.run(attack(api, "/names", 300))

    assert set(answers.statuses) == {503}
    # Up to 3 s for a connection, then 2 s for the lock.
    assert answers.seconds(503)[-1] < 6.5 + PAUSE_SECONDS
    assert percentile(livez.seconds(200), 0.5) < 1
    assert livez.seconds(200)[-1] < 1 + PAUSE_SECONDS
    assert set(livez.statuses) == {200}
    check_readiness(readyz)
    assert_recovered(api)


# The refusal does not depend on the driver.
@pytest.mark.parametrize("api", ["asyncpg"], indirect=True)
def test_refusal_has_retry_after_and_its_own_problem_type(api: str) -> None:
    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=600)) as client:
            return await asyncio.gather(*(client.get(f"{api}/hold?ms=500") for _ in range(600)))

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code == 503]

    assert refused
    assert {answer.json()["type"] for answer in refused} == {"/problems/pool-exhausted"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def test_thousand_disconnecting_clients_leave_no_connection(api: str, database: URL) -> None:
    """Clients disconnect while they send, while they wait for a connection, and while the statement runs."""

    async def disconnect(number: int) -> None:
        address = httpx.URL(api)
        _, writer = await asyncio.open_connection(address.host, address.port)
        request = b"GET /hold?ms=100 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(request if number % 10 else request[: number % len(request)])
        await asyncio.sleep((number % 20) / 100)
        writer.transport.abort()

    async def storm() -> None:
        for batch in range(10):
            await asyncio.gather(*(disconnect(batch * 100 + number) for number in range(100)))

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
        eventually(lambda: opened("state <> 'idle'") == 0, within=60)
        assert_recovered(api)
        eventually(lambda: opened() <= 4 * 5, within=60)
