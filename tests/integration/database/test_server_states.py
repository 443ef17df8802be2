"""Errors that report the server's state are translated, and a unit of work is repeated after a conflict."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import URL, insert, literal_column, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, WriteSession
from app.database.error_mapping import SERVER_STATES
from app.errors import SchemaChanged, TransactionConflict
from tests.integration.database.helpers import create_tables, state
from tests.support.postgres import connect

# A class (two characters) is tested with its general SQLSTATE and with these.
SQLSTATES = [code if len(code) == 5 else f"{code}000" for code in SERVER_STATES]
SQLSTATES += ["08006", "53100", "53200", "53300", "53400", "57P01", "57P02", "57P03", "57P04", "57P05", "58030"]


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "test_counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


@pytest.fixture
def counters(database_url: URL) -> URL:
    """Create two counters, and the function fail(), which raises the SQLSTATE that it gets."""
    create_tables(database_url, Base.metadata)
    with connect(database_url) as admin:
        admin.execute("INSERT INTO test_counter (value) VALUES (0), (0)")
        admin.execute(
            "CREATE FUNCTION fail(code text) RETURNS int LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'a secret' USING ERRCODE = code; END $$;"
            "CREATE FUNCTION fail_at_commit() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM fail(current_setting('test.sqlstate')); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON test_counter DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW WHEN (NEW.value = -1) EXECUTE FUNCTION fail_at_commit()"
        )
    return database_url


def value(url: URL, counter: int = 1) -> int:
    with connect(url) as admin:
        row = admin.execute("SELECT value FROM test_counter WHERE id = %s", (counter,)).fetchone()
        assert row is not None
        return int(row[0])


async def read(database: Database, sqlstate: str) -> None:
    await database.read.first(select(literal_column(f"fail('{sqlstate}')").label("failed")))


async def statement(database: Database, sqlstate: str) -> None:
    failing = insert(Counter).values(value=literal_column(f"fail('{sqlstate}')")).returning(Counter.id)
    await database.statement.returned(failing)


async def write(database: Database, sqlstate: str) -> None:
    async with database.write() as session:
        session.add(Counter(value=1))
        await session.flush()
        await session.execute(text(f"SELECT fail('{sqlstate}')"))


async def commit(database: Database, sqlstate: str) -> None:
    """Fail at COMMIT, as a full disk or a serialization failure can."""
    async with database.write() as session:
        await session.execute(text(f"SELECT set_config('test.sqlstate', '{sqlstate}', true)"))
        session.add(Counter(value=-1))


@pytest.mark.parametrize("use", [read, statement, write, commit])
async def test_state_of_the_server_is_a_temporary_error_without_traceback(
    database: Database,
    counters: URL,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[Database, str], Awaitable[None]],
) -> None:
    for sqlstate in SQLSTATES:
        expected = SERVER_STATES.get(sqlstate) or SERVER_STATES[sqlstate[:2]]
        with pytest.raises(expected) as caught:
            await use(database, sqlstate)
        assert type(caught.value) is expected, sqlstate
        assert state(database).used == 0

    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert [row["value"] for row in await database.read.all(select(Counter.value))] == [0, 0]


async def meet(database: Database, url: URL, isolation_level: str, work: Callable[..., Awaitable[None]]) -> list[int]:
    """Run two units of work that meet in the middle at their first attempt. Return the attempts of each."""
    attempts = [0, 0]
    met = asyncio.Barrier(2)

    async def unit(number: int) -> None:
        async def attempt(session: WriteSession) -> None:
            await session.connection(execution_options={"isolation_level": isolation_level})
            attempts[number] += 1
            await work(session, number, met.wait if attempts[number] == 1 else None)

        await database.run_write(attempt)

    await asyncio.gather(unit(0), unit(1))
    return attempts


async def increment(session: WriteSession, counter: int) -> None:
    await session.execute(update(Counter).where(Counter.id == counter).values(value=Counter.value + 1))


async def test_run_write_repeats_a_deadlocked_transaction(database: Database, counters: URL) -> None:
    async def work(session: WriteSession, number: int, meet: Callable[[], Awaitable[object]] | None) -> None:
        await increment(session, 1 + number)
        if meet:
            await meet()
        await increment(session, 2 - number)

    attempts = await meet(database, counters, "READ COMMITTED", work)

    assert sorted(attempts) == [1, 2]
    assert (value(counters, 1), value(counters, 2)) == (2, 2)


async def test_run_write_repeats_a_serialization_failure(database: Database, counters: URL) -> None:
    """Each reads both counters and writes one: the last to commit or to write loses."""

    async def work(session: WriteSession, number: int, meet: Callable[[], Awaitable[object]] | None) -> None:
        total = sum((await session.scalars(select(Counter.value))).all())
        if meet:
            await meet()
        await session.execute(update(Counter).where(Counter.id == 1 + number).values(value=total + 1))

    attempts = await meet(database, counters, "SERIALIZABLE", work)

    assert sum(attempts) >= 3
    assert sorted([value(counters, 1), value(counters, 2)]) == [1, 2]


@pytest.mark.parametrize(("sqlstate", "error"), [("40001", TransactionConflict), ("26000", SchemaChanged)])
async def test_run_write_gives_up_after_its_attempts(
    database: Database, counters: URL, sqlstate: str, error: type[Exception]
) -> None:
    attempts = 0

    async def work(session: WriteSession) -> None:
        nonlocal attempts
        attempts += 1
        await increment(session, 1)
        await session.execute(text(f"SELECT fail('{sqlstate}')"))

    with pytest.raises(error):
        await database.run_write(work, attempts=4)

    assert (attempts, value(counters)) == (4, 0)


async def test_run_write_does_not_repeat_other_errors(database: Database, counters: URL) -> None:
    """A lost connection may have committed; an error of the work would come again."""
    attempts = 0

    async def work(session: WriteSession) -> None:
        nonlocal attempts
        attempts += 1
        await increment(session, 1)
        raise LookupError

    with pytest.raises(LookupError):
        await database.run_write(work)

    assert (attempts, value(counters)) == (1, 0)


async def test_run_write_returns_the_result_of_its_work(database: Database, counters: URL) -> None:
    async def work(session: WriteSession) -> int:
        await increment(session, 1)
        return 7

    assert await database.run_write(work) == 7
    assert value(counters) == 1
