"""PostgreSQL restarts, with two replicas of the API connected. test_faults.py restarts it under load."""

from functools import partial

import httpx
import pytest
import uvloop

from tests.support import sample
from tests.support.load import load
from tests.support.stacks import ComposeStack
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone


def rows(stack: ComposeStack) -> list[str]:
    """Create rows. Return their addresses at both replicas: equal reads would share a connection."""
    address = f"{stack.apis[0]}{sample.PATH}"
    created = [httpx.post(address, json=sample.new(f"restart{number}"), timeout=30) for number in range(20)]
    return [f"{api}{each.headers['location']}" for each in created for api in stack.apis]


def test_request_after_a_restart_gets_no_dead_connection(replicas: ComposeStack) -> None:
    """The connections in the pools are idle when the server closes them."""
    urls = rows(replicas)
    answers = uvloop.run(load(urls, clients=40, seconds=1))  # lets every worker open connections
    assert set(answers.statuses) == {200}

    replicas.compose("restart", "postgres")
    for api in replicas.apis:
        eventually(partial(is_ready, api), within=60)
    answers = uvloop.run(load(urls, clients=40, seconds=2))

    assert set(answers.statuses) == {200}


def is_ready(api: str) -> bool:
    return httpx.get(f"{api}/readyz").status_code == 200
