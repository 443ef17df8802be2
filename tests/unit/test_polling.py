"""The poll loop, on a simulated clock: no test waits."""

import pytest

from app import polling
from app.polling import poll
from tests.support.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of the module under test, and nothing else's."""
    clock = Clock()

    class Time:
        monotonic = staticmethod(clock.monotonic)

    class Asyncio:
        sleep = staticmethod(clock.sleep)

    monkeypatch.setattr(polling, "time", Time)
    monkeypatch.setattr(polling, "asyncio", Asyncio)
    return clock


class Attempts:
    """Returns the numbers of its calls, from 1."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


async def test_poll_with_satisfied_condition_returns_without_sleeping(clock: Clock) -> None:
    attempt = Attempts()

    assert await poll(attempt, until=lambda result: result == 1, deadline=clock.now + 60, every=1) == 1
    assert clock.sleeps == []


async def test_poll_sleeps_between_attempts_until_satisfied(clock: Clock) -> None:
    attempt = Attempts()

    assert await poll(attempt, until=lambda result: result == 3, deadline=clock.now + 60, every=0.5) == 3
    assert clock.sleeps == [0.5, 0.5]


@pytest.mark.parametrize("seconds_ago", [0, 60])
async def test_poll_after_the_deadline_makes_one_attempt(clock: Clock, seconds_ago: float) -> None:
    attempt = Attempts()

    assert await poll(attempt, until=lambda _: False, deadline=clock.now - seconds_ago, every=1) == 1
    assert (attempt.count, clock.sleeps) == (1, [])


async def test_poll_at_the_deadline_returns_the_last_result(clock: Clock) -> None:
    attempt = Attempts()

    assert await poll(attempt, until=lambda _: False, deadline=clock.now + 2, every=1) == 3
    assert clock.now == 1002


async def test_poll_starts_its_last_attempt_at_the_deadline(clock: Clock) -> None:
    """It slept for the whole interval and attempted once more after the deadline."""
    starts: list[float] = []

    async def slow_attempt() -> None:
        starts.append(clock.now)
        clock.now += 1.2

    await poll(slow_attempt, until=lambda _: False, deadline=clock.now + 2, every=1)

    assert starts == [1000, 1002]


async def test_poll_raises_the_error_of_an_attempt(clock: Clock) -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await poll(fail, until=lambda _: True, deadline=clock.now + 60, every=1)
