"""PostgreSQL restarts, with two replicas of the API connected."""

import asyncio
from functools import partial
from time import monotonic

import httpx
import pytest
import uvloop

from tests.support.load import Answers, load
from tests.support.stacks import ComposeStack
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone


def lists(stack: ComposeStack) -> list[str]:
    return [f"{api}/posts?cursor=" for api in stack.apis]


def warm_up(stack: ComposeStack) -> None:
    """Let every worker open connections."""
    answers = uvloop.run(load(lists(stack), clients=40, seconds=1))
    assert set(answers.statuses) == {200}


def test_request_after_a_restart_gets_no_dead_connection(replicas: ComposeStack) -> None:
    """The connections in the pools are idle when the server closes them."""
    warm_up(replicas)

    replicas.compose("restart", "postgres")
    for api in replicas.apis:
        eventually(partial(is_ready, api), within=30)
    answers = uvloop.run(load(lists(replicas), clients=40, seconds=2))

    assert set(answers.statuses) == {200}


def is_ready(api: str) -> bool:
    return httpx.get(f"{api}/readyz").status_code == 200


def test_restart_under_load_causes_only_503_for_seconds(replicas: ComposeStack) -> None:
    warm_up(replicas)

    async def restarted() -> tuple[Answers, float]:
        answers = asyncio.create_task(load(lists(replicas), clients=40, seconds=12, patient=False, pause=0.05))
        await asyncio.sleep(1)
        await asyncio.to_thread(replicas.compose, "restart", "postgres")
        back = monotonic()
        return await answers, back

    answers, back = uvloop.run(restarted())
    failed = [started + seconds for started, status, seconds in answers.each if status != 200]

    assert set(answers.statuses) == {200, 503}, "no 500, and no connection of a client breaks"
    assert max(failed) - back < 5, "seconds from the server's return to the last error"
    assert answers.seconds(503)[-1] < 5
    print(
        f"{len(failed)} of {len(answers.each)} answers were 503; the last {max(failed) - back:.1f} s after the return"
    )
