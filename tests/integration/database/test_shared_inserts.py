"""Rows that wait at the same time are inserted by one statement: who gets which row, and what a failure stores."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date
from operator import attrgetter
from typing import Any
from uuid import UUID
from weakref import ref

import pytest
from sqlalchemy import URL, CheckConstraint, ForeignKey, String, bindparam, event, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.database import Database, SharedInsert
from app.database.checkout import check_out
from app.database.error_mapping import violations
from app.database.lanes import in_lane
from app.database.liveness import shut_down
from app.database.read_after import note_written, read_after
from app.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidInput,
    OutcomeUnknown,
    PoolExhausted,
    StatementTimeout,
    TransactionConflict,
)
from app.request_deadline import RequestDeadline, request_deadline
from tests.integration.database.gate import Gate, gated
from tests.integration.database.helpers import change_options, checked_out, create_tables, state, wait_until
from tests.support.insert_stress import stress
from tests.support.postgres import connect


class _Base(DeclarativeBase):
    pass


class Shelf(_Base):
    __tablename__ = "test_shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    is_open: Mapped[bool]


class Box(_Base):
    __tablename__ = "test_boxes"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("test_shelves.id"))
    label: Mapped[str] = mapped_column(String(10))

    __table_args__ = (CheckConstraint("label <> 'bad'", name="ck_label"),)


class Note(_Base):
    __tablename__ = "test_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]
    token: Mapped[UUID]
    day: Mapped[date]
    is_read: Mapped[bool]


def parameter(column: Any) -> Any:
    return bindparam(column.key, type_=column.type)


STORE_STATEMENT = (
    insert(Box)
    .from_select(
        ["shelf_id", "label"],
        select(Shelf.id, parameter(Box.label)).where(
            Shelf.id == bindparam("shelf_id", type_=Shelf.id.type), Shelf.is_open
        ),
    )
    .returning(Box.id, Box.shelf_id, Box.label)
)
STORE = SharedInsert(STORE_STATEMENT)
_NOTE_COLUMNS = (Note.text, Note.token, Note.day, Note.is_read)
WRITE_NOTE = SharedInsert(
    insert(Note)
    .from_select([column.key for column in _NOTE_COLUMNS], select(*map(parameter, _NOTE_COLUMNS)))
    .returning(Note.id, *_NOTE_COLUMNS)
)
CLOSED_SHELF = 99

NewDatabase = Callable[..., AbstractAsyncContextManager[tuple[Database, Gate]]]


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    create_tables(database_url, _Base.metadata)
    with connect(database_url) as admin:
        admin.execute("INSERT INTO test_shelves SELECT n, n <> 99 FROM generate_series(1, 99) n")

    return lambda **options: gated(database_url, attrgetter("statement"), **{"coalesce_in_flight": 1} | options)


def store(database: Database, *boxes: tuple[int, str]) -> list["asyncio.Task[Any]"]:
    """Store boxes at the same time: the first one by itself, the others with one statement."""

    async def one(shelf: int, label: str) -> Any:
        return await database.statement.returned(STORE, shelf_id=shelf, label=label)

    return [asyncio.create_task(one(*box)) for box in boxes]


def stored(url: URL) -> list[tuple[Any, ...]]:
    with connect(url) as admin:
        return admin.execute("SELECT shelf_id, label FROM test_boxes ORDER BY shelf_id, label, id").fetchall()


def row_of(row: Any) -> tuple[Any, ...] | None:
    return row and (row["shelf_id"], row["label"])


async def test_lone_row_is_inserted_by_its_own_statement(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        row = await database.statement.returned(STORE, shelf_id=1, label="a")
        assert row_of(row) == (1, "a")
        assert await database.statement.returned(STORE, shelf_id=CLOSED_SHELF, label="b") is None
        assert (len(gate.sent), gate.observer.batches) == (2, [])
        assert stored(database_url) == [(1, "a")]


async def test_waiting_rows_share_a_statement(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        boxes = [(1, "a"), (3, "c"), (2, "b"), (1, "")]
        found = await asyncio.gather(*store(database, *boxes))
        assert list(map(row_of, found)) == boxes
        assert len({row["id"] for row in found}) == 4
        assert (len(gate.sent), gate.observer.batches) == (2, [3])
        assert stored(database_url) == sorted(boxes)


async def test_equal_rows_are_rows_of_their_own(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        found = await asyncio.gather(*store(database, *[(1, "same")] * 5))
        assert len({row["id"] for row in found}) == 5
        assert gate.observer.batches == [4]
        assert stored(database_url) == [(1, "same")] * 5


async def test_values_of_each_type_find_their_row(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        notes: list[dict[str, Any]] = [
            {"text": content, "token": UUID(int=number), "day": date(2000 + number, 2, 29), "is_read": number % 8 == 0}
            for number, content in zip(range(0, 24, 4), ("é ' \\ {}", None, "", "NULL", '"', "a,b"), strict=True)
        ]
        found = await asyncio.gather(*(database.statement.returned(WRITE_NOTE, **note) for note in notes))
        assert [{name: row[name] for name in notes[0]} for row in found if row] == notes
        assert gate.observer.batches == [5]


async def test_row_without_its_parent_does_not_affect_the_others(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        found = await asyncio.gather(*store(database, (1, "a"), (2, "b"), (CLOSED_SHELF, "c"), (12345, "d"), (3, "e")))
        assert list(map(row_of, found)) == [(1, "a"), (2, "b"), None, None, (3, "e")]
        # Those which the shared statement did not insert are sent by themselves: a lock could be the reason.
        assert (len(gate.sent), gate.observer.batches) == (4, [4])
        assert stored(database_url) == [(1, "a"), (2, "b"), (3, "e")]


async def test_locked_parent_holds_up_only_its_own_row(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        with connect(database_url) as admin, admin.transaction():
            admin.execute("SELECT FROM test_shelves WHERE id = 2 FOR UPDATE")
            first, locked, *others = store(database, (1, "a"), (2, "b"), (3, "c"), (4, "d"))
            assert list(map(row_of, await asyncio.gather(first, *others))) == [(1, "a"), (3, "c"), (4, "d")]
            await gate.wait_for(3, locked)
            later = store(database, (5, "e"), (6, "f"))
            assert list(map(row_of, await asyncio.gather(*later))) == [(5, "e"), (6, "f")]
            assert not locked.done()
        assert row_of(await locked) == (2, "b")
        assert len(stored(database_url)) == 6


async def test_lone_row_with_a_locked_parent_holds_up_no_other(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database(coalesce_in_flight=1) as (database, gate):
        with connect(database_url) as admin, admin.transaction():
            admin.execute("SELECT FROM test_shelves WHERE id = 2 FOR UPDATE")
            (locked,) = store(database, (2, "b"))
            await gate.wait_for(1, locked)
            others = await asyncio.gather(*store(database, (1, "a"), (3, "c")))
            assert list(map(row_of, others)) == [(1, "a"), (3, "c")]
            assert not locked.done()
        assert row_of(await locked) == (2, "b")


async def test_row_that_the_server_refuses_fails_alone(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):

        async def one(label: str) -> Any:
            with violations({"ck_label": Conflict("bad")}):
                return await database.statement.returned(STORE, shelf_id=1, label=label)

        found: list[Any] = await asyncio.gather(*map(one, ("a", "b", "bad", "c")), return_exceptions=True)
        assert [row_of(found[index]) for index in (0, 1, 3)] == [(1, "a"), (1, "b"), (1, "c")]
        assert isinstance(found[2], Conflict)
        # The lone row, all others, the halves of these, and the two rows of the half that was refused.
        assert (len(gate.sent), gate.observer.batches) == (1 + 1 + 2 + 2, [3])
        assert stored(database_url) == [(1, "a"), (1, "b"), (1, "c")]
        await wait_until(lambda: state(database).used == 0)


async def test_refused_row_costs_its_companions_few_statements(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        boxes = [(1, f"{number}") for number in range(64)]
        jobs = store(database, (1, "first"), *boxes[:20], (1, "bad"), *boxes[20:63])
        found: list[Any] = await asyncio.gather(*jobs, return_exceptions=True)
        assert [row_of(row) for row in found if not isinstance(row, Exception)] == [(1, "first"), *boxes[:63]]
        # The lone row, all 64, 2 halves of 64, of 32, ... of 4, 2 rows, and the refused one by itself or a companion.
        assert len(gate.sent) == 1 + 1 + 2 * 6
        assert len(stored(database_url)) == 64


async def test_cancelled_write_leaves_a_statement_that_is_sent_in_parts(
    new_database: NewDatabase, database_url: URL
) -> None:
    async with new_database() as (database, gate):
        fetch = gate._fetch
        is_refused, is_released = asyncio.Event(), asyncio.Event()

        async def hold(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            try:
                return await fetch(connection, statement, arguments)
            except Exception:
                is_refused.set()
                await is_released.wait()
                raise

        gate._fetch = hold
        first, bad, cancelled, *others = store(database, (1, "a"), (1, "bad"), (1, "c"), (1, "d"), (1, "e"))
        await wait_until(is_refused.is_set, first, bad, cancelled, *others)
        cancelled.cancel()
        is_released.set()
        assert list(map(row_of, await asyncio.gather(first, *others))) == [(1, "a"), (1, "d"), (1, "e")]
        await asyncio.wait({bad, cancelled})
        assert cancelled.cancelled()
        assert bad.exception() is not None
        assert stored(database_url) == [(1, "a"), (1, "d"), (1, "e")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DatabaseUnavailable("lost"), "DatabaseUnavailable"),
        (OutcomeUnknown("lost"), "OutcomeUnknown"),
        (StatementTimeout("slow"), "stored"),
    ],
    ids=["unavailable", "unknown", "slow"],
)
async def test_part_that_fails_leaves_the_other_parts(
    new_database: NewDatabase, database_url: URL, error: Exception, expected: str
) -> None:
    async with new_database() as (database, gate):
        fetch = gate._fetch
        failures: list[Exception] = [InvalidInput("one of all"), error]

        async def fail(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            if isinstance(arguments[0], list) and failures:
                raise failures.pop(0)
            return await fetch(connection, statement, arguments)

        gate._fetch = fail
        boxes = [(1, label) for label in "bcde"]
        _, *found = await asyncio.gather(*store(database, (1, "a"), *boxes), return_exceptions=True)
        outcomes = [type(each).__name__ if isinstance(each, Exception) else "stored" for each in found]
        assert outcomes == [expected, expected, "stored", "stored"]
        assert len(stored(database_url)) == 1 + outcomes.count("stored")
        await wait_until(lambda: state(database).used == 0)


async def test_parts_are_not_sent_after_the_deadline_of_the_pool(
    new_database: NewDatabase, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with new_database() as (database, gate):
        fail_shared(gate, InvalidInput("one of all"))
        monkeypatch.setattr("app.database.pool.BoundedPool.timeout", lambda _: 0.0)
        _, *errors = await asyncio.gather(
            *store(database, (1, "a"), *((1, label) for label in "bcde")), return_exceptions=True
        )
        assert [type(error) for error in errors] == [PoolExhausted] * 4
        assert gate.observer.refused == ["timed out"] * 4
        assert stored(database_url) == [(1, "a")]


async def test_statement_in_parts_without_callers_is_cancelled(
    new_database: NewDatabase, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting = asyncio.Event()

    async def never_check_out(_: Any) -> Any:
        is_waiting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("app.database.insert_queue.check_out", never_check_out)
    async with new_database() as (database, gate):
        fail_shared(gate, InvalidInput("one of all"))
        first, *others = store(database, (1, "a"), (1, "b"), (1, "c"), (1, "d"), (1, "e"))
        await wait_until(is_waiting.is_set, first, *others)
        for write in others:
            write.cancel()
        await asyncio.wait(others)
        assert row_of(await first) == (1, "a")
        path: Any = database.statement._fast_path
        ((_, _, queue),) = path._inserts.values()
        await wait_until(lambda: not (queue._under_way or queue.lone or queue._tasks))
        assert stored(database_url) == [(1, "a")]
        assert row_of(await database.statement.returned(STORE, shelf_id=1, label="z")) == (1, "z")


async def test_row_that_a_policy_refuses_does_not_end_sharing(new_database: NewDatabase, database_url: URL) -> None:
    """Its SQLSTATE is that of a missing privilege."""
    with connect(database_url) as admin:
        admin.execute(
            "ALTER TABLE test_boxes ENABLE ROW LEVEL SECURITY;"
            " CREATE POLICY label ON test_boxes USING (true) WITH CHECK (label <> 'secret')"
        )
    async with new_database() as (database, gate):
        boxes = [(1, "a"), (1, "b"), (1, "secret"), (1, "c")]
        found: list[Any] = await asyncio.gather(*store(database, *boxes), return_exceptions=True)
        assert [isinstance(each, Exception) for each in found] == [False, False, True, False]
        await asyncio.gather(*store(database, (2, "a"), (2, "b"), (2, "c")))
        assert sum(gate.observer.batches) > 3
        assert len(stored(database_url)) == 6


async def test_rows_that_wait_do_not_share_after_a_refusal(
    new_database: NewDatabase, database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database_url) as admin:
        admin.execute("REVOKE UPDATE ON test_shelves FROM headroom_app")
    async with new_database(coalesce_max=2) as (database, gate):
        boxes = [(1, f"{number}") for number in range(9)]
        assert list(map(row_of, await asyncio.gather(*store(database, *boxes)))) == boxes
        # The rows of one shared statement, which is refused, are sent twice. At most one more was under way then.
        assert 9 < len(gate.sent) <= 9 + 2
        assert caplog.text.count("no rows share a statement") == 1


async def test_write_that_ends_between_two_parts_is_not_stored(
    new_database: NewDatabase, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row was refused with the others, and waits for a connection to be sent again."""
    is_waiting, has_ended = asyncio.Event(), asyncio.Event()

    async def check_out_late(engine: Any) -> Any:
        is_waiting.set()
        await has_ended.wait()
        return await check_out(engine)

    monkeypatch.setattr("app.database.insert_queue.check_out", check_out_late)
    async with new_database() as (database, _):
        first, other, ended_early = store(database, (1, "a"), (1, "b"), (1, "early"))
        ended, deadline = with_deadline(lambda: database.statement.returned(STORE, shelf_id=1, label="late"))
        (bad,) = store(database, (1, "bad"))
        await wait_until(is_waiting.is_set, first, other, ended_early, ended, bad)
        deadline.expire()
        ended_early.cancel()
        await asyncio.wait({ended, ended_early})
        assert (ended.cancelled(), ended_early.cancelled(), deadline.is_unknown) == (True, True, False)
        has_ended.set()
        await asyncio.gather(first, other)
        assert stored(database_url) == [(1, "a"), (1, "b")]
        await asyncio.wait({bad})
        assert bad.exception() is not None
        await wait_until(lambda: state(database).used == 0)


async def test_rows_do_not_share_where_the_role_may_not_lock_the_parent(
    new_database: NewDatabase, database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(database_url) as admin:
        admin.execute("REVOKE UPDATE ON test_shelves FROM headroom_app")
    async with new_database() as (database, gate):
        boxes = [(1, "a"), (2, "b"), (3, "c")]
        assert list(map(row_of, await asyncio.gather(*store(database, *boxes)))) == boxes
        assert len(gate.sent) == 1 + 1 + 2
        assert "for 60 s, no rows share a statement that failed: permission denied" in caplog.text
        assert list(map(row_of, await asyncio.gather(*store(database, *boxes)))) == boxes
        assert len(gate.sent) == 4 + 3
        assert gate.observer.batches == [2]
        assert len(stored(database_url)) == 6


async def test_value_that_the_server_would_refuse_is_not_shared(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        jobs = store(database, (1, "a"), (2, "longer than ten"), (3, "c"), (4, "d"))
        found: list[Any] = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(found[1], Exception)
        assert gate.observer.batches == [2]
        assert stored(database_url) == [(1, "a"), (3, "c"), (4, "d")]


def fail_shared(gate: Gate, error: Exception) -> None:
    """Let each shared statement fail, before it is sent."""
    fetch = gate._fetch

    async def fail(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
        if isinstance(arguments[0], list):
            raise error
        return await fetch(connection, statement, arguments)

    gate._fetch = fail


@pytest.mark.parametrize(
    "error",
    [StatementTimeout("slow"), TransactionConflict("deadlock"), InvalidInput("value")],
    ids=lambda error: str(error),
)
async def test_rows_of_a_refused_statement_are_sent_by_themselves(new_database: NewDatabase, error: Exception) -> None:
    async with new_database() as (database, gate):
        fail_shared(gate, error)
        found = await asyncio.gather(*store(database, (1, "a"), (2, "b"), (3, "c")))
        assert list(map(row_of, found)) == [(1, "a"), (2, "b"), (3, "c")]


async def test_unavailable_server_fails_all_rows(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        fail_shared(gate, DatabaseUnavailable("shutting down"))
        _, *errors = await asyncio.gather(*store(database, (1, "a"), (2, "b"), (3, "c")), return_exceptions=True)
        assert [type(error) for error in errors] == [DatabaseUnavailable] * 2
        assert len({id(error) for error in errors}) == 2
        assert len(gate.sent) == 2


async def test_lost_connection_leaves_the_outcome_of_all_rows_unknown(
    new_database: NewDatabase, database_url: URL
) -> None:
    """They may be stored, so none of them is sent again."""
    async with new_database() as (database, gate):
        fetch = gate._fetch

        async def lose(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
            rows = await fetch(connection, statement, arguments)
            if isinstance(arguments[0], list):
                shut_down(connection)
                await fetch(connection, statement, arguments)
            return rows

        gate._fetch = lose
        first, *errors = await asyncio.gather(*store(database, (1, "a"), (2, "b"), (3, "c")), return_exceptions=True)
        assert row_of(first) == (1, "a")
        assert [type(error) for error in errors] == [OutcomeUnknown] * 2
        assert stored(database_url) == [(1, "a"), (2, "b"), (3, "c")]


async def test_rows_that_a_trigger_changes_are_not_sent_again(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, _):
        with connect(database_url) as admin:
            admin.execute(
                "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN NEW.label := upper(NEW.label); RETURN NEW; END $$;"
                " CREATE TRIGGER shout BEFORE INSERT ON test_boxes FOR EACH ROW EXECUTE FUNCTION shout()"
            )
        first, same, *errors = await asyncio.gather(
            *store(database, (1, "a"), (2, "SAME"), (3, "c"), (4, "d")), return_exceptions=True
        )
        assert [row_of(first), row_of(same)] == [(1, "A"), (2, "SAME")]
        assert [type(error) for error in errors] == [OutcomeUnknown] * 2
        assert stored(database_url) == [(1, "A"), (2, "SAME"), (3, "C"), (4, "D")]
        # A changed row that is equal to another one is noticed as well.
        found: list[Any] = await asyncio.gather(*store(database, (5, "e"), (6, "f"), (6, "F")), return_exceptions=True)
        assert sorted(type(each).__name__ for each in found[1:]).count("OutcomeUnknown") == 1
        assert stored(database_url)[4:] == [(5, "E"), (6, "F"), (6, "F")]


async def hold_all_statements(database: Database, gate: Gate) -> list["asyncio.Task[Any]"]:
    """Begin as many statements as may be under way, and hold them back. Each is for a row on shelf 9."""
    gate.shut()
    jobs = store(database, (9, "lone"))
    await gate.wait_for(1, *jobs)
    jobs += store(database, (9, "shared"))
    await gate.wait_for(2, *jobs)
    return jobs


async def test_cancelled_write_that_waits_is_not_stored(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        held = await hold_all_statements(database, gate)
        cancelled, *others = store(database, (2, "b"), (3, "c"), (4, "d"))
        await asyncio.sleep(0)
        cancelled.cancel()
        gate.open()
        await asyncio.gather(*held)
        assert list(map(row_of, await asyncio.gather(*others))) == [(3, "c"), (4, "d")]
        assert stored(database_url) == [(3, "c"), (4, "d"), (9, "lone"), (9, "shared")]


def hold_answers(gate: Gate, label: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold back the answer of the shared statement with a label.

    Return what is set when there is one, and what lets it through.
    """
    fetch = gate._fetch
    is_inserted, is_released = asyncio.Event(), asyncio.Event()

    async def hold(connection: Any, statement: Any, arguments: Sequence[Any]) -> list[Any]:
        rows = await fetch(connection, statement, arguments)
        if any(isinstance(each, list) and label in each for each in arguments):
            is_inserted.set()
            await is_released.wait()
        return rows

    gate._fetch = hold
    return is_inserted, is_released


async def test_cancelled_write_leaves_the_others_of_its_statement(new_database: NewDatabase, database_url: URL) -> None:
    async with new_database() as (database, gate):
        is_inserted, is_released = hold_answers(gate, "b")
        first, cancelled, *others = store(database, (1, "a"), (2, "b"), (3, "c"), (2, "b"))
        await wait_until(is_inserted.is_set, first, cancelled, *others)
        cancelled.cancel()
        is_released.set()
        assert list(map(row_of, await asyncio.gather(first, *others))) == [(1, "a"), (3, "c"), (2, "b")]
        assert cancelled.cancelled()
        assert stored(database_url) == [(1, "a"), (2, "b"), (2, "b"), (3, "c")]
        await wait_until(lambda: state(database).used == 0)


async def test_shared_statement_without_callers_is_cancelled(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        is_inserted, _ = hold_answers(gate, "b")
        first, *others = store(database, (1, "a"), (2, "b"), (3, "c"))
        await wait_until(is_inserted.is_set, first, *others)
        await first
        await wait_until(lambda: state(database).used == 1)  # another one may still be opened
        for write in others:
            assert state(database).used == 1, "another caller waits for it"
            write.cancel()
            await asyncio.wait({write})
        await wait_until(lambda: state(database).used == 0)


def with_deadline(task_of: Callable[[], Any]) -> tuple["asyncio.Task[Any]", RequestDeadline]:
    """Start a task with a deadline of its own, as the web layer does for a request."""
    tasks: list[asyncio.Task[Any]] = []
    deadline = RequestDeadline(time.monotonic() + 600, lambda: False, lambda: tasks[0].cancel())

    async def run() -> Any:
        request_deadline.set(deadline)
        return await task_of()

    tasks.append(asyncio.create_task(run()))
    return tasks[0], deadline


async def test_deadline_ends_a_write_that_waits_and_leaves_one_that_is_sent_unknown(
    new_database: NewDatabase, database_url: URL
) -> None:
    async with new_database() as (database, gate):

        def write(label: str) -> tuple["asyncio.Task[Any]", RequestDeadline]:
            return with_deadline(lambda: database.statement.returned(STORE, shelf_id=1, label=label))

        held = await hold_all_statements(database, gate)
        waiting, waiting_deadline = write("waiting")
        sent, sent_deadline = write("sent")
        other, other_deadline = write("other")
        await asyncio.sleep(0)
        waiting_deadline.expire()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert not waiting_deadline.is_unknown

        is_inserted, is_released = hold_answers(gate, "sent")
        gate.open()
        await wait_until(is_inserted.is_set, *held, sent, other)
        sent_deadline.expire()
        with pytest.raises(OutcomeUnknown):
            await sent
        assert sent_deadline.is_unknown
        is_released.set()
        assert row_of(await other) == (1, "other")
        assert other_deadline.is_stored
        other_deadline.expire()
        assert not other_deadline.is_over, "the client must learn that its row is stored"
        assert [label for _, label in stored(database_url)] == ["other", "sent", "lone", "shared"]


async def test_write_is_refused_at_the_deadline_of_the_pool(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        async with checked_out(database), checked_out(database):
            pass  # two connections are open
        change_options(database, timeout=3)
        held = await hold_all_statements(database, gate)
        (late,) = store(database, (2, "b"))
        with pytest.raises(PoolExhausted, match="the write was not sent within 3 s"):
            await late
        gate.open()
        await asyncio.gather(*held)


async def test_writes_that_must_not_share_are_sent_by_themselves(new_database: NewDatabase) -> None:
    boxes = [(1, "a"), (2, "b"), (3, "c")]
    async with new_database(coalesce_max=1) as (database, gate):
        await asyncio.gather(*store(database, *boxes))
        assert (len(gate.sent), gate.observer.batches) == (3, [])
    async with new_database() as (database, gate):
        with in_lane("expensive"):
            await asyncio.gather(*store(database, *boxes))
        with in_lane("critical"):  # the shared statement would wait in the lane normal
            await asyncio.gather(*store(database, *boxes))
        assert (len(gate.sent), gate.observer.batches) == (6, [])
        # A listener may prepare the connection for one request.
        event.listen(database.engine.sync_engine, "checkout", lambda *_: None)
        await asyncio.gather(*store(database, *boxes))
        assert (len(gate.sent), gate.observer.batches) == (9, [])


async def test_each_request_notes_the_position_of_the_shared_commit(new_database: NewDatabase) -> None:
    """With a standby, its next reads must see its row."""
    positions: list[int] = []

    async def note(_: Any) -> None:
        positions.append(1000 + len(positions))
        note_written(positions[-1])

    async with new_database() as (database, gate):
        database.statement.call_after_write(note)

        async def one(label: str) -> int:
            await database.statement.returned(STORE, shelf_id=1, label=label)
            noted = read_after.get()
            return 0 if noted is None else noted.written

        lone, *shared = await asyncio.gather(*map(one, ("a", "b", "c")))
        assert sorted({lone, *shared}) == [1000, 1001]
        assert shared[0] == shared[1] != lone
        assert gate.observer.batches == [2]


async def test_statement_of_one_request_is_freed_with_it(new_database: NewDatabase) -> None:
    async with new_database() as (database, gate):
        statement = SharedInsert(STORE_STATEMENT)
        await asyncio.gather(*(database.statement.returned(statement, shelf_id=1, label=each) for each in "abc"))
        assert gate.observer.batches == [2]
        freed = ref(statement)
        del statement
        gc.collect()
        assert freed() is None


@pytest.mark.parametrize("database_setup", ["asyncpg", "psycopg", "psycopg-pgbouncer"])
async def test_stress_stores_each_acknowledged_row_once(database_url: URL) -> None:
    report = await stress(database_url, database_url, writes=3_000, kill_every=0.05)
    assert +report.violations == {}
    assert report.shared > 500
    assert report.terminated > 0
    assert report.acknowledged > 100
