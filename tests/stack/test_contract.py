"""The stack over HTTP, in containers and as local processes."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event
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
    stack.seed(users=50, posts=500)


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


def test_pages_by_offset_contain_every_post_once(stack: Stack) -> None:
    pages = [get(stack, f"/posts?offset={offset}&limit=100").json() for offset in range(0, 500, 100)]

    items = [post for page in pages for post in page["items"]]
    assert len({post["id"] for post in items}) == 500
    assert [post["created_at"] for post in items] == sorted((post["created_at"] for post in items), reverse=True)
    assert {page["total"] for page in pages} == {500}
    assert [page["has_more"] for page in pages] == [True] * 4 + [False]


def test_post_links_to_its_author_and_back(stack: Stack) -> None:
    newest = get(stack, "/posts?limit=1").json()["items"][0]

    assert get(stack, f"/posts/{newest['id']}").json() == newest
    author = newest["author"]
    assert get(stack, f"/users/{author['id']}").json()["name"] == author["name"]
    assert get(stack, f"/users/{author['id']}/posts?limit=1").json()["items"] == [newest]


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
        ("GET", f"/posts/{2**63}", {}, 422),
        ("GET", "/posts?limit=1000", {}, 422),
        ("GET", "/no/such/path", {}, 404),
        ("DELETE", "/posts", {}, 405),
    ],
    ids=["NUL", "address", "10 MB", "10 MB in chunks", "beyond bigint", "limit", "path", "method"],
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
        within=5,
    )
    assert workers == {"1", "2", "3", "4"}


def test_pool_gauges_add_up_four_workers(stack: Stack) -> None:
    assert total(stack, "db_pool_connections_max") == 4 * (5 + 10)
    assert total(stack, "db_pool_connections_idle_max") == 4 * 5


def test_exporter_and_server_count_the_same_connections(stack: Stack) -> None:
    # 32 requests at a time need more than one connection per worker.
    asyncio.run(load([f"{stack.api}/posts"], clients=32, seconds=1))

    def agree() -> bool:
        pools = total(stack, "db_pool_connections")
        with connect(stack.database_url()) as connection:
            row = connection.execute(
                "SELECT count(*), count(DISTINCT application_name) FROM pg_stat_activity"
                " WHERE application_name ~ '^headroom:api:.+:[1-4]$'"
            ).fetchone()
        assert row is not None
        return row[0] > 4 and row[1] == 4 and pools == row[0] and total(stack, "db_pool_connections", state="used") == 0

    eventually(agree, within=10)


@pytest.mark.alone
def test_gauges_under_a_table_lock_show_used_and_waiting(stack: Stack) -> None:
    """The lock stops every statement. The server counts the blocked statements, the exporter used connections."""
    stop = Event()
    unlimited = httpx.Limits(max_connections=None)  # the default of httpx is 100 connections
    with (
        httpx.Client(base_url=stack.api, timeout=30, limits=unlimited) as client,
        connect(stack.database_url()) as holder,
        connect(stack.database_url()) as observer,  # within a transaction pg_stat_activity does not change
        ThreadPoolExecutor(200) as threads,
    ):

        def send_requests(author: int) -> set[int]:
            """Send another request after each 503, so that the queue is never empty. Equal reads would not queue."""
            statuses = set()
            while not stop.wait(0.1):
                statuses.add(client.get(f"/posts?cursor=&author_id={author}").status_code)
            return statuses

        def agree() -> bool:
            scraped = scrape(stack)
            row = observer.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%'"
                " AND wait_event_type = 'Lock'"
            ).fetchone()
            assert row is not None
            assert 15 < total(scraped, "db_pool_connections", state="used") == row[0], row
            assert total(scraped, "db_pool_connections_overflow") > 0
            assert total(scraped, "db_pool_pending_requests") > 0
            return True

        try:
            with holder.transaction():
                holder.execute("LOCK TABLE posts")
                requests = [threads.submit(send_requests, author) for author in range(1, 201)]
                eventually(agree, within=10, jobs=requests)
        finally:
            stop.set()
        statuses = set().union(*(request.result() for request in requests))

    assert statuses <= {200, 404, 503}
    eventually(lambda: total(stack, "db_pool_pending_requests") == 0, within=10)
    eventually(lambda: total(stack, "db_pool_connections", state="used") == 0, within=10)


def test_overflow_gauge_without_load_returns_to_zero(stack: Stack) -> None:
    """The test before this one has opened overflow connections. DB_POOL_SHRINK_AFTER is 20 s."""
    eventually(lambda: total(stack, "db_pool_connections_overflow") == 0, within=30)
