"""The stack over HTTP, in containers and as local processes."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support import sample
from tests.support.load import load
from tests.support.postgres import connect
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually


@pytest.fixture(scope="module", autouse=True)
def _seeded(stack: Stack) -> None:
    stack.seed(users=50, posts=0)


def get(stack: Stack, path: str) -> httpx.Response:
    return httpx.get(f"{stack.api}{path}", timeout=30)


def test_probes_of_a_running_stack_return_ok(stack: Stack) -> None:
    assert get(stack, "/livez").json() == {"status": "ok"}
    assert get(stack, "/readyz").json() == {"status": "ok"}
    assert httpx.get(f"{stack.exporter}/healthz").status_code == 200


def test_new_row_is_found_at_its_location(stack: Stack) -> None:
    created = httpx.post(f"{stack.api}{sample.PATH}", json=sample.new("found"), timeout=60)
    assert created.status_code == 201

    found = get(stack, created.headers["location"]).json()
    assert (found["id"], found["name"]) == (created.json()["id"], "found")


@pytest.mark.alone
def test_simultaneous_writes_of_one_key_succeed_once(stack: Stack) -> None:
    with httpx.Client(base_url=stack.api, timeout=60) as client, ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(lambda _: client.post(sample.PATH, json=sample.new("same")), range(40)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 39
    query = f"SELECT count(*) FROM {sample.TABLE} WHERE name = 'same'"
    with connect(stack.database_url()) as connection:
        assert connection.execute(query.encode()).fetchone() == (1,)


def in_chunks() -> Iterator[bytes]:
    """Yield 10 MB. A chunked body has no Content-Length."""
    return (b" " * 65_536 for _ in range(160))


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("POST", sample.PATH, {"json": sample.new("nul") | {"name": "An\0n"}}, 422),
        ("POST", sample.PATH, {"json": sample.new("blank") | {"name": " "}}, 422),
        ("POST", sample.PATH, {"content": b" " * 10_000_000}, 413),
        ("POST", sample.PATH, {"content": in_chunks}, 413),
        ("GET", f"{sample.PATH}/{2**63}", {}, 422),
        ("GET", f"{sample.PATH}?limit=1&limit=2", {}, 422),
        ("GET", "/no/such/path", {}, 404),
        ("DELETE", sample.PATH, {}, 405),
    ],
    ids=["NUL", "blank", "10 MB", "10 MB in chunks", "beyond bigint", "repeated", "path", "method"],
)
def test_bad_input_returns_a_problem(
    stack: Stack, method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    if callable(content := request_.get("content")):
        request_ = {"content": content()}
    answer = httpx.request(method, f"{stack.api}{path}", **request_)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_four_workers_report_metrics(stack: Stack) -> None:
    assert len(stack.worker_pids()) == 4
    workers = eventually(
        lambda: {dict(labels)["worker"] for name, labels in scrape(stack) if name == "db_pool_connections_max"},
        within=60,
    )
    assert workers == {"1", "2", "3", "4"}


def test_pool_gauges_add_up_four_workers(stack: Stack) -> None:
    assert total(stack, "db_pool_connections_max") == 4 * (5 + 10)
    assert total(stack, "db_pool_connections_idle_max") == 4 * 5


def test_exporter_and_server_count_the_same_connections(stack: Stack) -> None:
    # 32 requests at a time need more than one connection per worker.
    asyncio.run(load([f"{stack.api}{sample.PATH}/{number}" for number in range(1, 33)], clients=32, seconds=1))

    def agree() -> bool:
        pools = total(stack, "db_pool_connections")
        with connect(stack.database_url()) as connection:
            row = connection.execute(
                "SELECT count(*), count(DISTINCT application_name) FROM pg_stat_activity"
                " WHERE application_name ~ '^headroom:api:.+:[1-4]$'"
            ).fetchone()
        assert row is not None
        return row[0] > 4 and row[1] == 4 and pools == row[0] and total(stack, "db_pool_connections", state="used") == 0

    eventually(agree, within=60)
