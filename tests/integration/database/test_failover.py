"""A standby takes the place of the primary while clients write."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from time import monotonic, time

import pytest
from sqlalchemy import URL, bindparam, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, PoolOptions, make_engine
from app.database import pool as pool_module
from app.database.admin_connection import AdminConnection
from app.database.conninfo import parameters
from app.errors import DatabaseUnavailable, TransientDatabaseError
from tests.integration.database.helpers import PID, SLEEP, checked_out, pool_of, wait_until
from tests.support.postgres import connect
from tests.support.proxy import Proxy
from tests.support.replication import ReplicatedPair
from tests.support.waiting import eventually_async

CLIENTS = 6
# The target is 2 s. The rest is room for a machine that is busy with other tests.
SECONDS = 6.0


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


INSERT = insert(Entry).values(id=bindparam("id")).returning(Entry.id)
PORT = select(func.current_setting("port").label("port"))


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(new_directory: Callable[[], Path]) -> Iterator[ReplicatedPair]:
    with ReplicatedPair.running(new_directory()) as pair:
        pair.primary.execute("CREATE TABLE entry (id bigint PRIMARY KEY)")
        yield pair


class Clients:
    """Clients that write without a pause, each row once. `acknowledged` are ids and the times of their answers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids = count(1)
        self._stopped = False
        self.acknowledged: dict[int, float] = {}
        self.errors: list[TransientDatabaseError] = []

    async def __aenter__(self) -> "Clients":
        self.tasks = [asyncio.create_task(self._run(number % 2 == 0)) for number in range(CLIENTS)]
        await self.wait_for_writes(50)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self.tasks)
        await self._database.engine.dispose()

    async def wait_for_writes(self, number: int) -> None:
        """Wait for this number of further acknowledged writes."""
        goal = len(self.acknowledged) + number
        await wait_until(lambda: len(self.acknowledged) >= goal, *self.tasks)

    def first_after(self, moment: float) -> float:
        """Return the seconds from the moment until the first write was acknowledged."""
        return min(time for time in self.acknowledged.values() if time > moment) - moment

    async def _run(self, with_entities: bool) -> None:
        while not self._stopped:
            identity = next(self._ids)
            try:
                if with_entities:
                    async with self._database.write() as session:
                        session.add(Entry(id=identity))
                else:
                    await self._database.statement.returned(INSERT, id=identity)
            except TransientDatabaseError as error:  # any other error fails the test
                self.errors.append(error)
                await asyncio.sleep(0.01)
            else:
                self.acknowledged[identity] = monotonic()


def database_of(url: URL) -> Database:
    pool = PoolOptions(size=4, max_overflow=0)
    return Database(make_engine(url=url, application_name="headroom:test", pool=pool))


async def test_writes_succeed_after_the_standby_was_promoted(pair: ReplicatedPair, database_setup: str) -> None:
    url = pair.url(database_setup)
    async with (
        AdminConnection(url, application_name="headroom:test") as exporter,
        Clients(database_of(url)) as clients,
    ):
        await exporter.query("SELECT 1 AS one")
        pair.primary.kill()
        await wait_until(lambda: len(clients.errors) >= CLIENTS, *clients.tasks)
        await asyncio.to_thread(pair.standby.promote)
        promoted = monotonic()
        await clients.wait_for_writes(50)

        assert clients.first_after(promoted) < SECONDS
        [row] = await exporter.query("SELECT current_setting('port')::int AS port")
        assert row["port"] == pair.standby.port

    stored = {row[0] for row in pair.standby.execute("SELECT id FROM entry")}
    assert clients.acknowledged.keys() <= stored


async def test_writes_reach_the_new_primary_when_the_old_one_turns_read_only(
    pair: ReplicatedPair, database_setup: str
) -> None:
    """As behind a name or a virtual address that is moved. A ping of the old connections succeeds all the time."""
    async with Proxy(pair.primary.url.set(drivername=f"postgresql+{database_setup}")) as proxy:
        database = database_of(proxy.url)
        async with Clients(database) as clients:
            pair.primary.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
            await wait_until(lambda: len(clients.errors) >= CLIENTS, *clients.tasks)
            await asyncio.to_thread(pair.standby.promote)
            proxy.redirect(pair.standby.url)
            moved = monotonic()
            await clients.wait_for_writes(50)

            assert clients.first_after(moved) < SECONDS
            assert {type(error) for error in clients.errors} == {DatabaseUnavailable}
            rows = await asyncio.gather(*(database.read.first(PORT) for _ in range(4)))
            assert {row and row["port"] for row in rows} == {str(pair.standby.port)}

    stored = {row[0] for row in pair.standby.execute("SELECT id FROM entry")}
    assert clients.acknowledged.keys() <= stored


@pytest.mark.parametrize("database_setup", ["psycopg"])
async def test_exporter_leaves_a_server_that_turned_read_only(pair: ReplicatedPair, database_setup: str) -> None:
    async with AdminConnection(pair.url(database_setup), application_name="headroom:test") as exporter:

        async def has_moved() -> bool:
            [row] = await exporter.query("SELECT current_setting('port')::int AS port")
            return bool(row["port"] == pair.standby.port)

        assert not await has_moved()
        await asyncio.to_thread(pair.standby.promote)
        pair.primary.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

        assert await eventually_async(has_moved, within=60)


async def test_server_that_vanished_costs_only_its_share_of_the_deadline(
    proxy: Proxy, database_url: URL, database_setup: str
) -> None:
    """The first host accepts connections and never answers. The drivers' own timeouts are longer than the checkout."""
    proxy.pause()
    addresses = [parameters(proxy.url), parameters(database_url)]
    url = database_url.set(host=None, port=None).update_query_dict(
        {name: ",".join(str(address.get(name) or 5432) for address in addresses) for name in ("host", "port")}
    )
    engine = make_engine(url=url, application_name="headroom:test", pool=PoolOptions(timeout=8), connect_timeout=60)
    database = Database(engine)

    assert await database.read.first(PORT) is not None
    assert proxy.opened == 1
    async with checked_out(database):  # the second connection begins with the server that answered
        assert await database.read.first(PORT) is not None
    assert proxy.opened == 1
    proxy.resume()
    await engine.dispose()


async def test_connect_without_a_writable_server_names_the_reason_of_each(
    proxy: Proxy, database_url: URL, database_setup: str
) -> None:
    """One that listens no more, and one that is read-only."""
    await proxy.close()
    with connect(database_url) as admin:
        admin.execute(f"ALTER DATABASE {database_url.database} SET default_transaction_read_only = on".encode())
    addresses = [parameters(proxy.url), parameters(database_url)]
    url = database_url.set(host=None, port=None).update_query_dict(
        {name: ",".join(str(address.get(name) or 5432) for address in addresses) for name in ("host", "port")}
        | {"target_session_attrs": "read-write"}
    )
    database = Database(make_engine(url=url, application_name="headroom:test"))

    with pytest.raises(DatabaseUnavailable, match=r"^cannot connect: 127\.0\.0\.1: .+; .+: ") as caught:
        await database.read.first(PORT)
    assert len(str(caught.value).splitlines()) == 1


async def backend(database: Database) -> int:
    row = await database.read.first(PID)
    assert row is not None
    return int(row["pid"])


@pytest.mark.parametrize("session", ["read", "write"])
async def test_connection_that_the_server_terminates_has_the_others_replaced(
    database: Database, database_url: URL, session: str
) -> None:
    """57P01: the server shuts down, and the idle connections would be the next ones to fail."""
    async with checked_out(database):
        other = await backend(database)

    async def sleep() -> None:
        if session == "read":
            await database.read.first(SLEEP, seconds=30)
        else:
            async with database.write() as write:
                await write.execute(SLEEP, {"seconds": 30})

    # The other connection is the warmer one: the sleeper takes it, and the first one stays idle.
    sleeping = asyncio.create_task(sleep())
    with connect(database_url) as admin:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'headroom_app'"

        def active() -> list[tuple[int]]:
            return admin.execute(query.encode() + b" AND wait_event = 'PgSleep'").fetchall()

        await wait_until(active, sleeping)
        before = {pid for (pid,) in admin.execute(query).fetchall()}
        admin.execute("SELECT pg_terminate_backend(%s, 30000)", active()[0])
    with pytest.raises(DatabaseUnavailable):
        await sleeping

    assert other in before
    async with checked_out(database):
        assert await backend(database) not in before
    assert await backend(database) not in before


async def test_distrust_before_the_clock_was_set_back_replaces_each_connection_once(database: Database) -> None:
    """SQLAlchemy compares the time of the distrust with that of the opening, on the wall clock."""
    before = await backend(database)
    pool_of(database)._invalidate_time = time() + 3600

    after = {await backend(database) for _ in range(5)}

    assert len(after) == 1
    assert before not in after


async def test_second_distrust_within_a_second_replaces_one_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stays read-only must not make every failed write reconnect the whole pool."""
    monkeypatch.setattr(pool_module, "DISTRUST_SECONDS", 1000.0)

    async def two_backends(*, distrust_first: bool) -> list[int]:
        async with database.engine.connect() as first:
            pid = (await first.execute(PID)).scalar_one()
            async with database.engine.connect() as second:
                other = (await second.execute(PID)).scalar_one()
            if distrust_first:
                record = (await first.get_raw_connection())._connection_record
                pool_of(database).distrust(record)
        return [pid, other]

    before = set(await two_backends(distrust_first=True))
    between = set(await two_backends(distrust_first=True))
    after = set(await two_backends(distrust_first=False))

    assert not before & between
    assert len(between & after) == 1
