"""The metrics are the truth: with known traffic, after a kill, while every worker is stuck, and beside the server's."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from threading import Event
from time import monotonic

import httpx
import psycopg
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import URL

from app.database.conninfo import parameters
from app.observability.multiprocess import HEARTBEAT_SECONDS
from tests.support.load import load
from tests.support.postgres import as_role
from tests.support.serving import exporter_of, holding_api
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually

HOLD_SECONDS = 0.5
REQUESTS = 24
STUCK_SECONDS = 20.0
WAITING = 3


class Watched:
    """An API whose workers have one connection each, and its exporter."""

    def __init__(self, api: str, exporter: str) -> None:
        self.api = api
        self.exporter = exporter

    def total(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(httpx.get(f"{self.exporter}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.fixture
def watched(database: URL, tmp_path: Path) -> Iterator[Watched]:
    one_connection = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "60"}
    with (
        holding_api(as_role(database, "headroom_app"), tmp_path, **one_connection) as api,
        exporter_of(api, as_role(database, "headroom_monitor"), tmp_path) as exporter,
    ):
        yield Watched(api, exporter)


def at_once(number: int, call: Callable[[], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(number) as threads:
        return [each.result() for each in [threads.submit(call) for _ in range(number)]]


def test_known_traffic_is_counted_exactly_and_timed_within_a_twentieth(watched: Watched) -> None:
    def hold() -> httpx.Response:
        return httpx.get(f"{watched.api}/hold", params={"ms": HOLD_SECONDS * 1000}, timeout=60).raise_for_status()

    at_once(8, hold)  # every worker that will be asked has opened its connection, or soon will
    names = ("checkouts_total", "waits_total", "wait_blocked_seconds_total", "use_seconds_sum", "use_seconds_count")
    before = {name: watched.total(f"db_pool_{name}") for name in names}

    answers = at_once(REQUESTS, hold)
    per_worker = Counter(answer.json()["worker"] for answer in answers)

    grown = {name: watched.total(f"db_pool_{name}") - before[name] for name in names}
    assert len(per_worker) > 1, "more than one worker answered"
    assert grown["checkouts_total"] == grown["use_seconds_count"] == REQUESTS
    # All came while the first was held, so in each worker all but that one had to wait.
    assert grown["waits_total"] == REQUESTS - len(per_worker)
    assert grown["use_seconds_sum"] == pytest.approx(REQUESTS * HOLD_SECONDS, rel=0.05)
    # What a client waited beyond the hold, it waited in the queue.
    blocked = sum(answer.elapsed.total_seconds() - HOLD_SECONDS for answer in answers)
    assert grown["wait_blocked_seconds_total"] == pytest.approx(blocked, rel=0.05)


def test_with_every_worker_stuck_each_scrape_answers_within_a_second_and_shows_the_queue(watched: Watched) -> None:
    workers = 4
    answers = []
    with ThreadPoolExecutor(workers) as threads:
        # A worker that is stuck accepts nothing, so each of these gets one that is not.
        query = {"seconds": STUCK_SECONDS, "waiting": WAITING}
        for number in range(workers):
            answers.append(threads.submit(httpx.get, f"{watched.api}/stick", params=query, timeout=60))
            eventually(lambda n=number: watched.total("db_pool_pending_requests") == WAITING * (n + 1), within=10)  # type: ignore[misc]

        slowest = 0.0
        pause = Event()
        while not any(answer.done() for answer in answers):
            started = monotonic()
            pending = watched.total("db_pool_pending_requests")
            slowest = max(slowest, monotonic() - started)
            assert pending == WAITING * workers or any(answer.done() for answer in answers)
            pause.wait(0.25)
        assert slowest < 1
        assert {answer.result().json()["worker"] for answer in answers} == {"1", "2", "3", "4"}
    eventually(lambda: watched.total("db_pool_pending_requests") == 0, within=5)


def test_after_a_kill_no_counter_goes_back_and_the_gauges_lose_the_worker(stack: Stack) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: httpx.get(f"{stack.api}/posts"), range(100)))
    before = scrape(stack)
    killed = set(stack.worker_pids())

    stack.kill_worker(min(killed))

    def replaced() -> bool:
        now = scrape(stack)
        starts = [key for key in now if key[0] == "headroom_worker_start_time_seconds"]
        renewed = [key for key in starts if now[key] != before.get(key)]
        return len(starts) == 4 and len(renewed) == 1

    eventually(replaced, within=15)
    after = scrape(stack)
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert len(counters) > 100
    assert [key for key in counters if after[key] < before[key]] == []
    assert total(stack, "headroom_worker_starts_total") == before_starts(before) + 1


def before_starts(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> float:
    return sum(value for (name, _), value in samples.items() if name == "headroom_worker_starts_total")


def views(stack: Stack) -> tuple[float, float]:
    """The API's connections, as the server counts them and as the pools do, of one scrape."""
    samples = scrape(stack)

    def count(name: str, **labels: str) -> float:
        return sum(
            value for (sample, has), value in samples.items() if sample == name and labels.items() <= dict(has).items()
        )

    return count("db_server_connections", application="headroom:api"), count("db_pool_connections")


def test_under_steady_load_the_server_and_the_pools_agree_and_a_leak_makes_them_differ(stack: Stack) -> None:
    uvloop.run(load([f"{stack.api}/posts?cursor="], clients=8, seconds=2))  # the pools have what they need

    with ThreadPoolExecutor(1) as threads:
        traffic = threads.submit(uvloop.run, load([f"{stack.api}/posts?cursor="], clients=8, seconds=6))
        seen, pause = [], Event()
        while not traffic.done():
            seen.append(views(stack))
            pause.wait(2 * HEARTBEAT_SECONDS)  # the gauges are as old as that
        assert len(seen) > 5
        # What is just being opened or closed is in one of them for a moment, and in both or none at the next scrape,
        # unless the pools have opened or closed another one by then.
        assert all(a == b or c == d or b != d for (a, b), (c, d) in pairwise(seen)), seen
        assert sum(server == pools for server, pools in seen) > len(seen) / 2, seen
        assert max(pools for _, pools in seen) > 0

    leaked = parameters(as_role(stack.database_url(), "headroom_app"))
    if stack.database_url().password:
        leaked["password"] = stack.database_url().password
    with closing(psycopg.connect(**leaked, application_name="headroom:api:forgotten:1")):

        def differ() -> bool:
            server, pools = views(stack)
            return server == pools + 1

        eventually(differ, within=5)
        live = httpx.get(f"{stack.exporter}/live.json").json()
        eventually(lambda: httpx.get(f"{stack.exporter}/live.json").json()["server"]["disagreement"] == 1, within=5)
        assert "ViewsDisagree" in {condition["name"] for condition in live["conditions"]}
