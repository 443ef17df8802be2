"""AdminConnection on a real PostgreSQL server, and on PgBouncer's console."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from sqlalchemy import URL

from app.database import admin_connection
from app.database.admin_connection import AdminConnection, wait_until_available
from app.errors import DatabaseUnavailable
from tests.integration.database.helpers import wait_until
from tests.support.postgres import PgBouncer, Server, as_role, connect
from tests.support.proxy import Proxy

APPLICATION_NAME = "headroom:admin-test"
ONE = "SELECT 1 AS one"
PID = "SELECT pg_backend_pid() AS pid"


@pytest.fixture
def database_setup() -> str:
    """Return one setup: AdminConnection uses psycopg whatever the URL's driver."""
    return "asyncpg"


@pytest.fixture
async def connection(database_url: URL) -> AsyncIterator[AdminConnection]:
    async with AdminConnection(database_url, application_name=APPLICATION_NAME) as connection:
        yield connection


def open_connections(database_url: URL) -> int:
    with connect(database_url) as superuser:
        row = superuser.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
            (APPLICATION_NAME,),
        ).fetchone()
        assert row is not None
        return int(row[0])


async def test_query_returns_rows_by_column_name(connection: AdminConnection) -> None:
    rows = await connection.query("SELECT number, number % 2 = 0 AS even FROM generate_series(1, 2) AS number")

    assert rows == [{"number": 1, "even": False}, {"number": 2, "even": True}]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_query_works_with_the_url_of_either_driver(database_url: URL, driver: str) -> None:
    url = database_url.set(drivername=f"postgresql+{driver}")
    async with AdminConnection(url, application_name=APPLICATION_NAME) as connection:
        assert await connection.query(ONE) == [{"one": 1}]


async def test_own_name_and_time_limit_override_those_of_the_url(database_url: URL) -> None:
    url = database_url.update_query_dict({"application_name": "theirs", "connect_timeout": "60"})
    async with AdminConnection(url, application_name=APPLICATION_NAME) as connection:
        assert await connection.query("SELECT current_setting('application_name') AS name") == [
            {"name": APPLICATION_NAME}
        ]


async def test_query_works_on_the_console_of_pgbouncer(postgres: Server, pgbouncer: PgBouncer) -> None:
    """The console speaks the simple query protocol only."""
    url = as_role(pgbouncer.url(postgres.superuser), "headroom_monitor").set(database="pgbouncer")
    async with AdminConnection(url, application_name=APPLICATION_NAME) as console:
        settings = {row["key"]: row["value"] for row in await console.query("SHOW CONFIG")}

    assert int(settings["default_pool_size"]) > 0


async def test_concurrent_queries_share_one_connection(connection: AdminConnection, database_url: URL) -> None:
    assert open_connections(database_url) == 0, "the first query opens it"
    results = await asyncio.gather(*(connection.query(PID) for _ in range(5)))

    assert len({row["pid"] for [row] in results}) == 1
    assert open_connections(database_url) == 1


async def test_closed_connection_is_opened_again_by_the_next_query(
    connection: AdminConnection, database_url: URL
) -> None:
    await connection.query(ONE)
    await connection.close()
    await wait_until(lambda: open_connections(database_url) == 0)

    assert await connection.query(ONE) == [{"one": 1}]
    await connection.close()
    await connection.close()


async def test_connection_closed_by_the_server_is_opened_again(connection: AdminConnection, database_url: URL) -> None:
    [row] = await connection.query(PID)
    with connect(database_url) as superuser:
        superuser.execute("SELECT pg_terminate_backend(%s, 30000)", (row["pid"],))

    assert await connection.query(ONE) == [{"one": 1}]


async def test_statement_whose_connection_is_lost_is_not_sent_again(proxy: Proxy) -> None:
    async with AdminConnection(proxy.url, application_name=APPLICATION_NAME) as connection:
        await connection.query(ONE)
        executed = proxy.executed
        running = asyncio.create_task(connection.query("SELECT pg_sleep(1.5)"))
        await wait_until(lambda: proxy.executed > executed, running)
        await proxy.cut()

        with pytest.raises(DatabaseUnavailable):
            await running
        assert proxy.executed == executed + 1
        assert await connection.query(ONE) == [{"one": 1}]


async def test_refused_statement_is_database_unavailable_and_keeps_connection(connection: AdminConnection) -> None:
    [before] = await connection.query(PID)
    with pytest.raises(DatabaseUnavailable) as caught:
        await connection.query("SELECT FROM no_such_table")

    assert str(caught.value) == 'relation "no_such_table" does not exist'
    assert await connection.query(PID) == [before]


@pytest.mark.parametrize("fault", ["no such role", "nothing listens"])
async def test_refused_connect_is_database_unavailable(database_url: URL, fault: str) -> None:
    if fault == "no such role":
        url = database_url.set(username="no_such_role")
    else:
        url = URL.create(database_url.drivername, host="127.0.0.1", port=1, database="none")
    async with AdminConnection(url, application_name=APPLICATION_NAME) as connection:
        with pytest.raises(DatabaseUnavailable, match=r"^cannot connect: .+") as caught:
            await connection.query(ONE)

    assert len(str(caught.value).splitlines()) == 1


async def test_connect_to_hanging_server_fails_at_its_deadline(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_connection, "CONNECT_SECONDS", 2)  # libpq's minimum
    proxy.pause()
    async with AdminConnection(proxy.url, application_name=APPLICATION_NAME) as connection:
        started = monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"^cannot connect: "):
            await connection.query(ONE)
        assert monotonic() - started < 20

        proxy.resume()
        assert await connection.query(ONE) == [{"one": 1}]


async def test_query_of_hanging_server_fails_at_its_deadline(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancellation would not do: psycopg then sends a cancel request to the hanging server, and waits for it."""
    async with AdminConnection(proxy.url, application_name=APPLICATION_NAME) as connection:
        await connection.query(ONE)
        proxy.pause()

        monkeypatch.setattr(admin_connection, "QUERY_SECONDS", 0.2)
        started = monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.2 s"):
            await connection.query(ONE)
        assert monotonic() - started < 20
        assert proxy.opened == 1, "a query that failed at its deadline is not repeated"

        monkeypatch.undo()
        proxy.resume()
        assert await connection.query(ONE) == [{"one": 1}]


async def test_wait_until_available_repeats_a_failed_attempt(proxy: Proxy) -> None:
    proxy.pause()
    waiting = asyncio.create_task(
        wait_until_available(proxy.url, deadline=monotonic() + 60, application_name=APPLICATION_NAME),
    )
    await wait_until(lambda: proxy.bytes > 0, waiting)
    proxy.resume()
    await proxy.cut()

    await waiting
    assert proxy.opened == 2


async def test_wait_until_available_raises_the_last_reason(proxy: Proxy) -> None:
    await proxy.close()

    with pytest.raises(DatabaseUnavailable, match=r"^cannot connect: "):
        await wait_until_available(proxy.url, deadline=monotonic(), application_name=APPLICATION_NAME)
