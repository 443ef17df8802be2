"""Read, statement and write sessions on a real PostgreSQL server."""

import asyncio
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import URL, Integer, Select, bindparam, func, insert, literal, select, update

from app.database import Database, PoolOptions, make_engine, warm_up
from app.database.checkout import check_out
from app.database.error_mapping import violations
from app.errors import DatabaseUnavailable, InvalidInput, StatementTimeout
from tests.integration.database.helpers import SLEEP, change_options, state, wait_until
from tests.support.contacts import Contact, ContactNotFound, EmailTaken, new_contact
from tests.support.deferred import NOTES, create_notes
from tests.support.postgres import connect
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

NOW = select(func.now().label("now"), func.pg_backend_pid().label("pid"))
NAMES = select(Contact.id, Contact.name).order_by(Contact.id)


async def run(database: Database, session_type: str, statement: Select[Any], **parameters: object) -> Any:
    """Run the statement in a read session or in a write session, and return its first row."""
    if session_type == "read":
        return await database.read.first(statement, **parameters)
    async with database.write() as session:
        return (await session.execute(statement, parameters)).mappings().first()


def terminate(database: Database, pid: int) -> None:
    """Terminate a backend and wait until it has exited."""
    with connect(database.engine.url) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 30000)", (pid,))


async def sleeping_backend(database: Database, sleeping: asyncio.Task[Any]) -> int:
    """Return the pid of the backend that executes SLEEP, as soon as there is one."""

    async def find() -> int | None:
        with connect(database.engine.url) as admin:
            row = admin.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'PgSleep' AND state = 'active'"
            ).fetchone()
            return row[0] if row else None

    return await eventually_async(find, within=60, jobs=[sleeping]) or 0


async def test_write_session_commits_when_its_block_ends(database: Database) -> None:
    async with database.write() as session:
        session.add(new_contact())

    assert [row["name"] for row in await database.read.all(NAMES)] == ["Ann"]


ADD_CONTACT = (
    insert(Contact)
    .values({name: bindparam(name) for name in ("email", "name")})
    .returning(Contact.id, Contact.created_at)
)


async def test_statement_session_commits_before_it_returns(database: Database, database_url: URL) -> None:
    row = await database.statement.returned(ADD_CONTACT, email="ann@example.com", name="Ann")

    assert row is not None
    with connect(database_url) as admin:
        assert admin.execute("SELECT id, created_at FROM test_contacts").fetchall() == [(row["id"], row["created_at"])]
    assert state(database).used == 0


async def test_constraint_violated_by_statement_session_raises_mapped_error(
    database: Database, database_url: URL
) -> None:
    ann = {"email": "ann@example.com", "name": "Ann"}
    await database.statement.returned(ADD_CONTACT, **ann)

    with pytest.raises(EmailTaken), violations({"uq_test_contacts_email": EmailTaken()}):
        await database.statement.returned(ADD_CONTACT, **ann)

    assert state(database).used == 0
    with connect(database_url) as admin:
        assert admin.execute("SELECT count(*) FROM test_contacts").fetchone() == (1,)


async def test_deferred_constraint_violated_at_commit_raises_mapped_error(
    database: Database, database_url: URL
) -> None:
    create_notes(database_url)

    with pytest.raises(ContactNotFound), violations({"deferred": ContactNotFound(999)}):
        await database.statement.returned(insert(NOTES).values(contact_id=999).returning(NOTES.c.contact_id))


async def test_statement_session_computes_values_that_are_made_in_python(database: Database) -> None:
    await database.statement.returned(ADD_CONTACT, email="ann@example.com", name="Ann")
    renamed = (
        update(Contact)
        .values(name=bindparam("new_name"))
        .returning(Contact.name, Contact.created_at, Contact.updated_at)
    )

    row = await database.statement.returned(renamed, new_name="Bob")

    assert row is not None
    assert row["name"] == "Bob"
    assert row["updated_at"] > row["created_at"], "the column has an onupdate="


async def test_warm_up_leaves_one_idle_connection(database: Database) -> None:
    await warm_up(database.engine)

    assert (state(database).idle, state(database).used) == (1, 0)


async def test_warm_up_without_an_answering_server_returns_in_time(proxy: Proxy) -> None:
    """A server that hangs, then one that refuses connections. The connect timeout is longer than the warm-up."""

    async def warm_up_in_time() -> bool:
        engine = make_engine(
            url=proxy.url,
            application_name="headroom:test",
            connect_timeout=60,
            pool=PoolOptions(timeout=60),
        )
        started = monotonic()
        await warm_up(engine, seconds=0.5)
        elapsed = monotonic() - started
        await engine.dispose()
        return elapsed < 20

    proxy.pause()
    assert await warm_up_in_time()
    await proxy.close()
    assert await warm_up_in_time()


async def test_write_session_rolls_back_when_its_block_raises(database: Database) -> None:
    with pytest.raises(LookupError):
        async with database.write() as session:
            session.add(new_contact())
            await session.flush()
            raise LookupError

    assert await database.read.all(NAMES) == []


async def test_write_session_without_a_statement_holds_no_connection(database: Database) -> None:
    async with database.write():
        assert state(database).used == 0


async def test_read_session_returns_its_connection_after_the_statement(database: Database) -> None:
    await database.read.all(NOW)

    assert (state(database).idle, state(database).used) == (1, 0)


async def test_read_session_runs_outside_a_transaction(database: Database) -> None:
    first, second = [(await database.read.all(NOW))[0] for _ in range(2)]

    assert first["pid"] == second["pid"], "the pool has one connection"
    assert first["now"] < second["now"], "now() is constant within a transaction"


async def test_read_does_not_see_a_write_before_its_commit(database: Database) -> None:
    async with database.write() as session:
        session.add(new_contact())
    await database.read.all(NAMES)
    async with database.write() as session:
        session.add(new_contact("bob@example.com"))
        await session.flush()
        assert len(await database.read.all(NAMES)) == 1, "this is another connection"

    assert len(await database.read.all(NAMES)) == 2


async def test_read_session_accepts_a_list_of_values(database: Database) -> None:
    among = select(literal(1).label("one")).where(literal(2).in_(bindparam("values", expanding=True)))

    assert [row["one"] for row in await database.read.all(among, values=[1, 2, 3])] == [1]
    assert await database.read.all(among, values=[4]) == []


async def test_first_without_a_row_is_none(database: Database) -> None:
    assert await database.read.first(NAMES) is None


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_numeric_overflow_in_the_server_is_invalid_input(database: Database, session_type: str) -> None:
    too_large = select((bindparam("number", type_=Contact.id.type) + 1).label("larger"))
    with pytest.raises(InvalidInput):
        await run(database, session_type, too_large, number=2**63 - 1)


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_number_too_large_for_its_type_is_invalid_input_and_leaves_no_lock(
    database: Database, session_type: str
) -> None:
    """asyncpg itself refuses the number when the server has parsed the statement and locked the table."""
    with_int4_parameter = select(Contact.id).where(bindparam("number", type_=Integer()) == func.length(Contact.name))
    with pytest.raises(InvalidInput):
        await run(database, session_type, with_int4_parameter, number=2**40)

    async def unlocked() -> bool:
        with connect(database.engine.url) as admin:
            locks = "SELECT FROM pg_locks WHERE relation = 'test_contacts'::regclass AND pid <> pg_backend_pid()"
            return not admin.execute(locks).fetchall()

    await eventually_async(unlocked, within=60)
    assert state(database).used == 0


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_cancelled_by_statement_timeout_is_statement_timeout(database: Database, session_type: str) -> None:
    with connect(database.engine.url) as admin:
        database_name = database.engine.url.database
        admin.execute(f"ALTER ROLE headroom_app IN DATABASE {database_name} SET statement_timeout = '500ms'")

    with pytest.raises(StatementTimeout):
        await run(database, session_type, SLEEP, seconds=30.0)


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_terminated_idle_connection_is_replaced_without_an_error(database: Database, session_type: str) -> None:
    killed = (await run(database, session_type, NOW))["pid"]
    terminate(database, killed)

    assert (await run(database, session_type, NOW))["pid"] != killed


async def test_connection_terminated_during_a_read_is_database_unavailable(database: Database) -> None:
    reading = asyncio.create_task(database.read.first(SLEEP, seconds=30.0))
    terminate(database, await sleeping_backend(database, reading))

    with pytest.raises(DatabaseUnavailable):
        await reading
    assert state(database).used == 0


async def test_connection_terminated_before_commit_is_database_unavailable(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.write() as session:
            session.add(new_contact())
            await session.flush()
            terminate(database, (await session.execute(NOW)).one().pid)

    assert await database.read.all(NAMES) == []


async def test_unreachable_server_is_database_unavailable(database_url: URL) -> None:
    unreachable = URL.create(database_url.drivername, host="127.0.0.1", port=1, database="none")
    database = Database(make_engine(url=unreachable, application_name="headroom:test"))

    for session_type in ("read", "write"):
        with pytest.raises(DatabaseUnavailable, match="cannot connect"):
            await run(database, session_type, NOW)


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_cancelled_statement_stops_on_the_server_and_frees_its_slot(
    database: Database, session_type: str
) -> None:
    running = asyncio.create_task(run(database, session_type, SLEEP, seconds=30.0))
    pid = await sleeping_backend(database, running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    async def stopped() -> bool:
        with connect(database.engine.url) as admin:
            query = "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            return not admin.execute(query, (pid,)).fetchall()

    await eventually_async(stopped, within=60)
    assert state(database).used == 0
    assert await run(database, session_type, NOW) is not None


async def test_cancelled_read_keeps_its_connection(database: Database) -> None:
    for seconds in (30.0, 30.5):
        running = asyncio.create_task(database.read.first(SLEEP, seconds=seconds))
        pid = await sleeping_backend(database, running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        with connect(database.engine.url) as admin:
            query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
            assert not admin.execute(query).fetchall(), "the connection is returned when the statement has ended"
        assert (state(database).used, state(database).idle) == (0, 1)
        row = await database.read.first(NOW)
        assert row is not None
        assert row["pid"] == pid


async def test_closed_coroutine_of_a_read_frees_its_slot(database: Database) -> None:
    change_options(database, ping_after=None)
    await database.read.first(NOW)  # opens the connection, so that the next read checks it out without a wait
    reading = database.read.first(SLEEP, seconds=30)
    reading.send(None)
    assert state(database).used == 1

    reading.close()  # as the garbage collector would

    await wait_until(lambda: state(database).used == 0)
    assert await database.read.first(NOW) is not None


async def test_cancelled_return_of_a_closed_connection_frees_its_slot(
    database: Database,
) -> None:
    change_options(database, ping_after=None)
    await database.read.first(NOW)
    checkout = await check_out(database.engine)
    await checkout.driver_connection.close()

    returning = asyncio.create_task(checkout.release())
    await asyncio.sleep(0)
    while not returning.done():
        returning.cancel()
        await asyncio.sleep(0)

    assert state(database).used == 0


@pytest.mark.parametrize("session_type", ["read", "write"])
async def test_statement_cancelled_repeatedly_frees_its_slot(database: Database, session_type: str) -> None:
    """An anyio cancel scope, as in Starlette, cancels its task in every iteration, also while it cleans up."""
    running = asyncio.create_task(run(database, session_type, SLEEP, seconds=30.0))
    await sleeping_backend(database, running)
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)

    await wait_until(lambda: state(database).used == 0)
    assert await run(database, session_type, NOW) is not None
