"""Workers are replaced."""

from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.postgres import connect
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually


def test_reload_replaces_every_worker_and_keeps_the_metrics(stack: Stack) -> None:
    before = set(stack.worker_pids())

    stack.reload()

    def reloaded() -> bool:
        now = set(stack.worker_pids())
        return len(now) == 4 and not now & before and total(stack, "db_pool_connections_max") == 60

    eventually(reloaded, within=30)
    assert httpx.get(f"{stack.api}/readyz").status_code == 200


def test_killed_worker_is_replaced_with_gauges_and_connections(stack: Stack) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: httpx.get(f"{stack.api}/posts"), range(100)))
    before = set(stack.worker_pids())
    assert len(before) == 4

    stack.kill_worker(min(before))

    def recovered() -> bool:
        now = set(stack.worker_pids())
        workers = {dict(labels)["worker"] for name, labels in scrape(stack) if name == "db_pool_connections_max"}
        with connect(stack.database_url()) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%'"
            ).fetchone()
        assert row is not None
        return (
            len(now) == 4
            and len(now & before) == 3
            and len(workers) == 4
            and total(stack, "db_pool_connections_max") == 60
            and total(stack, "db_pool_connections") == row[0]
        )

    eventually(recovered, within=30)
    assert httpx.get(f"{stack.api}/readyz").status_code == 200
