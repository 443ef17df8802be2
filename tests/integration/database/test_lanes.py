"""Lanes on a real PostgreSQL server: an expensive lane cannot take all connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import URL, Text, cast, literal, select, update

from app.database import Database, PoolOptions, make_engine
from app.database.by_key import KeyedSelect
from app.database.costs import SHARED
from app.database.deadline import after_waiting
from app.database.lanes import Lane, LaneState, in_lane
from app.errors import PoolExhausted
from app.lanes import CRITICAL, EXPENSIVE, NORMAL, LaneSpec
from app.request_context import request_id
from tests.integration.database.helpers import (
    PID,
    SLEEP,
    allow_long_statements,
    change_options,
    checked_out,
    pool_of,
    state,
    wait_until,
)
from tests.support.contacts import Contact

NewDatabase = Callable[..., AbstractAsyncContextManager[Database]]
QUICK = select(literal(1).label("one"), cast(literal("quick"), Text()).label("name"))
BY_ID = KeyedSelect(select(Contact.id, Contact.name), Contact.id)
MINUTE = 60.0


@pytest.fixture
def new_database(database_url: URL) -> NewDatabase:
    """Create databases with pools of their own, of two connections and timeouts that never matter."""

    @asynccontextmanager
    async def new(**options: Any) -> AsyncIterator[Database]:
        allow_long_statements(database_url)
        patient = {"timeout": MINUTE, "queue_target": MINUTE, "expensive_timeout": MINUTE}
        options = {"size": 2, "max_overflow": 0} | patient | options
        engine = make_engine(url=database_url, application_name="headroom:lanes", pool=PoolOptions(**options))
        try:
            yield Database(engine)
        finally:
            await engine.dispose()

    return new


def lane(database: Database, name: str) -> LaneState:
    [found] = [each for each in pool_of(database).lane_states if each.name == name]
    return found


async def expensive(database: Database, seconds: float = MINUTE) -> None:
    with in_lane(EXPENSIVE):
        await database.read.first(SLEEP, seconds=seconds)


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_cost_watch_runs_in_the_context_of_no_request(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log lines would have the id of a request that has ended long before."""
    contexts: list[str] = []
    async with new_database() as database:
        monkeypatch.setattr(pool_of(database)._costs, "review", lambda *_: contexts.append(request_id.get()))
        token = request_id.set("a request")
        reading = asyncio.create_task(database.read.first(SLEEP, seconds=MINUTE))
        request_id.reset(token)

        await wait_until(lambda: len(contexts) > 1, reading)

        await end([reading])
    assert "a request" not in contexts


async def test_expensive_lane_leaves_a_connection_to_the_others(new_database: NewDatabase) -> None:
    async with new_database() as database:
        noisy = [asyncio.create_task(expensive(database)) for _ in range(10)]
        await wait_until(lambda: lane(database, EXPENSIVE).running == 1, *noisy)
        await wait_until(lambda: lane(database, EXPENSIVE).waiting == 9, *noisy)

        for _ in range(20):
            assert await database.read.first(PID)
            assert lane(database, EXPENSIVE)[1:3] == (1, 9)
        async with database.write() as session:
            assert await session.scalar(PID)

        await end(noisy)
        assert lane(database, EXPENSIVE)[1:3] == (0, 0)
        await wait_until(lambda: state(database).used == 0)


async def test_each_kind_of_session_waits_for_the_lane(new_database: NewDatabase) -> None:
    async def write(database: Database) -> None:
        with in_lane(EXPENSIVE):
            async with database.write() as session:
                await session.execute(QUICK)

    async def read(database: Database) -> None:
        with in_lane(EXPENSIVE):
            await database.read.all(QUICK)

    async with new_database() as database:
        await asyncio.gather(read(database), database.read.first(PID))  # opens both connections
        noisy = [asyncio.create_task(expensive(database))]
        await wait_until(lambda: lane(database, EXPENSIVE).running == 1, *noisy)
        waiting = [asyncio.create_task(each(database)) for each in (write, read)]
        await wait_until(lambda: lane(database, EXPENSIVE).waiting == 2, *noisy, *waiting)

        await end(noisy)
        await asyncio.gather(*waiting)

        assert lane(database, EXPENSIVE)[1:3] == (0, 0)


async def test_lane_beyond_its_queue_refuses_and_names_itself(new_database: NewDatabase) -> None:
    async with new_database(expensive_max_waiters=1) as database:
        noisy = [asyncio.create_task(expensive(database)) for _ in range(2)]
        await wait_until(lambda: lane(database, EXPENSIVE).waiting == 1, *noisy)

        with pytest.raises(PoolExhausted, match="lane expensive"):
            await expensive(database)

        await end(noisy)


REPORTS = LaneSpec("reports", share=2, queue=1, deadline=MINUTE)


async def report(database: Database, seconds: float = MINUTE) -> None:
    with in_lane("reports"):
        await database.read.first(SLEEP, seconds=seconds)


async def test_lane_of_the_application_holds_its_share_and_its_queue(new_database: NewDatabase) -> None:
    async with new_database(size=3, own_lanes=(REPORTS,)) as database:
        reports = [asyncio.create_task(report(database)) for _ in range(3)]
        await wait_until(lambda: lane(database, "reports") == ("reports", 2, 1, 2), *reports)

        with pytest.raises(PoolExhausted, match=r"lane reports .* its queue is full \(1\)"):
            await report(database)
        assert await database.read.first(PID)
        await expensive(database, 0)

        await end(reports)
        assert lane(database, "reports")[1:3] == (0, 0)


async def test_lane_of_the_application_holds_its_deadline(new_database: NewDatabase) -> None:
    lanes = (LaneSpec("reports", share=1, queue=1, deadline=0.05),)
    async with new_database(own_lanes=lanes) as database:
        async with checked_out(database):  # opens a connection, which may take longer than the deadline
            pass
        reports = [asyncio.create_task(report(database))]
        await wait_until(lambda: lane(database, "reports").running == 1, *reports)

        with pytest.raises(PoolExhausted, match=r"lane reports .* no room after 0\.\d s"):
            await report(database)

        await end(reports)


async def test_checkout_after_a_wait_elsewhere_has_the_rest_of_its_time(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a wait for the lane of a standby that failed then."""
    left: list[float] = []
    enter = Lane.enter

    def entered(self: Lane, deadline: float) -> None:
        left.append(deadline - time.monotonic())
        enter(self, deadline)

    monkeypatch.setattr(Lane, "enter", entered)
    async with new_database() as database:
        with in_lane(EXPENSIVE), after_waiting(MINUTE):
            await database.read.first(QUICK)

    assert len(left) == 1
    assert 0 < left[0] <= MINUTE / 2


async def test_connections_of_an_unused_lane_serve_the_others(new_database: NewDatabase) -> None:
    async with new_database(size=2, own_lanes=(REPORTS,)) as database:
        reading = [asyncio.create_task(database.read.first(SLEEP, seconds=MINUTE + number)) for number in range(2)]
        await wait_until(lambda: lane(database, NORMAL).running == 2, *reading)

        reports = [asyncio.create_task(report(database))]
        await wait_until(lambda: state(database).waiting == 1, *reading, *reports)
        await end(reading[:1])
        await wait_until(lambda: (lane(database, NORMAL).running, lane(database, "reports").running) == (1, 1))

        await end([*reading, *reports])


async def test_lane_rests_only_while_another_lane_is_used(new_database: NewDatabase) -> None:
    lanes = (LaneSpec("reports", share=0.01, queue=9, deadline=MINUTE),)
    async with new_database(own_lanes=lanes) as database:
        await report(database, 0)
        await report(database, 0)  # rests otherwise

        running = [asyncio.create_task(expensive(database))]
        await wait_until(lambda: lane(database, EXPENSIVE).running == 1, *running)
        await report(database, 0.01)
        waiting = [asyncio.create_task(report(database, 0))]
        await wait_until(lambda: lane(database, "reports")[1:3] == (0, 1), *waiting)
        await asyncio.gather(*waiting)

        await end(running)


async def test_unknown_lane_is_refused_with_the_place_to_declare_it(new_database: NewDatabase) -> None:
    async with new_database() as database:
        for _ in range(2):  # without and with an idle connection
            with pytest.raises(LookupError, match=r"no lane 'reports': declare it in OWN_LANES of app/lanes\.py"):
                await report(database)
            assert await database.read.first(PID)


async def test_equal_reads_in_a_lane_share_its_statements(new_database: NewDatabase) -> None:
    async def read() -> Any:
        with in_lane(EXPENSIVE):
            return await database.read.all(QUICK)

    async with new_database() as database:
        noisy = [asyncio.create_task(expensive(database))]
        await wait_until(lambda: lane(database, EXPENSIVE).running == 1, *noisy)
        reading = [asyncio.create_task(read()) for _ in range(5)]
        # The first read is sent as it is; the others share a statement.
        await wait_until(lambda: lane(database, EXPENSIVE).waiting == 2, *reading)

        assert await database.read.all(QUICK), "the lane normal does not wait for them"
        assert lane(database, EXPENSIVE)[1:3] == (1, 2)

        await end(noisy)
        rows = await asyncio.gather(*reading)
        assert [[row["one"] for row in each] for each in rows] == [[1]] * 5


async def test_failed_statement_leaves_its_lane(new_database: NewDatabase) -> None:
    async with new_database() as database:
        for _ in range(3):
            with pytest.raises(Exception, match="division by zero"):
                await failing(database)

        assert lane(database, EXPENSIVE).running == 0
        await expensive(database, 0)


async def failing(database: Database) -> None:
    with in_lane(EXPENSIVE):
        await database.read.first(select((literal(1) / literal(0)).label("broken")))


async def test_critical_checkout_overtakes_a_full_queue(new_database: NewDatabase) -> None:
    served: list[str] = []

    async def check_out(name: str) -> None:
        async with checked_out(database):
            served.append(name)

    async with new_database(size=1, max_waiters=2) as database:
        async with checked_out(database):
            normal = [asyncio.create_task(check_out(name)) for name in ("first", "second")]
            await wait_until(lambda: state(database).waiting == 2, *normal)
            with in_lane(CRITICAL):
                critical = asyncio.create_task(check_out("critical"))
            await wait_until(lambda: lane(database, CRITICAL).waiting == 1, critical)
        await asyncio.gather(*normal, critical)

        assert served == ["critical", "first", "second"]
        assert lane(database, CRITICAL)[1:3] == (0, 0)


async def test_writes_are_not_watched_and_shared_reads_by_key_have_one_name(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[str] = []
    async with new_database() as database:
        pool = pool_of(database)
        checkout = pool.checkout_nowait

        def watch(work: str = "") -> Any:
            watched.append(work)
            return checkout(work)

        monkeypatch.setattr(pool, "checkout_nowait", watch)
        await database.read.first(QUICK)
        await asyncio.gather(database.read.one(BY_ID, 1), database.read.one(BY_ID, 2))
        pool.coalesce_max = 1
        await database.read.one(BY_ID, 1)
        await database.statement.returned(
            update(Contact).where(Contact.id == -1).values(name="Ann").returning(Contact.id)
        )

    [read, *shared, by_key, write] = watched
    assert read.startswith("SELECT")
    assert set(shared) == {SHARED}
    assert by_key.startswith("SELECT"), "nothing bounds reads by key that share no statement"
    assert write == ""


async def test_expensive_read_is_found_and_moved(new_database: NewDatabase) -> None:
    """20 noisy callers run a slow statement, others a quick one: soon only one slow statement runs at a time."""
    async with new_database(size=10, expensive_max_waiters=100) as database:
        stop = asyncio.Event()

        async def noisy() -> None:
            while not stop.is_set():
                await database.read.first(SLEEP, seconds=0.1)

        async def quick() -> None:
            while not stop.is_set():
                await database.read.first(QUICK)
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(each()) for each in (noisy,) * 20 + (quick,) * 2]
        await wait_until(lambda: pool_of(database).moved_statements == 1, *tasks)
        # The statements that run in the normal lane end. The others wait for the expensive lane.
        await wait_until(lambda: lane(database, EXPENSIVE)[1:3] == (1, 19), *tasks)
        assert state(database).waiting == 0
        assert lane(database, EXPENSIVE).limit == 1

        stop.set()
        change_options(database, timeout=MINUTE)
        await asyncio.gather(*tasks)
        assert lane(database, EXPENSIVE)[1:3] == (0, 0)
