"""The metrics are right: with known traffic, after a kill, with stuck workers, and compared with the server's view."""

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
from tests.support import sample
from tests.support.load import load
from tests.support.postgres import as_role
from tests.support.serving import exporter_of, holding_api
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually

HOLD_SECONDS = 0.5
REQUESTS = 24
STUCK_SECONDS = 13.0  # longer than the exporter waits for a heartbeat
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
    one_connection = {
        "DB_POOL_SIZE": "1",
        "DB_MAX_OVERFLOW": "0",
        "DB_POOL_TIMEOUT": "60",
        "DB_QUEUE_TARGET": "60",
        "WORKER_TIMEOUT": "60",
    }
    with (
        holding_api(as_role(database, "headroom_app"), tmp_path, **one_connection) as api,
        exporter_of(api, as_role(database, "headroom_monitor"), tmp_path) as exporter,
    ):
        yield Watched(api, exporter)


def simultaneously(number: int, call: Callable[[], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(number) as threads:
        return [each.result() for each in [threads.submit(call) for _ in range(number)]]


@pytest.mark.alone
def test_known_traffic_is_counted_exactly_and_timed_within_5_percent(watched: Watched) -> None:
    # One client, because 24 would spend more than HOLD_SECONDS on loading the certificate authorities.
    client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))

    def hold() -> httpx.Response:
        return client.get(f"{watched.api}/hold", params={"ms": HOLD_SECONDS * 1000}).raise_for_status()

    simultaneously(8, hold)  # let the workers open their connections
    names = ("checkouts_total", "waits_total", "wait_blocked_seconds_total", "use_seconds_sum", "use_seconds_count")
    before = {name: watched.total(f"db_pool_{name}") for name in names}

    answers = simultaneously(REQUESTS, hold)
    per_worker = Counter(answer.json()["worker"] for answer in answers)

    grown = {name: watched.total(f"db_pool_{name}") - before[name] for name in names}
    assert len(per_worker) > 1, "more than one worker answered"
    assert grown["checkouts_total"] == grown["use_seconds_count"] == REQUESTS
    # All requests came while the first held the connection, so in each worker every other one had to wait.
    assert grown["waits_total"] == REQUESTS - len(per_worker)
    assert grown["use_seconds_sum"] >= REQUESTS * HOLD_SECONDS
    # A response waits for those before it in its worker: HOLD_SECONDS each, less what it came later than the first.
    blocked = HOLD_SECONDS * sum(number * (number - 1) / 2 for number in per_worker.values())
    assert grown["wait_blocked_seconds_total"] >= blocked / 2
    # No second counts twice, also if the machine pauses.
    seconds = sum(answer.elapsed.total_seconds() for answer in answers)
    assert grown["use_seconds_sum"] + grown["wait_blocked_seconds_total"] <= seconds


@pytest.mark.alone
def test_scrape_with_every_worker_stuck_shows_the_queue_in_time(watched: Watched) -> None:
    workers = 4
    answers = []
    with ThreadPoolExecutor(workers) as threads:
        # A stuck worker accepts no connection, so each request gets another worker.
        query = {"seconds": STUCK_SECONDS, "waiting": WAITING}
        for number in range(workers):
            answers.append(threads.submit(httpx.get, f"{watched.api}/stick", params=query, timeout=60))
            eventually(lambda n=number: watched.total("db_pool_pending_requests") == WAITING * (n + 1), within=60)  # type: ignore[misc]

        slowest = 0.0
        pause = Event()
        while not any(answer.done() for answer in answers):
            started = monotonic()
            pending = watched.total("db_pool_pending_requests")
            slowest = max(slowest, monotonic() - started)
            assert pending == WAITING * workers or any(answer.done() for answer in answers)
            pause.wait(0.25)
        assert slowest < STUCK_SECONDS / 2
        assert {answer.result().json()["worker"] for answer in answers} == {"1", "2", "3", "4"}
    eventually(lambda: watched.total("db_pool_pending_requests") == 0, within=60)


def test_counters_after_a_kill_do_not_decrease(stack: Stack) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: httpx.get(f"{stack.api}{sample.READ}"), range(100)))
    before = scrape(stack)
    killed = set(stack.worker_pids())

    stack.kill_worker(min(killed))

    def replaced() -> bool:
        now = scrape(stack)
        starts = [key for key in now if key[0] == "headroom_worker_start_time_seconds"]
        renewed = [key for key in starts if now[key] != before.get(key)]
        return len(starts) == 4 and len(renewed) == 1

    eventually(replaced, within=60)
    after = scrape(stack)
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert len(counters) > 100
    assert [key for key in counters if after[key] < before[key]] == []
    assert total(stack, "headroom_worker_starts_total") == before_starts(before) + 1


def before_starts(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> float:
    return sum(value for (name, _), value in samples.items() if name == "headroom_worker_starts_total")


def views(stack: Stack) -> tuple[float, float]:
    """Scrape once. Return the number of the API's connections that the server and the pools report."""
    samples = scrape(stack)

    def count(name: str, **labels: str) -> float:
        return sum(
            value for (sample, has), value in samples.items() if sample == name and labels.items() <= dict(has).items()
        )

    return count("db_server_connections", application="headroom:api"), count("db_pool_connections")


# The exporter and the pools are the same in a container.
@pytest.mark.parametrize("stack", ["local"], indirect=True)
@pytest.mark.alone
def test_server_and_pools_agree_until_a_connection_leaks(stack: Stack) -> None:
    uvloop.run(load([f"{stack.api}{sample.READ}"], clients=8, seconds=2))  # let the pools open their connections

    with ThreadPoolExecutor(1) as threads:
        traffic = threads.submit(uvloop.run, load([f"{stack.api}{sample.READ}"], clients=8, seconds=6))
        seen, pause = [], Event()
        while not traffic.done():
            seen.append(views(stack))
            pause.wait(2 * HEARTBEAT_SECONDS)  # the age of the gauges
        assert len(seen) > 3
        # While a connection is being opened or closed, the two differ until the next scrape, unless the pools open or
        # close another one by then.
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

        def page_says_so() -> bool:
            live = httpx.get(f"{stack.exporter}/live.json").json()
            conditions = {condition["name"] for condition in live["conditions"]}
            return live["server"]["disagreement"] == 1 and "ViewsDisagree" in conditions

        eventually(differ, within=60)
        eventually(page_says_so, within=60)
