"""Replicas of production leave and come back behind the proxy, while clients read and write."""

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
import uvloop

from benchmarks.fault.ledger import Comparison, Ledger
from benchmarks.fault.traffic import Account, Failure, Traffic
from tests.support.proxied import docker
from tests.support.stacks import ProdStack
from tests.support.waiting import eventually

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def account(prod: ProdStack) -> Account:
    prod.sql("DELETE FROM sign_in_attempts")  # of other tests, which fail to sign in from this address
    writer = {"email": "writer@example.com", "name": "Writer", "password": "correct horse"}
    created = prod.client.post("/users", json=writer).raise_for_status()
    form = {"username": writer["email"], "password": writer["password"]}
    token = prod.client.post("/auth/token", data=form).raise_for_status().json()["access_token"]
    return Account(created.headers["location"], token)


def stop_and_start(prod: ProdStack, replica: str) -> None:
    """Stop a replica as a deploy does, and start it again."""
    docker("stop", replica)
    docker("start", replica)
    eventually(lambda: prod.replicas_in_proxy() == 2, within=60)


def kill_and_start(prod: ProdStack, replica: str) -> None:
    docker("kill", replica)
    eventually(lambda: prod.replicas_in_proxy() == 1, within=60)
    docker("start", replica)
    eventually(lambda: prod.replicas_in_proxy() == 2, within=60)


def traffic_while(
    prod: ProdStack, account: Account, change: Callable[[ProdStack, str], None]
) -> tuple[Traffic, Comparison]:
    """Let 12 clients write and 12 read while `change` runs in a thread. Compare the ledger with the rows."""
    replica = prod.compose("ps", "--quiet", "api").split()[0]
    ledger = Ledger()

    async def run() -> Traffic:
        port = httpx.URL(prod.api).port
        assert port
        traffic = Traffic(port, account, ledger, tls=prod.tls, writers=12, readers=12)
        traffic.start()
        await asyncio.to_thread(change, prod, replica)
        await traffic.stop()
        return traffic

    traffic = uvloop.run(run())
    rows = prod.sql(f"SELECT title FROM posts WHERE title LIKE '{ledger.prefix}%'")
    return traffic, ledger.compare(title for [title] in rows)


def test_replica_that_stops_and_starts_loses_no_request(prod: ProdStack, account: Account) -> None:
    traffic, writes = traffic_while(prod, account, stop_and_start)

    assert [exchange for exchange in traffic.exchanges if not exchange.succeeded or exchange.is_wrong] == []
    assert (writes.acknowledged_missing, writes.stored_twice) == (0, 0)


def test_killed_replica_fails_only_requests_in_progress_and_honestly(prod: ProdStack, account: Account) -> None:
    traffic, writes = traffic_while(prod, account, kill_and_start)

    failed = Counter(exchange.result for exchange in traffic.exchanges if not exchange.succeeded)
    # A write gets 502. A read is sent again, unless its response had begun: then the connection ends.
    assert set(failed) <= {502, Failure.BROKEN}, failed
    assert failed[502] <= 12, "one request in progress for each client that writes"
    assert failed[Failure.BROKEN] <= 2, failed
    assert not any(exchange.is_wrong for exchange in traffic.exchanges)
    assert (writes.acknowledged_missing, writes.stored_twice, writes.refused_present) == (0, 0, 0)
