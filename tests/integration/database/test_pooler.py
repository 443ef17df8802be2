"""More clients than server connections: what a pooler is for."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, func, select

from app.database import Database, PoolOptions, make_engine
from app.domains.users.models import User
from app.errors import PoolExhausted
from tests.support.postgres import PgBouncer, Server, run_pgbouncer

PID = select(func.pg_backend_pid().label("pid"))
SLEEP = select(func.pg_sleep(1).label("slept"))
COUNT = select(func.count().label("users")).select_from(User)


@pytest.fixture(scope="module")
def narrow(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """A PgBouncer with two server connections, for which a client waits half a second."""
    limits = {"default_pool_size": 2, "reserve_pool_size": 0, "query_wait_timeout": 1}
    with run_pgbouncer(postgres, tmp_path_factory.mktemp("narrow"), **limits) as narrow:
        yield narrow


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(narrow: PgBouncer, database_url: URL) -> URL:
    return narrow.url(database_url)


async def test_six_clients_work_on_two_server_connections(url: URL) -> None:
    engine = make_engine(url=url, application_name="headroom:narrow", pool=PoolOptions(size=6, max_overflow=0))
    database = Database(engine)

    async def client(number: int) -> set[int]:
        pids = set()
        for turn in range(20):
            async with database.write() as session:
                session.add(User(email=f"{number}.{turn}@example.com", name="n", password_hash=""))
            row = await database.read.first(PID)
            assert row is not None
            pids.add(row["pid"])
        return pids

    pids = set().union(*await asyncio.gather(*(client(number) for number in range(6))))
    row = await database.read.first(COUNT)
    await engine.dispose()

    assert row is not None
    assert row["users"] == 120
    assert len(pids) <= 2


async def test_whoever_waits_too_long_for_a_server_connection_is_told_to_come_back(url: URL) -> None:
    engine = make_engine(url=url, application_name="headroom:narrow", pool=PoolOptions(size=6, max_overflow=0))
    database = Database(engine)
    ends = await asyncio.gather(*(database.read.first(SLEEP) for _ in range(6)), return_exceptions=True)
    await engine.dispose()

    refused = [end for end in ends if isinstance(end, BaseException)]
    assert refused
    assert {type(end) for end in refused} == {PoolExhausted}
    assert len(refused) < 6, "two at a time are served"
