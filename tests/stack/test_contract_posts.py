"""Posts over HTTP, in containers and as local processes, and the metrics while requests for posts wait for a lock."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from tests.support.postgres import connect
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually


@pytest.fixture(scope="module", autouse=True)
def _seeded(stack: Stack) -> None:
    stack.seed(users=50, posts=500)


def get(stack: Stack, path: str) -> httpx.Response:
    return httpx.get(f"{stack.api}{path}", timeout=30)


def test_pages_by_offset_contain_every_post_once(stack: Stack) -> None:
    with connect(stack.database_url()) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM posts").fetchall()
    pages = [get(stack, f"/posts?offset={offset}&limit=100").json() for offset in range(0, count, 100)]

    items = [post for page in pages for post in page["items"]]
    assert len({post["id"] for post in items}) == count
    assert [post["created_at"] for post in items] == sorted((post["created_at"] for post in items), reverse=True)
    assert {page["total"] for page in pages} == {count}
    assert [page["has_more"] for page in pages] == [True] * (len(pages) - 1) + [False]


def test_post_links_to_its_author_and_back(stack: Stack) -> None:
    newest = get(stack, "/posts?limit=1").json()["items"][0]

    assert get(stack, f"/posts/{newest['id']}").json() == newest
    author = newest["author"]
    assert get(stack, f"/users/{author['id']}").json()["name"] == author["name"]
    assert get(stack, f"/users/{author['id']}/posts?limit=1").json()["items"] == [newest]


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
                eventually(agree, within=60, jobs=requests)
        finally:
            stop.set()
        statuses = set().union(*(request.result() for request in requests))

    assert statuses <= {200, 404, 503}
    eventually(lambda: total(stack, "db_pool_pending_requests") == 0, within=60)
    eventually(lambda: total(stack, "db_pool_connections", state="used") == 0, within=60)


def test_overflow_gauge_without_load_returns_to_zero(stack: Stack) -> None:
    """The test before this one has opened overflow connections. DB_POOL_SHRINK_AFTER is 20 s."""
    eventually(lambda: total(stack, "db_pool_connections_overflow") == 0, within=60)
