"""The stack over HTTP, in containers and as local processes."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest

from tests.support.load import load
from tests.support.postgres import connect
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually

_numbers = count(1)


def sign_up_data(**fields: Any) -> dict[str, Any]:
    return {"email": f"user.{next(_numbers)}@example.com", "name": "User", "password": "correct horse"} | fields


@pytest.fixture(scope="module", autouse=True)
def _seeded(stack: Stack) -> None:
    stack.seed(users=50, posts=0)


def get(stack: Stack, path: str) -> httpx.Response:
    return httpx.get(f"{stack.api}{path}", timeout=30)


def post(stack: Stack, path: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{stack.api}{path}", timeout=60, **request)


def test_probes_of_a_running_stack_return_ok(stack: Stack) -> None:
    assert get(stack, "/livez").json() == {"status": "ok"}
    assert get(stack, "/readyz").json() == {"status": "ok"}
    assert httpx.get(f"{stack.exporter}/healthz").status_code == 200


def test_new_user_is_found_at_its_location(stack: Stack) -> None:
    created = post(stack, "/users", json=sign_up_data(name="Ann"))
    assert created.status_code == 201
    assert "password" not in created.text

    found = get(stack, created.headers["location"])
    assert found.json() == {"id": created.json()["id"], "name": "Ann", "created_at": created.json()["created_at"]}


@pytest.mark.alone
def test_simultaneous_sign_ups_with_one_address_succeed_once(stack: Stack) -> None:
    address = sign_up_data()["email"]
    sign_ups = [sign_up_data(email=address.upper() if number % 2 else address) for number in range(40)]

    with (
        httpx.Client(base_url=stack.api, timeout=60) as client,
        ThreadPoolExecutor(len(sign_ups)) as threads,
    ):
        answers = list(threads.map(lambda data: client.post("/users", json=data), sign_ups))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 39
    assert {answer.json()["type"] for answer in answers if answer.status_code == 409} == {"/problems/email-taken"}
    with connect(stack.database_url()) as connection:
        rows = connection.execute("SELECT count(*) FROM users WHERE lower(email) = lower(%s)", (address,)).fetchone()
    assert rows == (1,)


def in_chunks() -> Iterator[bytes]:
    """Yield 10 MB. A chunked body has no Content-Length."""
    return (b" " * 65_536 for _ in range(160))


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("POST", "/users", {"json": sign_up_data(name="An\0n")}, 422),
        ("POST", "/users", {"json": sign_up_data(email="ann")}, 422),
        ("POST", "/users", {"content": b" " * 10_000_000}, 413),
        ("POST", "/users", {"content": in_chunks}, 413),
        ("GET", f"/users/{2**63}", {}, 422),
        ("GET", "/users?limit=1&limit=2", {}, 422),
        ("GET", "/no/such/path", {}, 404),
        ("DELETE", "/users", {}, 405),
    ],
    ids=["NUL", "address", "10 MB", "10 MB in chunks", "beyond bigint", "repeated", "path", "method"],
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
    asyncio.run(load([f"{stack.api}/users/{number}" for number in range(1, 33)], clients=32, seconds=1))

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
