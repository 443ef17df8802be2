"""Reads on a real standby with streaming replication: what was written is read, and a standby that is lost is left."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from httpx import ASGITransport, AsyncClient
from sqlalchemy import URL, bindparam, event, func, insert, literal, literal_column, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import KeyedSelect, PoolOptions, make_engine
from app.database.comments import comment_statements
from app.database.read_after import UNKNOWN_POSITION, ReadAfter, read_after
from app.database.standby import ReplicatedDatabase, Route
from app.development.warnings import warn_of_mistakes
from app.errors import DatabaseUnavailable, HeadroomError
from app.main import create_app
from app.paths import PROJECT_ROOT
from app.settings import Settings
from tests.integration.conftest import SECRET_KEY
from tests.integration.database.helpers import wait_until
from tests.support import sample
from tests.support.postgres import ROLES
from tests.support.replication import ReplicaServer, ReplicatedPair
from tests.support.waiting import eventually, eventually_async


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


INSERT = insert(Entry).values(id=bindparam("id")).returning(Entry.id)
# Takes the ordinary path: a list as a parameter changes the text.
INSERT_BY_LIST = (
    insert(Entry)
    .from_select(
        ["id"], select(bindparam("id", type_=Entry.id.type)).where(literal(1).in_(bindparam("list", expanding=True)))
    )
    .returning(Entry.id)
)
BY_ID = KeyedSelect(select(Entry.id), Entry.id)
PORT = select(func.current_setting("port").label("port"))
MAX_LAG = 30.0
ids = count(1)


@pytest.fixture(scope="module")
def replicated(new_directory: Callable[[], Path]) -> Iterator[ReplicatedPair]:
    """Run the two servers. A commit does not wait for the standby."""
    with ReplicatedPair.running(new_directory()) as pair:
        pair.primary.execute("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        pair.primary.execute("CREATE TABLE entry (id bigint PRIMARY KEY)")
        yield pair


@pytest.fixture
def pair(replicated: ReplicatedPair) -> Iterator[ReplicatedPair]:
    """Return the servers. After the test, the standby replays again."""
    yield replicated
    replicated.standby.execute("SELECT pg_wal_replay_resume()")


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Routed(ReplicatedDatabase):
    """A database that remembers where its reads went."""

    def __init__(self, pair: ReplicatedPair, driver: str, urls: tuple[URL, URL] | None = None, **options: Any) -> None:
        # No deadline of the pool is the subject here.
        patient: dict[str, Any] = {"timeout": 30.0, "queue_target": 30.0, "max_waiters": 1000}
        pool = PoolOptions(size=4, max_overflow=0, statement_deadline=options.pop("deadline", None), **patient)
        self.routes: list[Route] = []
        url, standby = (
            each.set(drivername=f"postgresql+{driver}") for each in urls or (pair.primary.url, pair.standby.url)
        )
        super().__init__(
            make_engine(url=url, application_name="headroom:test", pool=pool),
            url=standby,
            application_name="headroom:test",
            pool=pool,
            routed=self.routes.append,
            **{"max_lag": MAX_LAG} | options,
        )

    async def poll(self) -> None:
        """Query the positions of both servers, as the watch does."""
        await self.standby._poll_primary()
        await self.standby._poll_standby()

    async def poll_until(self, expected: Route) -> None:
        """Poll until reads without a position have this route."""

        async def has_route() -> bool:
            await self.poll()
            return self.standby.route() == expected

        with client():
            await eventually_async(has_route, within=60)

    async def close(self) -> None:
        await self.engine.dispose()
        await self.standby.engine.dispose()


class client:  # noqa: N801 - a context manager
    """Begin a request of another client, which has written nothing."""

    def __enter__(self) -> ReadAfter:
        self._outer = read_after.set(current := ReadAfter())
        return current

    def __exit__(self, *_: object) -> None:
        read_after.reset(self._outer)


@pytest.fixture
async def database(pair: ReplicatedPair, database_setup: str) -> AsyncIterator[Routed]:
    database = Routed(pair, database_setup)
    await database.poll_until("standby")
    yield database
    await database.close()


async def port_of(database: Routed) -> int:
    row = await database.read.first(PORT)
    assert row is not None
    return int(row["port"])


async def write(database: Routed, kind: str) -> int:
    identity = next(ids)
    if kind == "transaction":
        async with database.write() as session:
            session.add(Entry(id=identity))
    elif kind == "statement":
        await database.statement.returned(INSERT, id=identity)
    else:
        await database.statement.returned(INSERT_BY_LIST, id=identity, list=[1])
    return identity


@pytest.mark.parametrize("kind", ["transaction", "statement", "ordinary statement"])
async def test_writer_reads_its_write_while_the_standby_does_not_replay(
    pair: ReplicatedPair, database: Routed, kind: str
) -> None:
    pair.standby.execute("SELECT pg_wal_replay_pause()")
    identity = await write(database, kind)
    await database.poll()

    assert await database.read.one(BY_ID, identity) is not None
    with client():
        assert await database.read.one(BY_ID, identity) is None
    assert database.routes == ["behind", "standby"]

    pair.standby.execute("SELECT pg_wal_replay_resume()")

    async def reads_on_the_standby() -> bool:
        await database.poll()
        assert await database.read.one(BY_ID, identity) is not None
        return database.routes[-1] == "standby"

    assert await eventually_async(reads_on_the_standby, within=60)
    assert await port_of(database) == pair.standby.port


@pytest.mark.parametrize("database_setup", ["psycopg"])
async def test_unknown_position_leaves_the_next_transaction_whole(
    database: Routed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some services have no positions. The connection must not stay in autocommit mode, which has no rollback."""
    monkeypatch.setattr("app.database.read_after._COMMITTED", "SELECT 1 / 0")
    committed, rolled_back = next(ids), next(ids)

    async with database.engine.connect() as connection:
        await connection.execute(insert(Entry).values(id=committed))
        await connection.commit()
        await connection.execute(insert(Entry).values(id=rolled_back))
        await connection.rollback()

    assert await database.primary_read.one(BY_ID, committed) is not None
    assert await database.primary_read.one(BY_ID, rolled_back) is None


@pytest.mark.parametrize("kind", ["transaction", "statement", "ordinary statement"])
async def test_position_without_an_answer_ends_no_write_late(
    pair: ReplicatedPair, database_setup: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The write is committed. Its client learns that, and its position is unknown."""
    database = Routed(pair, database_setup, deadline=2.0)
    await database.poll_until("standby")
    monkeypatch.setattr("app.database.read_after._COMMITTED", "SELECT 7, 7 FROM pg_sleep(60)")

    with client() as state:
        async with asyncio.timeout(30):
            await write(database, kind)

    assert state.written == UNKNOWN_POSITION
    await database.close()


async def test_shared_statements_answer_no_writer_too_early(pair: ReplicatedPair, database: Routed) -> None:
    """Writers and others read the same keys at the same time, in statements that answer several reads."""
    pair.standby.execute("SELECT pg_wal_replay_pause()")
    written: asyncio.Queue[int] = asyncio.Queue()

    async def write_and_read() -> bool:
        with client():
            for _ in range(5):
                identity = await write(database, "statement")
                written.put_nowait(identity)
                if await database.read.one(BY_ID, identity) is None:
                    return False
        return True

    async def find_as_another() -> bool:
        with client():
            return any([await database.read.one(BY_ID, await written.get()) for _ in range(5)])

    own = [asyncio.create_task(write_and_read()) for _ in range(30)]
    others = [asyncio.create_task(find_as_another()) for _ in range(30)]

    assert all(await asyncio.gather(*own))
    assert not any(await asyncio.gather(*others))  # the standby has none of them
    assert (database.routes.count("behind"), database.routes.count("standby")) == (150, 150)


@pytest.mark.parametrize("database_setup", ["asyncpg"])
async def test_statements_on_the_standby_have_comments(database: Routed) -> None:
    """Entities take the ordinary path."""
    comment_statements(database, lambda: "/entries", 10)
    sent: list[str] = []
    event.listen(
        database.standby.engine.sync_engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: sent.append(statement),
    )

    await database.read.entities(select(Entry).limit(1))

    assert [text for text in sent if text.endswith(" /*lane='normal',route='%2Fentries'*/")] == sent != []


@pytest.mark.parametrize("database_setup", ["asyncpg"])
async def test_development_server_watches_reads_on_the_standby(
    database: Routed, caplog: pytest.LogCaptureFixture
) -> None:
    """Entities take the ordinary path, which the events of the engine report."""
    caplog.set_level("INFO", "headroom.dev")
    warn_of_mistakes(database, log_sql=True)

    await database.read.entities(select(Entry).limit(1))
    async with database.standby.engine.connect():
        await asyncio.sleep(0.001)

    messages = [record.getMessage() for record in caplog.records]
    assert sum("FROM entry" in each for each in messages) == 1
    assert sum("holds a connection while it waits" in each for each in messages) == 1


async def test_standby_beyond_its_greatest_lag_gets_no_reads(pair: ReplicatedPair, database_setup: str) -> None:
    database = Routed(pair, database_setup, max_lag=1.0)
    await database.poll_until("standby")
    pair.standby.execute("SELECT pg_wal_replay_pause()")
    with client():
        await write(database, "statement")
    await database.poll_until("lagging")

    with client():
        assert await port_of(database) == pair.primary.port
    pair.standby.execute("SELECT pg_wal_replay_resume()")
    await database.poll_until("standby")
    await database.close()


async def test_table_that_is_not_replayed_is_read_on_the_primary(pair: ReplicatedPair, database: Routed) -> None:
    """As after a migration and a deploy."""
    pair.standby.execute("SELECT pg_wal_replay_pause()")
    name = f"new_{next(ids)}"
    pair.primary.execute(f"CREATE TABLE {name} AS SELECT 7 AS number")

    [row] = await database.read.all(select(literal_column("number").label("number")).select_from(text(name)))

    assert row["number"] == 7
    assert database.routes == ["unavailable"]
    assert database.standby.route() == "standby"


def start_again(server: ReplicaServer) -> None:
    """Start a server that was killed, as soon as its other processes have exited."""

    def has_started() -> bool:
        with suppress(subprocess.CalledProcessError):
            server.start()
            return True
        return False

    eventually(has_started, within=60)


async def test_loss_of_the_standby_under_load_fails_no_read(pair: ReplicatedPair, database: Routed) -> None:
    """It is killed and starts again while clients read and write."""
    watching = asyncio.create_task(database.standby.watch())
    stopped = False
    done: list[bool] = []

    async def run() -> None:
        while not stopped:
            with client():
                identity = await write(database, "statement")
                assert await database.read.one(BY_ID, identity) is not None
                await database.read.all(select(Entry.id).limit(1))
            with client():
                await port_of(database)
            done.append(True)

    def after(number: int, route: Route) -> Callable[[], bool]:
        end, seen = len(done) + number, len(database.routes)
        return lambda: len(done) >= end and route in database.routes[seen:]

    clients = [asyncio.create_task(run()) for _ in range(8)]
    try:
        await wait_until(after(100, "standby"), *clients, watching)
        pair.standby.kill()
        await wait_until(after(200, "unavailable"), *clients, watching)
        await asyncio.to_thread(start_again, pair.standby)
        await wait_until(after(100, "standby"), *clients, watching)
    finally:
        stopped = True
        await asyncio.gather(*clients)
        watching.cancel()


@pytest.mark.parametrize("database_setup", ["psycopg"])
async def test_standby_that_does_not_answer_gets_no_more_reads(pair: ReplicatedPair, database_setup: str) -> None:
    """Its processes are stopped: connections stay open, and nothing answers."""
    database = Routed(pair, database_setup, deadline=6.0)
    await database.poll_until("standby")
    ours = "SELECT pid FROM pg_stat_activity WHERE application_name = 'headroom:test'"
    processes = [pid for (pid,) in pair.standby.execute(ours)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        with client():
            assert await port_of(database) == pair.primary.port
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
    await database.poll_until("standby")
    await database.close()


@pytest.fixture
def migrated_pair(pair: ReplicatedPair) -> ReplicatedPair:
    """Return the servers with the roles and tables of production, also on the standby."""
    pair.primary.execute(ROLES.decode())
    with pytest.MonkeyPatch.context() as environment:
        owner = pair.primary.url.set(username="headroom_owner")
        environment.setenv("MIGRATION_DATABASE_URL", owner.render_as_string())
        command.upgrade(Config(toml_file=PROJECT_ROOT / "pyproject.toml"), "head")
    [(everything,)] = pair.primary.execute("SELECT pg_current_wal_flush_lsn()::text")
    eventually(lambda: pair.standby.execute(f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{everything}'"), within=60)
    return pair


async def test_api_reads_what_its_client_has_written(migrated_pair: ReplicatedPair) -> None:
    """By header or by cookie. A client that sends neither may read an older state."""
    pair = migrated_pair
    app = create_app(
        Settings(
            database_url=pair.primary.url.set(username="headroom_app"),
            database_read_url=pair.standby.url.set(username="headroom_app"),
            secret_key=SECRET_KEY,
            db_read_max_lag=60,
            cors_allow_origins=("https://app.example.com",),
        )
    )

    def new_client() -> AsyncClient:
        return AsyncClient(transport=ASGITransport(app), base_url="http://test")

    async with app.router.lifespan_context(app), new_client() as browser, new_client() as other:
        standby = app.state.database.standby
        await wait_until(lambda: standby.route() == "standby")
        pair.standby.execute("SELECT pg_wal_replay_pause()")
        account = sample.new("ann")

        created = await browser.post(sample.PATH, json=account)
        location = created.headers["Location"]
        assert created.status_code == 201

        assert (await browser.get(location)).status_code == 200
        token = {"Read-After": created.headers["Read-After"]}
        assert (await other.get(location, headers=token)).status_code == 200
        assert (await other.get(location)).status_code == 404

        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "Read-After"}
        allowed = await other.options(location, headers=asked | {"Origin": "https://app.example.com"})
        assert allowed.status_code == 200

        # Access is decided on the primary.
        form = {"username": account["email"], "password": account["password"]}
        signed_in = {"Authorization": f"Bearer {(await other.post('/auth/token', data=form)).json()['access_token']}"}
        other.cookies.clear()
        assert (await other.get("/users/me", headers=signed_in)).status_code == 200


@pytest.mark.parametrize("database_setup", ["asyncpg"])
async def test_standby_serves_reads_without_its_primary_until_it_is_promoted(
    new_directory: Callable[[], Path], database_setup: str
) -> None:
    with ReplicatedPair.running(new_directory()) as pair:
        database = Routed(pair, database_setup)
        await database.poll_until("standby")
        pair.primary.kill()
        await database.poll_until("standby")

        assert await port_of(database) == pair.standby.port
        await asyncio.to_thread(pair.standby.promote)
        await database.poll_until("unavailable")
        with pytest.raises(DatabaseUnavailable):  # of the primary
            await port_of(database)
        await database.close()


@pytest.mark.parametrize("database_setup", ["asyncpg"])
async def test_reads_return_to_the_other_standby_when_one_is_promoted(
    new_directory: Callable[[], Path], database_setup: str
) -> None:
    """The primary dies, one standby is promoted, and the other one follows it."""
    with ReplicatedPair.running(new_directory()) as pair, pair.another_standby() as other:
        pair.primary.execute("CREATE TABLE entry (id bigint PRIMARY KEY)")
        current = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_flush_lsn()"
        eventually(lambda: pair.primary.execute(current) == [(2,)], within=60)
        database = Routed(pair, database_setup, urls=(pair.url(database_setup), other.url))
        await database.poll_until("standby")

        pair.primary.kill()
        await asyncio.to_thread(pair.standby.promote)
        source = f"host=127.0.0.1 port={pair.standby.port} user=postgres"
        other.execute(f"ALTER SYSTEM SET primary_conninfo = '{source}'", "SELECT pg_reload_conf()")

        async def written() -> int:
            with suppress(HeadroomError):
                return await write(database, "statement")
            return 0

        identity = await eventually_async(written, within=60)
        assert await database.read.one(BY_ID, identity) is not None
        assert database.routes[-1] != "standby", "it is on the old timeline"

        async def reads_on_the_other() -> bool:
            # A restartpoint, which writes the new timeline into the control file.
            for server in (pair.standby, other):
                await asyncio.to_thread(server.execute, "CHECKPOINT")
            await database.poll()
            assert await database.read.one(BY_ID, identity) is not None
            return database.routes[-1] == "standby"

        await eventually_async(reads_on_the_other, within=60)
        assert await port_of(database) == other.port
        await database.close()
