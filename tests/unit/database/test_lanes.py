"""A lane's limit, rest and queue, on a simulated clock."""

import asyncio
import math
from typing import Any

import pytest
from sqlalchemy.util import greenlet_spawn

from app.database import lanes
from app.database.lanes import Lane, current_lane, in_lane
from app.database.wait_queue import ControlledDelay
from app.errors import PoolExhausted
from app.lanes import CRITICAL, EXPENSIVE, NORMAL, LaneSpec, lane_names
from tests.support.clock import Clock

LATER = float("inf")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the module under test, and nothing else's."""
    clock = Clock()

    class Time:
        monotonic = staticmethod(clock.monotonic)

    monkeypatch.setattr(lanes, "time", Time)
    return clock


class Others:
    are_busy = True


class Subject:
    """A lane, and what it told its observer."""

    def __init__(self, share: float, max_waiters: int = 10) -> None:
        self.shed: list[tuple[str, str]] = []
        self.others = Others()
        self.lane = Lane(
            EXPENSIVE,
            share,
            max_waiters,
            3.0,
            ControlledDelay(0.5, 1.0),
            lambda lane, reason: self.shed.append((lane, reason)),
            lambda: self.others.are_busy,
        )

    async def waiter(self, deadline: float = 1e6) -> "asyncio.Task[Any]":
        """Start a wait for the lane, and return it when it is in the queue, or admitted."""
        task = asyncio.create_task(greenlet_spawn(self.lane.enter, deadline))
        await settle()
        return task


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("share", "limit"), [(0.25, 1), (1.0, 1), (1.9, 1), (2.0, 2), (5.5, 5)])
def test_lane_admits_its_whole_share_at_a_time(clock: Clock, share: float, limit: int) -> None:
    lane = Subject(share).lane

    assert [lane.enter_nowait(clock.now) for _ in range(limit + 1)] == [True] * limit + [False]
    lane.leave(0.0)
    assert lane.enter_nowait(clock.now)


@pytest.mark.parametrize(("share", "rest"), [(0.25, 0.3), (0.5, 0.1), (1.0, 0.0), (3.0, 0.0)])
def test_lane_below_one_connection_rests_after_each_statement(clock: Clock, share: float, rest: float) -> None:
    lane = Subject(share).lane
    assert lane.enter_nowait(clock.now)

    clock.now += 0.1
    lane.leave(0.1)

    assert lane.enter_nowait(clock.now + rest + 1e-6)
    lane.running -= 1
    if rest:
        assert not lane.enter_nowait(clock.now + rest - 1e-6)


def test_lane_does_not_rest_while_no_other_lane_is_busy(clock: Clock) -> None:
    tested = Subject(0.25)
    tested.others.are_busy = False
    assert tested.lane.enter_nowait(clock.now)

    tested.lane.leave(0.1)

    assert tested.lane.enter_nowait(clock.now)


def test_lane_rests_for_less_than_its_timeout(clock: Clock) -> None:
    """Otherwise a statement that waits from the beginning of the rest would be refused."""
    lane = Subject(0.01).lane
    assert lane.enter_nowait(clock.now)

    lane.leave(60.0)

    assert not lane.enter_nowait(clock.now + lane.timeout * 0.74)
    assert lane.enter_nowait(clock.now + lane.timeout * 0.76)


async def test_lane_with_a_queue_rests_for_longer(clock: Clock) -> None:
    """Rests of 3 s after statements of 10 s would let eight workers run six statements where one is allowed."""
    tested = Subject(0.01)
    assert tested.lane.enter_nowait(clock.now)
    waiter = await tested.waiter()

    tested.lane.leave(60.0)
    waiter.cancel()
    await asyncio.wait([waiter])

    assert not tested.lane.enter_nowait(clock.now + tested.lane.timeout * 2.9)
    assert tested.lane.enter_nowait(clock.now + tested.lane.timeout * 3.1)


async def test_waiters_are_admitted_in_order_when_room_is_free(clock: Clock) -> None:
    tested = Subject(1.0)
    assert tested.lane.enter_nowait(clock.now)
    first, second = await tested.waiter(), await tested.waiter()
    assert (tested.lane.running, tested.lane.waiting) == (1, 2)

    tested.lane.leave(0.1)
    assert not tested.lane.enter_nowait(clock.now), "a new caller must not overtake the queue"
    await first

    assert not second.done()
    tested.lane.leave(0.1)
    await second
    assert (tested.lane.running, tested.lane.waiting) == (1, 0)


async def test_waiter_is_admitted_at_the_end_of_a_rest(clock: Clock) -> None:
    tested = Subject(0.5)
    assert tested.lane.enter_nowait(clock.now)
    waiter = await tested.waiter()
    tested.lane.leave(0.01)
    await settle()
    assert not waiter.done()

    await asyncio.wait_for(waiter, timeout=30)  # the event loop's timer, after 10 ms

    assert tested.lane.running == 1


async def test_full_queue_of_a_lane_refuses_at_once(clock: Clock) -> None:
    tested = Subject(1.0, max_waiters=1)
    assert tested.lane.enter_nowait(clock.now)
    waiter = await tested.waiter()

    with pytest.raises(PoolExhausted, match=r"lane expensive .* its queue is full \(1\); running=1 waiting=1"):
        await greenlet_spawn(tested.lane.enter, LATER)

    assert tested.shed == [(EXPENSIVE, "full")]
    waiter.cancel()


async def test_waiter_at_its_deadline_leaves_the_lane_queue(clock: Clock) -> None:
    tested = Subject(1.0)
    assert tested.lane.enter_nowait(clock.now)

    with pytest.raises(PoolExhausted, match="no room"):
        await greenlet_spawn(tested.lane.enter, clock.now)

    assert tested.shed == [(EXPENSIVE, "timeout")]
    assert (tested.lane.running, tested.lane.waiting) == (1, 0)


async def test_overloaded_lane_sheds_old_waiters(clock: Clock) -> None:
    tested = Subject(1.0)
    assert tested.lane.enter_nowait(clock.now)
    waiters = [await tested.waiter() for _ in range(4)]
    for _ in range(3):  # three statements of 1.2 s, each with waiters left behind it
        clock.now += 1.2
        tested.lane.leave(1.2)
        await settle()
        waiters.append(await tested.waiter())

    assert (EXPENSIVE, "overload") in tested.shed
    assert [str(each.exception()) for each in waiters if each.done() and each.exception()]
    for each in waiters:
        each.cancel()


async def test_cancelled_waiter_passes_its_room_on(clock: Clock) -> None:
    tested = Subject(1.0)
    assert tested.lane.enter_nowait(clock.now)
    first, second = await tested.waiter(), await tested.waiter()

    tested.lane.leave(0.1)  # admits the first waiter
    first.cancel()
    await second

    assert (tested.lane.running, tested.lane.waiting) == (1, 0)


@pytest.mark.parametrize(
    "values",
    [("Reports", 1, 1, 1), ("", 1, 1, 1), ("r", 0, 1, 1), ("r", math.inf, 1, 1), ("r", 1, -1, 1), ("r", 1, 1, 0)],
)
def test_declared_lane_with_a_wrong_value_is_refused(values: tuple[str, float, int, float]) -> None:
    with pytest.raises(ValueError, match=f"lane '{values[0]}': "):
        LaneSpec(*values)


@pytest.mark.parametrize("names", [("expensive",), ("reports", "reports")])
def test_lane_with_the_name_of_another_lane_is_refused(names: tuple[str, ...]) -> None:
    own = tuple(LaneSpec(name, 1, 1, 1.0) for name in names)

    with pytest.raises(ValueError, match=f"lane '{names[0]}' is declared twice"):
        lane_names(own)


def test_lane_of_a_block_ends_with_the_block() -> None:
    assert current_lane.get() == NORMAL
    with in_lane(EXPENSIVE):
        with in_lane(CRITICAL):
            assert current_lane.get() == CRITICAL
        assert current_lane.get() == EXPENSIVE
    assert current_lane.get() == NORMAL
