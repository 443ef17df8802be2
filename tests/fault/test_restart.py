"""PostgreSQL restarted: who notices, and for how long."""

import asyncio
import os
from collections.abc import Iterator
from time import monotonic

import httpx
import pytest
import uvloop

from tests.support.docker import require_engine
from tests.support.load import Answers, load
from tests.support.stacks import ComposeStack
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    require_engine()
    with ComposeStack(f"headroom-restart-{os.getpid()}").running() as stack:
        yield stack


def warm_up(stack: ComposeStack) -> None:
    """Every worker has connections."""
    answers = uvloop.run(load([f"{stack.api}/posts?cursor="], clients=40, seconds=1))
    assert set(answers.statuses) == {200}


def test_after_a_restart_nobody_gets_a_connection_that_died_while_it_was_idle(stack: ComposeStack) -> None:
    warm_up(stack)

    stack.compose("restart", "postgres")
    eventually(lambda: httpx.get(f"{stack.api}/readyz").status_code == 200, within=30)
    answers = uvloop.run(load([f"{stack.api}/posts?cursor="], clients=40, seconds=2))

    assert set(answers.statuses) == {200}


def test_a_restart_under_load_is_a_short_honest_outage(stack: ComposeStack) -> None:
    warm_up(stack)

    async def restarted() -> tuple[Answers, float]:
        answers = asyncio.create_task(
            load([f"{stack.api}/posts?cursor="], clients=40, seconds=12, patient=False, pause=0.05)
        )
        await asyncio.sleep(1)
        await asyncio.to_thread(stack.compose, "restart", "postgres")
        back = monotonic()
        return await answers, back

    answers, back = uvloop.run(restarted())
    failed = [started + seconds for started, status, seconds in answers.each if status != 200]

    assert set(answers.statuses) == {200, 503}, "no 500, and no connection that breaks"
    assert max(failed) - back < 5, "seconds from the server's return to the last error"
    assert answers.seconds(503)[-1] < 5
    print(
        f"{len(failed)} of {len(answers.each)} answers were 503; the last {max(failed) - back:.1f} s after the return"
    )
