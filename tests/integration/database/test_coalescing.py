"""Reads that wait at the same time share a statement: how many are sent, who gets which answer, and when not."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from typing import Any
from uuid import UUID
from weakref import ref

import pytest
from sqlalchemy import URL, ForeignKey, Integer, UniqueConstraint, bindparam, cast, event, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, KeyedSelect, PoolOptions, make_engine
from app.database.deadline import after_waiting
from app.database.lanes import in_lane
from app.errors import DatabaseUnavailable, InvalidInput, PoolExhausted, StatementTimeout
from tests.integration.database.gate import Gate, Observer, gated
from tests.integration.database.helpers import change_options, checked_out, create_tables, state, wait_until
from tests.support.coalescing_stress import stress
from tests.support.postgres import connect


class _Base(DeclarativeBase):
    pass


class Item(_Base):
    __tablename__ = "test_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    token: Mapped[UUID] = mapped_column(unique=True)
    shelf: Mapped[str]
    place: Mapped[int]
    tags: Mapped[Any] = mapped_column(JSONB)

    __table_args__ = (UniqueConstraint("shelf", "place"),)


class Part(_Base):
    __tablename__ = "test_parts"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("test_items.id"))


BY_ID = KeyedSelect(select(Item.id, Item.code), Item.id)
BY_CODE = KeyedSelect(select(Item.id, Item.code), Item.code)
BY_TOKEN = KeyedSelect(select(Item.id, Item.token), Item.token)
BY_SHELF = KeyedSelect(select(Item.id, Item.shelf, Item.place), Item.shelf, Item.place)
WITH_TAGS = KeyedSelect(select(Item.id, Item.tags), Item.id)
# Fails for the item 13, whose place is 0.
INVERSE = KeyedSelect(select(Item.id, (100 / Item.place).label("inverse")), Item.id)
# Wrongly declared: an item has several parts.
WITH_PARTS = KeyedSelect(select(Item.id, Part.id.label("part")).join(Part, Part.item_id == Item.id), Item.id)
FROM_ID = select(Item.id, Item.code).where(Item.id >= bindparam("first", type_=Integer())).order_by(Item.id)
TAGS = select(Item.id, Item.tags).order_by(Item.id)
RANDOM = select(func.random().label("value"))

NewDatabase = Callable[..., AbstractAsyncContextManager[tuple[Database, "Gate"]]]


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    create_tables(database_url, _Base.metadata)
    with connect(database_url) as admin:
        admin.execute(
            "INSERT INTO test_items SELECT n, 'c' || n, ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid,"
            " CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, n - 13, '[1, 2]' FROM generate_series(1, 200) n"
        )
        admin.execute("INSERT INTO test_parts VALUES (1, 1), (2, 2), (3, 2)")

    return partial(gated, database_url, attrgetter("read"))


def ask(database: Database, statement: KeyedSelect, *keys: Any) -> list["asyncio.Task[Any]"]:
    async def one(key: Any) -> Any:
        return await database.read.one(statement, key)

    return [asyncio.create_task(one(key)) for key in keys]


async def test_lone_read_is_sent_at_once_by_itself(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        row = await database.read.one(BY_ID, 5)
        assert row is not None
        assert (row["id"], row["code"]) == (5, "c5")
        assert await database.read.one(BY_ID, 999) is None
        assert (gate.sent, gate.observer.batches) == ([[5], [999]], [])


async def test_after_a_shared_statement_all_reads_of_one_iteration_share(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        assert gate.sent == [[1], [[2, 3]]]
        await asyncio.gather(*ask(database, BY_ID, 4, 5, 6))
        assert gate.sent[2:] == [[[4, 5, 6]]]
        assert gate.observer.batches == [2, 3]


async def test_after_a_shared_statement_a_lone_read_is_sent_by_itself(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        late = database.read.one(BY_ID, 4)
        await database.read.one(BY_ID, 5)
        await late
        assert gate.sent[2:] == [[5], [4]]
        assert gate.observer.batches == [2]


async def test_lone_read_after_a_shared_statement_waits_for_the_pool_itself(new_database: NewDatabase) -> None:
    """So its error has the state of the pool, its time-out is counted once, and it stays in its lane."""
    async with new_database(size=1, max_waiters=1, timeout=3) as (database, gate):
        await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        async with checked_out(database):
            (waiting,) = ask(database, BY_CODE, "c4")
            await wait_until(lambda: state(database).waiting == 1, waiting)
            with in_lane("critical"):
                (critical,) = ask(database, BY_ID, 5)
            errors = await asyncio.gather(waiting, critical, return_exceptions=True)
        assert ["size=1" in str(error) for error in errors] == [True, True]
        assert gate.observer.refused == ["timed out", "timed out"]


async def test_cancelled_lone_read_after_a_shared_statement_leaves_the_pool(new_database: NewDatabase) -> None:
    async with new_database(size=1, timeout=600) as (database, _):
        await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        async with checked_out(database):
            (cancelled,) = ask(database, BY_ID, 4)
            await wait_until(lambda: state(database).waiting == 1, cancelled)
            cancelled.cancel()
            await wait_until(lambda: state(database).waiting == 0)


@pytest.mark.parametrize(
    ("statement", "keys"),
    [
        (BY_ID, [3, 1, 2, 999, 2]),
        (BY_CODE, ["c3", "c1", "C1", "none", "c1"]),
        (BY_TOKEN, [UUID(int=3), UUID(int=1), UUID(int=999), UUID(int=1)]),
        (BY_SHELF, [("odd", 2), ("even", 1), ("odd", 1), ("none", 1), ("even", 1)]),
    ],
    ids=["integer", "text", "UUID", "composite"],
)
async def test_waiting_reads_share_a_statement(
    new_database: NewDatabase, statement: KeyedSelect, keys: list[Any]
) -> None:
    async with new_database() as (database, gate):
        expected = [await database.read.one(statement, key) for key in keys]
        gate.sent.clear()
        found = await asyncio.gather(*ask(database, statement, *keys))
        assert [row and dict(row) for row in found] == [row and dict(row) for row in expected]
        assert gate.observer.batches == [len(keys) - 1]
        assert len(gate.sent) == 2


async def test_statement_answers_at_most_the_configured_number_of_reads(new_database: NewDatabase) -> None:
    async with new_database(coalesce_max=10) as (database, gate):
        found = await asyncio.gather(*ask(database, BY_ID, *range(1, 32)))
        assert [row["id"] for row in found] == list(range(1, 32))
        assert gate.observer.batches == [10, 10, 10]


async def test_statements_under_way_are_limited_by_kind(new_database: NewDatabase) -> None:
    """A slow statement holds up the reads of its own kind, and no others."""
    async with new_database(coalesce_in_flight=2) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.sent.clear()
        gate.shut()
        first = ask(database, BY_ID, 1, 2)
        await gate.wait_for(2, *first)
        later = ask(database, BY_ID, 3, 4)
        other = ask(database, BY_CODE, "c1")
        await gate.wait_for(3, *first, *later, *other)
        assert gate.sent[2] == ["c1"]
        gate.open()
        await asyncio.gather(*first, *later, *other)
        assert gate.sent[3:] == [[[3, 4]]]


async def test_read_is_answered_by_a_statement_sent_after_it(new_database: NewDatabase) -> None:
    """A read that begins after a commit sees it, though a statement for the same key is under way."""
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.sent.clear()
        gate.shut()
        [before] = ask(database, BY_ID, 1)
        await gate.wait_for(1, before)
        async with database.write() as session:
            await session.execute(text("UPDATE test_items SET code = 'new' WHERE id = 1"))
        [after] = ask(database, BY_ID, 1)
        await asyncio.sleep(0)
        gate.open()
        assert (await after)["code"] == "new"
        await before
        assert len(gate.sent) == 2


async def test_read_that_comes_during_the_checkout_joins_the_statement(new_database: NewDatabase) -> None:
    async with new_database(size=1) as (database, gate):
        async with checked_out(database):
            reads = ask(database, BY_ID, 1, 2)
            await wait_until(lambda: state(database).waiting == 2, *reads)
            reads += ask(database, BY_ID, 3, 4)
            await asyncio.sleep(0)
        found = await asyncio.gather(*reads)
        assert [row["id"] for row in found] == [1, 2, 3, 4]
        assert gate.observer.batches == [3]


async def test_cancelled_read_leaves_the_others(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first, cancelled, *others = ask(database, BY_ID, 1, 2, 3, 4)
        await gate.wait_for(2, first)
        cancelled.cancel()
        gate.open()
        assert [row["id"] for row in await asyncio.gather(first, *others)] == [1, 3, 4]
        assert gate.sent[2] == [[3, 4]]

        gate.shut()
        cancelled, *others = ask(database, BY_ID, 2, 3, 4)
        await gate.wait_for(4, cancelled)
        assert gate.sent[3] == [[2, 3, 4]]
        cancelled.cancel()  # its statement is under way
        gate.open()
        assert [row["id"] for row in await asyncio.gather(*others)] == [3, 4]
        assert cancelled.cancelled()
        await wait_until(lambda: state(database).used == 0)


async def test_shared_statement_without_callers_is_cancelled(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first, *shared = ask(database, BY_ID, 1, 2, 3)
        await gate.wait_for(2, first)
        first.cancel()  # opening the gate for it could let the next statement through
        await gate.wait_for(3, *shared)
        for read in shared:
            assert state(database).used == 1, "another caller waits for it"
            read.cancel()
            await asyncio.wait({read})
        await wait_until(lambda: state(database).used == 0)
        gate.open()
        row = await database.read.one(BY_ID, 2)
        assert row is not None
        assert row["id"] == 2


async def test_shared_statement_without_callers_is_cancelled_once(new_database: NewDatabase) -> None:
    """psycopg closes a connection whose cancellation is interrupted, and its statement goes on."""
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        cancellations: list[Any] = []
        has_ended = asyncio.Event()

        async def fetch(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            try:
                return await gate(connection, statement, arguments)
            except asyncio.CancelledError:
                cancellations.append(arguments)
                try:
                    await has_ended.wait()
                except asyncio.CancelledError:
                    cancellations.append("again")
                raise

        path = database.read._fast_path
        assert path is not None
        path._fetch = fetch
        gate.shut()
        first, *shared = ask(database, BY_ID, 1, 2, 3)
        await gate.wait_for(2, first)
        has_ended.set()
        first.cancel()
        await gate.wait_for(3, *shared)
        has_ended.clear()
        cancellations.clear()
        later = ask(database, BY_ID, 4, 5)
        await asyncio.sleep(0)
        for read in (*shared, later[0]):
            read.cancel()
            await asyncio.wait({read})
        await wait_until(lambda: cancellations, later[1])

        has_ended.set()
        gate.open()

        assert (await later[1])["id"] == 5
        assert cancellations == [[[2, 3]]]


async def test_cancelled_lone_read_lets_the_waiting_ones_go_on(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        lone, *others = ask(database, BY_ID, 1, 2, 3)
        await gate.wait_for(2, lone)
        lone.cancel()
        gate.open()
        assert [row["id"] for row in await asyncio.gather(*others)] == [2, 3]


async def test_key_that_fails_does_not_fail_the_others(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        found: list[Any] = await asyncio.gather(*ask(database, INVERSE, 1, 12, 13, 14), return_exceptions=True)
        assert [found[1]["inverse"], found[3]["inverse"]] == [-100, 100]
        assert isinstance(found[2], Exception)
        assert gate.observer.batches == [3]
        assert len(gate.sent) == 2 + 3
        await wait_until(lambda: state(database).used == 0)


async def test_reads_of_one_gather_share_a_statement(new_database: NewDatabase) -> None:
    """Each of them is asked for before the first one begins."""
    async with new_database() as (database, gate):
        found: list[Any] = await asyncio.gather(*(database.read.one(BY_ID, key) for key in range(1, 31)))
        assert [row["id"] for row in found] == list(range(1, 31))
        assert gate.sent == [[1], [list(range(2, 31))]]


async def test_engine_is_freed_after_a_read_by_key(database_url: URL, new_database: NewDatabase) -> None:
    async with new_database() as (database, _):
        await database.read.one(BY_ID, 1)
        engine = ref(database.engine.sync_engine)
    del database, _
    gc.collect()
    assert engine() is None


async def test_key_that_the_server_would_refuse_goes_alone(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        found: list[Any] = await asyncio.gather(*ask(database, BY_ID, 1, 2**40, 2, 3), return_exceptions=True)
        assert isinstance(found[1], InvalidInput)
        assert [each["id"] for each in (found[0], found[2], found[3])] == [1, 2, 3]
        assert gate.observer.batches == [2]


async def test_failed_statement_gives_each_read_an_error_of_its_own(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first, *others = ask(database, BY_ID, 1, 2, 3, 4)
        await gate.wait_for(2, first)
        fetch = gate._fetch

        async def lose(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            if isinstance(arguments[0], list):
                raise DatabaseUnavailable("lost")
            return await fetch(connection, statement, arguments)

        gate._fetch = lose
        gate.open()
        errors = await asyncio.gather(*others, return_exceptions=True)
        assert [(type(error), str(error)) for error in errors] == [(DatabaseUnavailable, "lost")] * 3
        assert len({id(error) for error in errors}) == 3


async def test_waiting_read_is_refused_at_its_own_deadline(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first, *others = ask(database, BY_ID, 1, 2, 3)
        await gate.wait_for(2, first)
        change_options(database, timeout=3)
        late = ask(database, BY_CODE, "c1", "c2")
        await gate.wait_for(3, first)
        errors = await asyncio.gather(late[1], return_exceptions=True)
        assert isinstance(errors[0], PoolExhausted)
        assert gate.observer.refused == ["timed out"]
        gate.open()
        assert [row["id"] for row in await asyncio.gather(first, *others, late[0])] == [1, 2, 3, 1]


async def test_full_queue_refuses_reads_at_once(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1, coalesce_max=2, max_waiters=2) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first, *others = ask(database, BY_ID, *range(1, 8))
        await gate.wait_for(2, first)
        with pytest.raises(PoolExhausted, match=r"full \(6 of 6\)"):
            await database.read.one(BY_ID, 9)
        others[0].cancel()
        await asyncio.sleep(0)
        others += ask(database, BY_ID, 9)  # a read that has gone makes room
        await asyncio.sleep(0)
        gate.open()
        assert [row["id"] for row in await asyncio.gather(first, *others[1:])] == [1, 3, 4, 5, 6, 7, 9]
        assert gate.observer.refused == ["rejected"]


async def test_refused_checkout_refuses_the_reads_that_wait_for_it(new_database: NewDatabase) -> None:
    async with new_database(size=1, max_waiters=1, coalesce_in_flight=3) as (database, _):
        async with checked_out(database):
            first, *others = ask(database, BY_ID, 1, 2, 3)
            errors = await asyncio.gather(*others, return_exceptions=True)
            assert [type(error) for error in errors] == [PoolExhausted] * 2
        assert (await first)["id"] == 1


async def test_equal_reads_share_a_statement_and_others_do_not(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.all(FROM_ID, first=1)
        gate.sent.clear()
        found = await asyncio.gather(*(database.read.all(FROM_ID, first=first) for first in (199, 199, 199, 198)))
        assert [[row["id"] for row in rows] for rows in found] == [[199, 200]] * 3 + [[198, 199, 200]]
        assert sorted(gate.sent) == [[198], [199], [199]]
        path: Any = database.read._fast_path
        assert path.compiled(FROM_ID).same_reads == {}


async def test_equal_reads_of_volatile_functions_do_not_share(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        found = await asyncio.gather(*(database.read.first(RANDOM) for _ in range(10)))
        assert len({row["value"] for row in found if row}) == 10
        assert gate.observer.batches == []


async def test_shared_row_is_not_changed_by_another_reader(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, _gate):
        _, *rows = await asyncio.gather(*ask(database, WITH_TAGS, 1, 2, 2))
        rows[0]["tags"].append(3)
        assert rows[1]["tags"] == [1, 2]
        lists = await asyncio.gather(*(database.read.all(TAGS) for _ in range(3)))
        lists[1][0]["tags"].append(3)
        assert [rows[0]["tags"] for rows in lists] == [[1, 2], [1, 2, 3], [1, 2]]


async def test_key_that_finds_several_rows_is_an_error(new_database: NewDatabase) -> None:
    async with new_database() as (database, _):
        with pytest.raises(LookupError, match="more than one row for 2"):
            await database.read.one(WITH_PARTS, 2)
        found: list[Any] = await asyncio.gather(*ask(database, WITH_PARTS, 3, 1, 2), return_exceptions=True)
        assert [found[0], dict(found[1])] == [None, {"id": 1, "part": 1}]
        assert isinstance(found[2], LookupError)


async def test_reads_do_not_share_where_a_listener_prepares_connections(new_database: NewDatabase) -> None:
    """A listener may set up the connection for one request, such as its tenant for row-level security."""
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    seen = []
    async with new_database(coalesce_in_flight=1) as (database, gate):
        event.listen(database.engine.sync_engine, "checkout", lambda *_: seen.append(tenant.get()))

        async def read(name: str, key: int) -> Any:
            tenant.set(name)
            return await database.read.one(BY_ID, key)

        await asyncio.gather(read("a", 1), read("b", 1), read("c", 2))
        assert sorted(seen) == ["a", "b", "c"]
        assert gate.observer.batches == []


async def test_shared_statement_runs_in_no_requests_context(new_database: NewDatabase) -> None:
    request: ContextVar[str] = ContextVar("request")
    seen = []
    async with new_database(coalesce_in_flight=1) as (database, gate):
        fetch = gate._fetch

        async def record(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            seen.append(request.get("none"))
            return await fetch(connection, statement, arguments)

        gate._fetch = record
        request.set("mine")
        await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        assert seen == ["mine", "none"]


async def test_task_with_a_connection_cannot_wait_for_a_shared_statement(new_database: NewDatabase) -> None:
    """Under load such tasks would wait for each other, so they are refused as by the pool."""
    async with new_database(coalesce_in_flight=1, one_per_task=True) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first = ask(database, BY_ID, 1)
        await gate.wait_for(2, *first)

        async def read_inside_a_transaction() -> None:
            async with database.write() as session:
                await session.execute(text("SELECT 1"))
                await database.read.one(BY_ID, 2)

        with pytest.raises(RuntimeError, match="already holds a connection"):
            await asyncio.create_task(read_inside_a_transaction())
        gate.open()
        await asyncio.gather(*first)


async def test_statement_of_one_request_is_freed_with_it(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, _):
        statement = KeyedSelect(select(Item.id), Item.id)
        await asyncio.gather(*ask(database, statement, 1, 2, 3))
        freed = ref(statement)
        del statement
        gc.collect()
        assert freed() is None


async def test_coalescing_can_be_switched_off(new_database: NewDatabase) -> None:
    async with new_database(coalesce_max=1) as (database, gate):
        await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        await asyncio.gather(*(database.read.all(FROM_ID, first=1) for _ in range(3)))
        assert (len(gate.sent), gate.observer.batches) == (6, [])


async def test_stress_finds_no_wrong_row_and_no_stale_read(database_url: URL) -> None:
    report = await stress(database_url, database_url.set(username="postgres"), reads=2_000)
    assert +report.violations == {}
    assert report.read_after_commit > 200
    assert report.shared > 500


def test_reads_continue_in_another_event_loop(database_url: URL) -> None:
    """A loop that ends in the middle of a read leaves nothing behind that a later loop waits for."""
    statement = KeyedSelect(select(cast(Part.id, Integer).label("n"), Part.id), Part.id)
    create_tables(database_url, _Base.metadata)
    engine = make_engine(url=database_url, application_name="headroom:coalesce", pool=PoolOptions(size=3))
    database = Database(engine)

    async def leave() -> None:
        ask(database, statement, 1, 2, 3)
        await asyncio.sleep(0)

    async def read() -> list[Any]:
        found = await asyncio.gather(*ask(database, statement, 1, 2, 3))
        await engine.dispose()
        return found

    asyncio.run(leave())
    assert asyncio.run(read()) == [None, None, None]


async def test_failing_observer_leaks_no_connection(new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    async with new_database() as (database, _):

        def fail(*_: object) -> None:
            raise ValueError("metrics")

        monkeypatch.setattr(Observer, "coalesced", fail)
        found = await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        assert [row["id"] for row in found] == [1, 2, 3]
        await wait_until(lambda: state(database).used == 0)  # one may still be opened


async def test_statement_that_cannot_be_compiled_leaks_no_connection(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_database() as (database, _):
        path: Any = database.read._fast_path
        compiled = path.compiled

        def fail(statement: Any) -> Any:
            if statement is BY_ID.several:
                raise TypeError("refused")
            return compiled(statement)

        monkeypatch.setattr(path, "compiled", fail)
        found = await asyncio.gather(*ask(database, BY_ID, 1, 2, 3))
        assert [row["id"] for row in found] == [1, 2, 3]
        await wait_until(lambda: state(database).used == 0)  # one may still be opened


async def test_reads_that_have_gone_take_no_connection(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        lone, *others = ask(database, BY_ID, 1, 2, 3)
        await gate.wait_for(2, lone)
        for other in others:
            other.cancel()
        await asyncio.sleep(0)
        path: Any = database.read._fast_path
        *_, queue = path._keyed[BY_ID]
        gate.open()
        assert (await lone)["id"] == 1
        assert queue._tasks == {}


async def test_waiting_read_after_a_wait_elsewhere_has_the_rest_of_its_time(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        gate.shut()
        first = ask(database, BY_ID, 1)
        await gate.wait_for(2, *first)
        change_options(database, timeout=1)
        with after_waiting(1):
            late = ask(database, BY_ID, 2)

        [error] = await asyncio.gather(*late, return_exceptions=True)
        assert isinstance(error, PoolExhausted)
        assert "what was left of its time" in str(error)
        assert gate.observer.refused == ["timed out"]
        gate.open()
        await asyncio.gather(*first)


async def test_reads_that_are_sent_again_have_a_deadline(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(INVERSE, 1)
        fetch = gate._fetch

        async def slow(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            if arguments[-1] == 14:
                await asyncio.sleep(4.5)
            return await fetch(connection, statement, arguments)

        gate._fetch = slow
        change_options(database, timeout=4)
        found: list[Any] = await asyncio.gather(*ask(database, INVERSE, 1, 13, *range(14, 20)), return_exceptions=True)
        assert [int(each["inverse"]) for each in (found[0], found[2])] == [-8, 100]
        assert [type(each) for each in found[3:]] == [PoolExhausted] * 5
        assert gate.observer.refused == ["timed out"] * 5


async def test_cancelled_statement_ends_the_reads_that_are_sent_again(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(INVERSE, 1)
        fetch, again = gate._fetch, asyncio.Event()

        async def hang(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            if arguments[-1] == 14:
                again.set()
                await asyncio.sleep(60)
            return await fetch(connection, statement, arguments)

        gate._fetch = hang
        reads = ask(database, INVERSE, 1, 14, 13, 15)
        await again.wait()
        path: Any = database.read._fast_path
        *_, queue = path._keyed[INVERSE]
        [task] = queue._tasks
        task.cancel()
        await asyncio.wait(reads, timeout=30)
        assert [read.cancelled() for read in reads] == [False, True, True, True]


async def test_reads_whose_shared_statement_times_out_are_sent_again(new_database: NewDatabase) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        await database.read.one(BY_ID, 1)
        fetch = gate._fetch

        async def slow(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            if isinstance(arguments[-1], list) or arguments[-1] == 3:
                raise StatementTimeout("too slow")
            return await fetch(connection, statement, arguments)

        gate._fetch = slow
        found: list[Any] = await asyncio.gather(*ask(database, BY_ID, 1, 2, 3, 4), return_exceptions=True)
        assert [each["id"] for each in (found[0], found[1], found[3])] == [1, 2, 4]
        assert isinstance(found[2], StatementTimeout)
