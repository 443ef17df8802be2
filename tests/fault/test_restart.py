"""PostgreSQL restarts, with two replicas of the API connected. test_faults.py restarts it under load."""

from functools import partial

import httpx
import pytest
import uvloop

from tests.support.load import load
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
