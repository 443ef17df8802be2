"""The queue of waiters, and CoDel, on a simulated clock."""

import asyncio

from app.database.wait_queue import ControlledDelay, Shed, WaitQueue

TARGET, INTERVAL = 0.05, 1.0

Waiter = asyncio.Future[str]


def new_queue() -> WaitQueue[str]:
    return WaitQueue(ControlledDelay(TARGET, INTERVAL))


def waiter() -> Waiter:
    return asyncio.get_running_loop().create_future()


class Overloaded(ControlledDelay):
    """The delay of a queue that is overloaded, and stays so."""

    def note(self, waited: float, now: float) -> None:
        self.is_overloaded = True


def overloaded_queue() -> WaitQueue[str]:
    return WaitQueue(Overloaded(TARGET, INTERVAL))


def is_shed(each: Waiter) -> bool:
    return each.done() and isinstance(each.exception(), Shed)


async def test_waiters_are_popped_in_order_of_arrival() -> None:
    queue = new_queue()
    waiters = [waiter() for _ in range(3)]
    for each in waiters:
        queue.add(each, 10.0)

    assert [queue.pop(10.0) for _ in range(4)] == [*waiters, None]


async def test_critical_waiter_is_popped_before_earlier_waiters() -> None:
    queue = new_queue()
    normal, first, second = waiter(), waiter(), waiter()
    queue.add(normal, 10.0)
    queue.add(first, 10.1, is_critical=True)
    queue.add(second, 10.2, is_critical=True)

    assert queue.critical == 2
    assert list(queue) == [first, second, normal]
    assert [queue.pop(10.3) for _ in range(3)] == [first, second, normal]


async def test_waiter_that_has_left_is_passed_over() -> None:
    queue = new_queue()
    left, cancelled, waits = waiter(), waiter(), waiter()
    for each in (left, cancelled, waits):
        queue.add(each, 10.0)
    queue.discard(left)
    cancelled.cancel()

    assert queue.pop(10.0) is waits
    assert len(queue) == 0


async def test_long_wait_in_a_burst_sheds_nothing() -> None:
    queue = new_queue()
    waiters = [waiter() for _ in range(20)]
    for each in waiters:
        queue.add(each, 10.0)

    popped = [queue.pop(10.0 + 0.04 * number) for number in range(20)]

    assert popped == waiters, "the last one waited 0.76 s, within the first interval"


async def test_overloaded_queue_sheds_what_waited_twice_the_target() -> None:
    queue, now = overloaded_queue(), 10.0
    old, at_limit, young = waiter(), waiter(), waiter()
    queue.add(old, now)
    queue.add(at_limit, now + 0.05)
    queue.add(young, now + 0.1)

    assert queue.pop(now + 0.149) is at_limit
    assert is_shed(old)
    assert not young.done()


async def test_overloaded_queue_never_sheds_its_last_waiter() -> None:
    queue, now = overloaded_queue(), 10.0
    waiters = [waiter() for _ in range(3)]
    for each in waiters:
        queue.add(each, now)

    assert queue.pop(now + 0.9) is waiters[2]
    assert all(map(is_shed, waiters[:2]))


async def test_overloaded_queue_never_sheds_a_critical_waiter() -> None:
    queue, now = overloaded_queue(), 10.0
    critical, normal = waiter(), waiter()
    queue.add(critical, now, is_critical=True)
    queue.add(normal, now + 0.8)

    assert queue.pop(now + 0.9) is critical


async def test_overloaded_queue_sheds_nothing_unless_allowed() -> None:
    queue, now = overloaded_queue(), 10.0
    first, second = waiter(), waiter()
    queue.add(first, now)
    queue.add(second, now)

    assert queue.pop(now + 0.9, may_shed=False) is not None
    assert not first.done()


async def test_queue_that_was_empty_once_in_an_interval_is_not_overloaded() -> None:
    delay = ControlledDelay(TARGET, INTERVAL)
    for tick in range(30):
        delay.note(0.0 if tick % 10 == 5 else 0.08, 10.0 + tick / 10)
        assert not delay.is_overloaded


async def test_delay_above_target_for_an_interval_is_overload() -> None:
    delay = ControlledDelay(TARGET, INTERVAL)
    states = []
    for tick in range(25):
        delay.note(0.08, 10.0 + tick / 10)
        states.append(delay.is_overloaded)

    assert states == [False] * 10 + [True] * 15
    assert delay.longest == 2 * TARGET


async def test_overload_ends_after_an_interval_with_a_short_wait() -> None:
    delay = ControlledDelay(TARGET, INTERVAL)
    for tick in range(15):
        delay.note(0.08, 10.0 + tick / 10)
    delay.note(0.04, 11.6)
    assert delay.is_overloaded

    delay.note(0.08, 12.1)

    assert not delay.is_overloaded


async def test_overload_goes_on_while_waiters_are_shed() -> None:
    """Shedding empties the queue for a moment: a short wait then is no end of the overload."""
    delay = ControlledDelay(TARGET, INTERVAL)
    for now in (0.0, 0.5, 1.0):
        delay.note(0.2, now)
    assert delay.is_overloaded

    delay.shed()
    for now in (1.5, 2.0):
        delay.note(0.0, now)
    assert delay.is_overloaded

    for now in (2.5, 3.0):
        delay.note(0.0, now)
    assert not delay.is_overloaded


async def test_waits_of_long_ago_are_no_overload() -> None:
    delay = ControlledDelay(TARGET, INTERVAL)
    for tick in range(9):
        delay.note(0.08, 10.0 + tick / 10)

    delay.note(0.0, 13.0)

    assert not delay.is_overloaded


async def test_served_waits_under_overload_stay_below_twice_the_target() -> None:
    """Simulate 5 times more arrivals than the server can serve, in steps of 10 ms."""
    queue = new_queue()
    arrived: dict[Waiter, float] = {}
    waits = []
    for tick in range(1000):
        now = 10.0 + tick / 100
        if tick % 2 == 0:
            each = waiter()
            arrived[each] = now
            queue.add(each, now)
        if tick % 10 == 0 and (served := queue.pop(now)) is not None:
            served.set_result("served")
            waits.append(now - arrived[served])

    assert len(waits) == 100, "shedding costs no throughput"
    assert max(waits[20:]) <= 2 * TARGET + 1e-9
