"""What the processes of a replica know of each other."""

import pytest

from app import replica as replica_module
from app.replica import READY_WITHIN_SECONDS, STUCK_AFTER_SECONDS, Replica


class Clock:
    """A clock that the test sets, in seconds."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(replica_module, "time", clock)
    return clock


@pytest.fixture
def replica(clock: Clock) -> Replica:
    """Return a replica of three workers that are starting."""
    replica = Replica()
    replica.expect(3)
    for slot in (1, 2, 3):
        replica.add_slot(slot)
    return replica


def test_replica_is_ready_once_every_worker_serves(replica: Replica) -> None:
    assert replica.why_not_ready() == "0 of 3 workers serve"
    replica.serve(1)
    replica.serve(3)
    assert replica.why_not_ready() == "2 of 3 workers serve"
    assert replica.is_starting_workers

    replica.serve(2)

    assert replica.why_not_ready() is None
    assert not replica.is_starting_workers


def test_broken_worker_delays_readiness_for_a_bounded_time(replica: Replica, clock: Clock) -> None:
    clock.now += 60
    assert replica.why_not_ready() == "0 of 3 workers serve", "the time begins with the first worker that serves"
    replica.serve(1)
    clock.now += READY_WITHIN_SECONDS - 0.1
    assert replica.why_not_ready() is not None
    clock.now += 0.1

    assert replica.why_not_ready() is None


def test_ready_replica_stays_ready_while_a_worker_is_replaced(replica: Replica) -> None:
    for slot in (1, 2, 3):
        replica.serve(slot)
    assert replica.why_not_ready() is None

    replica.leave(1)
    replica.clear_slot(2)
    replica.add_slot(2)

    assert replica.why_not_ready() is None
    assert replica.serving() == [3]


def test_stopping_replica_is_not_ready_and_serves_until_its_time(replica: Replica, clock: Clock) -> None:
    for slot in (1, 2, 3):
        replica.serve(slot)
    replica.stop(after=5)
    clock.now += 2

    assert replica.why_not_ready() == "the replica is stopping"
    assert replica.seconds_to_stop == 3
    replica.stop(after=60)
    assert replica.seconds_to_stop == 3, "a later announcement does not extend the time"
    replica.stop()
    assert replica.seconds_to_stop == 0
    assert replica.is_stopping


def test_stuck_worker_does_not_count_as_serving(replica: Replica, clock: Clock) -> None:
    replica.serve(1)
    replica.serve(2)
    clock.now += STUCK_AFTER_SECONDS + 0.1
    replica.tick(2)

    assert replica.serving() == [2]


def test_replica_without_gunicorn_is_ready() -> None:
    assert Replica().why_not_ready() is None
