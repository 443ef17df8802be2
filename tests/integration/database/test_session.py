"""The roads on a real PostgreSQL, with both drivers."""

import asyncio
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import URL, Float, Integer, Select, bindparam, func, insert, literal, select, update

from app.database import Database, make_engine, warm_up
from app.database.checkout import check_out
from app.database.error_mapping import violations
from app.database.pool import pool_state
from app.domains.posts.models import Post
from app.domains.users.errors import EmailTaken, UserNotFound
from app.domains.users.models import User
from app.errors import DatabaseUnavailable, InvalidInput, StatementTimeout
from tests.support.postgres import connect
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

NOW = select(func.now().label("now"), func.pg_backend_pid().label("pid"))
NAMES = select(User.id, User.name).order_by(User.id)
SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"))


async def run(database: Database, road: str, statement: Select[Any], **parameters: object) -> Any:
    """The statement's first row, by one road or the other."""
    if road == "read":
        return await database.read.first(statement, **parameters)
    async with database.write() as session:
        return (await session.execute(statement, parameters)).mappings().first()


def terminate(database: Database, pid: int) -> None:
    """Kill a backend and wait until it is gone."""
    with connect(database.engine.url) as beside:
        beside.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


async def sleeping_backend(database: Database) -> int:
    """The pid of the one that executes SLEEP."""

    async def look() -> int | None:
        with connect(database.engine.url) as beside:
            row = beside.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'PgSleep' AND state = 'active'"
            ).fetchone()
            return row[0] if row else None

    return await eventually_async(look, within=5) or 0


def used(database: Database) -> int:
    state = pool_state(database.engine)
    assert state is not None
    return state.used


def someone(email: str = "ann@example.com") -> User:
    return User(email=email, name="Ann", password_hash="x")


async def test_a_written_row_is_committed_when_the_block_ends(database: Database) -> None:
    async with database.write() as session:
        session.add(someone())

    assert [row["name"] for row in await database.read.all(NAMES)] == ["Ann"]


ADD_USER = (
    insert(User)
    .values({name: bindparam(name) for name in ("email", "name", "password_hash")})
    .returning(User.id, User.created_at)
)


async def test_a_write_of_one_statement_is_committed_when_it_returns(database: Database, database_url: URL) -> None:
    row = await database.statement.returned(ADD_USER, email="ann@example.com", name="Ann", password_hash="x")

    assert row is not None
    with connect(database_url) as beside:
        assert beside.execute("SELECT id, created_at FROM users").fetchall() == [(row["id"], row["created_at"])]
    assert used(database) == 0


async def test_a_constraint_that_a_write_of_one_statement_violates_means_what_the_code_says(
    database: Database, database_url: URL
) -> None:
    ann = {"email": "ann@example.com", "name": "Ann", "password_hash": "x"}
    await database.statement.returned(ADD_USER, **ann)

    with pytest.raises(EmailTaken), violations({"uq_users_email": EmailTaken()}):
        await database.statement.returned(ADD_USER, **ann)

    assert used(database) == 0
    with connect(database_url) as beside:
        assert beside.execute("SELECT count(*) FROM users").fetchone() == (1,)


async def test_a_constraint_that_is_checked_at_the_commit_is_no_less_violated(
    database: Database, database_url: URL
) -> None:
    with connect(database_url) as beside:
        beside.execute(
            "ALTER TABLE posts DROP CONSTRAINT fk_posts_author_id_users, ADD CONSTRAINT deferred"
            " FOREIGN KEY (author_id) REFERENCES users DEFERRABLE INITIALLY DEFERRED"
        )

    with pytest.raises(UserNotFound), violations({"deferred": UserNotFound(999)}):
        await database.statement.returned(insert(Post).values(author_id=999, title="a", content="b").returning(Post.id))


async def test_values_that_are_made_in_python_are_made_on_the_road_of_one_statement_too(database: Database) -> None:
    await database.statement.returned(ADD_USER, email="ann@example.com", name="Ann", password_hash="x")
    renamed = update(User).values(name=bindparam("new_name")).returning(User.name, User.created_at, User.updated_at)

    row = await database.statement.returned(renamed, new_name="Bob")

    assert row is not None
    assert row["name"] == "Bob"
    assert row["updated_at"] > row["created_at"], "updated_at has an onupdate="


async def test_the_first_connection_is_opened_before_anybody_needs_it(database: Database) -> None:
    await warm_up(database.engine)

    state = pool_state(database.engine)
    assert state is not None
    assert (state.idle, state.used) == (1, 0)


async def test_a_server_that_is_away_or_hangs_keeps_nobody_from_starting(proxy: Proxy) -> None:
    for trouble in (proxy.pause, proxy.close):
        if (waiting := trouble()) is not None:
            await waiting
        engine = make_engine(url=proxy.url, application_name="headroom:test", connect_timeout=0.5)
        started = monotonic()
        await warm_up(engine, seconds=0.5)
        assert monotonic() - started < 5
        await engine.dispose()


async def test_nothing_is_written_when_the_block_raises(database: Database) -> None:
    with pytest.raises(LookupError):
        async with database.write() as session:
            session.add(someone())
            await session.flush()
            raise LookupError

    assert await database.read.all(NAMES) == []


async def test_a_write_session_takes_no_connection_before_its_first_statement(database: Database) -> None:
    async with database.write():
        assert used(database) == 0


async def test_a_read_holds_a_connection_for_its_statement_only(database: Database) -> None:
    await database.read.all(NOW)

    state = pool_state(database.engine)
    assert state is not None
    assert (state.idle, state.used) == (1, 0)


async def test_a_read_is_outside_a_transaction(database: Database) -> None:
    first, second = [(await database.read.all(NOW))[0] for _ in range(2)]

    assert first["pid"] == second["pid"], "the pool hands out the connection it has"
    assert first["now"] < second["now"], "now() stands still within a transaction"


async def test_a_read_can_follow_a_write_on_the_same_connection(database: Database) -> None:
    async with database.write() as session:
        session.add(someone())
    await database.read.all(NAMES)
    async with database.write() as session:
        session.add(someone("bob@example.com"))
        await session.flush()
        assert len(await database.read.all(NAMES)) == 1, "another connection does not see what is not committed"

    assert len(await database.read.all(NAMES)) == 2


async def test_a_list_of_values_takes_the_ordinary_path(database: Database) -> None:
    among = select(literal(1).label("one")).where(literal(2).in_(bindparam("values", expanding=True)))

    assert [row["one"] for row in await database.read.all(among, values=[1, 2, 3])] == [1]
    assert await database.read.all(among, values=[4]) == []


async def test_first_is_none_where_there_is_no_row(database: Database) -> None:
    assert await database.read.first(NAMES) is None


@pytest.mark.parametrize("road", ["read", "write"])
async def test_a_value_that_does_not_fit_is_the_clients_error(database: Database, road: str) -> None:
    too_large = select((bindparam("number", type_=User.id.type) + 1).label("larger"))
    with pytest.raises(InvalidInput):
        await run(database, road, too_large, number=2**63 - 1)


@pytest.mark.parametrize("road", ["read", "write"])
async def test_a_number_beyond_its_type_is_the_clients_error_and_leaves_no_lock(database: Database, road: str) -> None:
    """asyncpg notices by itself, with the statement parsed and the table locked."""
    of_four_bytes = select(User.id).where(bindparam("number", type_=Integer()) == func.length(User.name))
    with pytest.raises(InvalidInput):
        await run(database, road, of_four_bytes, number=2**40)

    async def unlocked() -> bool:
        with connect(database.engine.url) as beside:
            locks = "SELECT FROM pg_locks WHERE relation = 'users'::regclass AND pid <> pg_backend_pid()"
            return not beside.execute(locks).fetchall()

    await eventually_async(unlocked, within=5)
    assert used(database) == 0


@pytest.mark.parametrize("road", ["read", "write"])
async def test_a_statement_that_takes_too_long_is_a_statement_timeout(database: Database, road: str) -> None:
    with connect(database.engine.url) as beside:
        database_name = database.engine.url.database
        beside.execute(f"ALTER ROLE headroom_app IN DATABASE {database_name} SET statement_timeout = '50ms'")

    with pytest.raises(StatementTimeout):
        await run(database, road, SLEEP, seconds=5.0)


@pytest.mark.parametrize("road", ["read", "write"])
async def test_an_idle_connection_that_was_killed_is_replaced_before_anyone_notices(
    database: Database, road: str
) -> None:
    killed = (await run(database, road, NOW))["pid"]
    terminate(database, killed)

    assert (await run(database, road, NOW))["pid"] != killed


async def test_a_connection_killed_in_the_middle_of_a_read_is_database_unavailable(database: Database) -> None:
    reading = asyncio.create_task(database.read.first(SLEEP, seconds=30.0))
    terminate(database, await sleeping_backend(database))

    with pytest.raises(DatabaseUnavailable):
        await reading
    assert used(database) == 0


async def test_a_connection_killed_before_the_commit_is_database_unavailable(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.write() as session:
            session.add(someone())
            await session.flush()
            terminate(database, (await session.execute(NOW)).one().pid)

    assert await database.read.all(NAMES) == []


async def test_a_server_that_cannot_be_reached_is_database_unavailable(database_url: URL) -> None:
    nowhere = URL.create(database_url.drivername, host="127.0.0.1", port=1, database="none")
    database = Database(make_engine(url=nowhere, application_name="headroom:test"))

    for road in ("read", "write"):
        with pytest.raises(DatabaseUnavailable, match="cannot connect"):
            await run(database, road, NOW)


@pytest.mark.parametrize("road", ["read", "write"])
async def test_a_cancelled_statement_leaves_nothing_behind(database: Database, road: str) -> None:
    running = asyncio.create_task(run(database, road, SLEEP, seconds=30.0))
    pid = await sleeping_backend(database)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    async def stopped() -> bool:
        with connect(database.engine.url) as beside:
            query = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            return not beside.execute(query, (pid,)).fetchall()

    await eventually_async(stopped, within=5)
    assert used(database) == 0
    assert await run(database, road, NOW) is not None


async def test_a_read_that_is_thrown_away_gives_its_place_in_the_pool_back(database: Database) -> None:
    await database.read.first(NOW)  # so that a connection is there, and lent
    reading = database.read.first(SLEEP, seconds=30)
    reading.send(None)
    assert used(database) == 1

    reading.close()  # as the garbage collector would

    assert used(database) == 0
    assert await database.read.first(NOW) is not None


async def test_who_gives_back_a_connection_that_was_closed_and_is_cancelled_leaves_its_place_free(
    database: Database,
) -> None:
    await database.read.first(NOW)
    checkout = await check_out(database.engine)
    await checkout.driver_connection.close()

    giving_back = asyncio.create_task(checkout.release())
    await asyncio.sleep(0)
    while not giving_back.done():
        giving_back.cancel()
        await asyncio.sleep(0)

    assert used(database) == 0


@pytest.mark.parametrize("road", ["read", "write"])
async def test_a_statement_that_is_cancelled_again_and_again_gives_its_place_in_the_pool_back(
    database: Database, road: str
) -> None:
    """As an anyio cancel scope does it, and Starlette uses those: what cleans up is cancelled, too."""
    running = asyncio.create_task(run(database, road, SLEEP, seconds=30.0))
    await sleeping_backend(database)
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)

    async def given_back() -> bool:
        return used(database) == 0

    await eventually_async(given_back, within=5)
    assert await run(database, road, NOW) is not None
