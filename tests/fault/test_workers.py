"""Workers are replaced, and no request is lost. What a worker's exit does to the metrics."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import httpx
import pytest
import uvloop
from sqlalchemy import URL

from app.server.fair_server import IDLE_GRACE_SECONDS
from tests.support import sample
from tests.support.load import Answers, connect, get, load
from tests.support.postgres import as_role
from tests.support.postgres import connect as connect_to_postgres
from tests.support.serving import Served, gunicorn
from tests.support.stacks import Stack, scrape, total
from tests.support.waiting import eventually, eventually_async

CLIENTS = 40
WORKERS = 4
# While workers start, a slow machine may be overloaded. No request is rejected for that here.
PATIENT = {"DB_QUEUE_TARGET": "30", "DB_QUEUE_INTERVAL": "30", "DB_POOL_TIMEOUT": "30"}


@pytest.fixture
def serve(database: URL, tmp_path: Path) -> Callable[..., AbstractContextManager[Served]]:
    """Return a function that runs the API with these settings."""
    url = as_role(database, "headroom_app")
    return partial(gunicorn, "tests.support.holding:create()", url, tmp_path, **PATIENT)


@pytest.fixture
def served(serve: Callable[..., AbstractContextManager[Served]]) -> Iterator[Served]:
    with serve(WEB_CONCURRENCY=str(WORKERS)) as served:
        yield served


def workers_of(served: Served) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()}


async def load_while(served: Served, change: Callable[[], object]) -> Answers:
    """Let kept-alive clients send requests, half of them without a pause, while `change` runs in a thread."""
    until = asyncio.Event()
    loads = [
        asyncio.create_task(load([f"{served.address}/hold?ms=1"], clients=CLIENTS // 2, until=until, pause=pause))
        for pause in (0.0, 0.4)
    ]
    try:
        await asyncio.to_thread(change)
    finally:
        until.set()
    answers = await asyncio.gather(*loads)
    return Answers(
        [answer for each in answers for answer in each.each], broken=[line for each in answers for line in each.broken]
    )


def check_that_none_is_lost(answers: Answers) -> None:
    """Check that all got 200, except after a pause in which a leaving worker may close the connection.

    The clients pause less, but a busy machine may stop them for as long.
    """
    assert [line for line in answers.broken if line[0] < IDLE_GRACE_SECONDS] == []
    assert answers.statuses - Counter({0: len(answers.broken)}) == Counter({200: answers.statuses[200]})


def replace_all(served: Served) -> None:
    """Reload, and wait until every worker was replaced."""
    before = workers_of(served)
    os.kill(served.pid, signal.SIGHUP)

    def replaced() -> bool:
        now = workers_of(served)
        return len(now) == WORKERS and not now & before

    eventually(replaced, within=60)


def replace_one(served: Served) -> None:
    """Terminate the oldest worker, and wait until it was replaced."""
    before = workers_of(served)
    os.kill(min(before), signal.SIGTERM)

    def replaced() -> bool:
        now = workers_of(served)
        return len(now) == WORKERS and len(now & before) == WORKERS - 1

    eventually(replaced, within=60)


def test_reload_with_an_invalid_setting_keeps_the_replica(
    serve: Callable[..., AbstractContextManager[Served]], tmp_path: Path
) -> None:
    """Gunicorn's master once exited, and every client got an error."""
    secret = tmp_path / "secret_key"
    secret.write_text("k" * 64)
    with serve(WEB_CONCURRENCY=str(WORKERS), SECRET_KEY="", SECRET_KEY_FILE=str(secret)) as served:
        secret.write_text("short")

        replace_all(served)

        assert httpx.get(f"{served.address}/readyz").status_code == 200


@pytest.mark.parametrize("replace", [replace_all, replace_one])
def test_ten_replacements_of_workers_lose_no_request(served: Served, replace: Callable[[Served], None]) -> None:
    def change() -> None:
        for _ in range(10):
            replace(served)

    answers = uvloop.run(load_while(served, change))

    check_that_none_is_lost(answers)


def test_recycling_takes_one_worker_at_a_time_and_loses_no_request(
    serve: Callable[..., AbstractContextManager[Served]],
) -> None:
    with serve(WEB_CONCURRENCY=str(WORKERS), MAX_REQUESTS="100") as served:
        first = workers_of(served)
        fewest = WORKERS

        def recycled() -> bool:
            nonlocal fewest
            now = workers_of(served)
            fewest = min(fewest, len(now))
            return not now & first

        answers = uvloop.run(load_while(served, lambda: eventually(recycled, within=60, every=0.005)))

    assert fewest >= WORKERS - 1
    check_that_none_is_lost(answers)


async def test_stop_turns_readiness_off_then_serves_every_kept_client(
    serve: Callable[..., AbstractContextManager[Served]],
) -> None:
    """The clients are a load balancer: it opens no connection after /readyz has answered 503.

    The signal is that of `timeout`: to the process, and to its group.
    """
    with serve(WEB_CONCURRENCY=str(WORKERS), DRAIN_SECONDS="2") as served:
        connections = [await connect(served.port) for _ in range(CLIENTS)]
        ready = await connect(served.port)
        running = [(await connect(served.port)).ask(get("/hold?ms=3000")) for _ in range(4)]
        for pid in (*workers_of(served), served.pid, served.pid):
            os.kill(pid, signal.SIGTERM)

        async def unready() -> bool:
            return (await ready.ask(get("/readyz"))).status == 503

        await eventually_async(unready, within=60, every=0.01)
        async with httpx.AsyncClient() as client:
            problem = (await client.get(f"{served.address}/readyz")).json()
        assert (problem["type"], problem["status"]) == ("/problems/not-ready", 503)

        async def use(number: int) -> list[tuple[int, bool]]:
            """Send requests until the server closes the connection; return each status, and whether it was the last."""
            answers: list[tuple[int, bool]] = []
            while not answers or not answers[-1][1]:
                answer = await connections[number].ask(get("/livez"))
                answers.append((answer.status, answer.is_last))
                await asyncio.sleep(0.02 * (number % 10))
            return answers

        used = await asyncio.gather(*(use(number) for number in range(CLIENTS)))
        held = await asyncio.gather(*running)

        assert {status for answers in used for status, _ in answers} == {200}
        assert min(len(answers) for answers in used) > 1, "the replica serves as usual while it drains"
        assert {answer.status for answer in held} == {200}


@pytest.mark.parametrize("stuck", ["event loop", "process"])
def test_stuck_worker_is_replaced_in_seconds(
    serve: Callable[..., AbstractContextManager[Served]], stuck: str, tmp_path: Path
) -> None:
    with serve(WEB_CONCURRENCY="2", WORKER_TIMEOUT="3", DB_POOL_SIZE="1", DB_MAX_OVERFLOW="0") as served:
        before = workers_of(served)
        with ThreadPoolExecutor(1) as thread:
            if stuck == "process":
                os.kill(min(before), signal.SIGSTOP)
            else:
                cut = thread.submit(httpx.get, f"{served.address}/stick?seconds=60&waiting=0", timeout=60)

            def replaced() -> bool:
                now = workers_of(served)
                return len(now) == 2 and len(now & before) == 1

            eventually(replaced, within=60)
            if stuck == "event loop":
                assert isinstance(cut.exception(timeout=5), httpx.RemoteProtocolError | httpx.ReadError)
                [log] = tmp_path.glob("*.log")
                assert "tests/support/holding.py" in log.read_text(), "the log says where the worker was stuck"
        assert httpx.get(f"{served.address}/readyz").status_code == 200


def test_reload_replaces_every_worker_and_keeps_the_metrics(stack: Stack) -> None:
    before = set(stack.worker_pids())

    stack.reload()

    def reloaded() -> bool:
        now = set(stack.worker_pids())
        return len(now) == 4 and not now & before and total(stack, "db_pool_connections_max") == 60

    eventually(reloaded, within=60)
    assert httpx.get(f"{stack.api}/readyz").status_code == 200


def test_killed_worker_is_replaced_with_gauges_and_connections(stack: Stack) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: httpx.get(f"{stack.api}{sample.READ}"), range(100)))
    before = set(stack.worker_pids())
    assert len(before) == 4

    stack.kill_worker(min(before))

    def recovered() -> bool:
        now = set(stack.worker_pids())
        workers = {dict(labels)["worker"] for name, labels in scrape(stack) if name == "db_pool_connections_max"}
        with connect_to_postgres(stack.database_url()) as connection:
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

    eventually(recovered, within=60)
    assert httpx.get(f"{stack.api}/readyz").status_code == 200
