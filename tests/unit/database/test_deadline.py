"""The deadline of a checkout."""

import asyncio
import time

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from app.database import deadline
from app.database.deadline import call_within, checkout_deadline, current_deadline, seconds_left
from tests.support.clock import Clock

NEVER = float("inf")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the module under test, and nothing else's."""
    clock = Clock()

    class Time:
        monotonic = staticmethod(clock.monotonic)

    monkeypatch.setattr(deadline, "time", Time)
    return clock


async def test_call_within_returns_the_result_of_the_call() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await greenlet_spawn(call_within, 60, lambda: await_only(work())) == 7


async def test_call_within_raises_the_error_of_the_call() -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await greenlet_spawn(call_within, 60, fail)


async def test_call_within_without_a_limit_returns_the_result() -> None:
    """Outside a checkout, `seconds_left()` is infinite."""
    assert await greenlet_spawn(call_within, NEVER, lambda: 7) == 7


async def test_call_within_cancels_the_call_and_raises_timeout_error() -> None:
    cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        await greenlet_spawn(call_within, 0, lambda: await_only(hang()))
    assert cancelled.is_set()


def test_deadline_outside_a_checkout_is_infinite() -> None:
    assert current_deadline() == seconds_left() == NEVER


def test_nested_checkout_deadline_restores_the_outer_one() -> None:
    with checkout_deadline(2.0):
        with checkout_deadline(1.0):
            assert current_deadline() == 1.0
        assert current_deadline() == 2.0
    assert current_deadline() == NEVER


def test_checkout_deadline_is_restored_after_an_error() -> None:
    with pytest.raises(LookupError), checkout_deadline(1.0):
        raise LookupError
    assert current_deadline() == NEVER


async def test_checkout_deadline_is_inherited_by_a_task_but_not_shared() -> None:
    """A connection that is opened in the background has the deadline of its caller, and may set its own."""

    async def open_connection() -> float:
        inherited = current_deadline()
        with checkout_deadline(inherited + 1):
            await asyncio.sleep(0)
        return inherited

    with checkout_deadline(1.0):
        task = asyncio.create_task(open_connection())
    assert await task == 1.0
    assert current_deadline() == NEVER


def test_seconds_left_counts_down_and_is_never_negative(clock: Clock) -> None:
    with checkout_deadline(clock.now + 2):
        assert seconds_left() == 2
        clock.now += 1.5
        assert seconds_left() == 0.5
        clock.now += 60
        assert seconds_left() == 0
    assert time.monotonic() != clock.now, "only the module under test has the simulated clock"
