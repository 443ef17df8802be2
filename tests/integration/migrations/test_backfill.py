"""Back-fills: batches, progress, interruptions, two at once, and what slows them down."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from app.cli.backfill import APPLICATION_NAME
from app.database import PoolOptions, make_engine
from app.errors import MigrationFailed
from migrations import backfill as module
from migrations.backfill import Backfill, Progress, Throttle, pending_requests, run
from migrations.runner import Limits, configure_session
from tests.support.postgres import connect
from tests.support.replication import ReplicatedPair
from tests.support.waiting import eventually_async

ROWS = 2_500
BACKFILL = Backfill(name="samples", table="samples", set="times = times + 1, due = '12:00'", where="due IS NULL")


@pytest.fixture
def samples(owner: URL) -> URL:
    """Return the owner's URL of a database with a table whose rows are to be filled."""
    with connect(owner) as connection:
        connection.execute(
            "CREATE TABLE samples (id bigint PRIMARY KEY, times int NOT NULL DEFAULT 0, due time);"
            "ALTER TABLE samples OWNER TO headroom_owner"
        )
        # Keys with gaps.
        connection.execute("INSERT INTO samples (id) SELECT n * 7 FROM generate_series(1, %s) AS n", (ROWS,))
    return owner


async def fill(
    url: URL, backfill: Backfill = BACKFILL, throttle: Throttle | None = None, *, lock: float = 1.0, retry: float = 60.0
) -> Progress:
    """Run a back-fill, on a connection with the limits of the command."""
    engine = make_engine(url=url, application_name=APPLICATION_NAME, pool=PoolOptions(size=1, max_overflow=0))
    try:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await configure_session(connection, Limits(lock=lock, retry=retry, revision=60))
            return await connection.run_sync(run, backfill, throttle=throttle or Throttle(), retry_seconds=retry)
    finally:
        await engine.dispose()


def times(url: URL) -> list[tuple[int, int]]:
    """Return how often rows were changed, and the number of such rows."""
    with connect(url) as connection:
        return connection.execute("SELECT times, count(*) FROM samples GROUP BY times ORDER BY times").fetchall()


def waits_for_a_lock(connection: psycopg.Connection) -> bool:
    query = (
        "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    return bool(connection.execute(query, (APPLICATION_NAME,)).fetchall())


@contextmanager
def locked(url: URL, statement: str) -> Iterator[psycopg.Connection]:
    """Hold the locks of a statement in an open transaction."""
    with connect(url) as connection, connection.transaction():
        connection.execute(statement.encode())
        yield connection


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_backfill_changes_each_row_once(samples: URL, driver: str, json_log: Callable[[], str]) -> None:
    result = await fill(samples.set(drivername=f"postgresql+{driver}"))

    assert result == Progress(str(ROWS * 7), ROWS, ROWS, is_finished=True)
    assert times(samples) == [(1, ROWS)]
    assert f"back-fill samples: finished; {ROWS} rows read" in json_log()
    assert await fill(samples) == result
    assert times(samples) == [(1, ROWS)]


async def test_each_batch_is_a_short_transaction(samples: URL) -> None:
    with connect(samples) as connection:
        await fill(samples, replace(BACKFILL, rows=50))
        sizes = connection.execute("SELECT count(*) FROM samples GROUP BY xmin::text").fetchall()

    assert sum(size for (size,) in sizes) == ROWS
    assert max(size for (size,) in sizes) <= 50


@pytest.mark.parametrize("key", ["uuid", "text", "timestamptz"])
async def test_key_may_have_any_type(owner: URL, key: str) -> None:
    value = {"uuid": "gen_random_uuid()", "text": "'key ' || n", "timestamptz": "now() + n * interval '1 ms'"}[key]
    with connect(owner) as connection:
        connection.execute(
            f'CREATE TABLE samples ("the key" {key} PRIMARY KEY, times int DEFAULT 0, due time)'.encode()
        )
        connection.execute("ALTER TABLE samples OWNER TO headroom_owner")
        connection.execute(f"INSERT INTO samples SELECT {value} FROM generate_series(1, 1000) AS n".encode())

    assert (await fill(owner))[1:] == (1000, 1000, True)
    assert times(owner) == [(1, 1000)]


async def test_empty_text_is_a_position(owner: URL) -> None:
    with connect(owner) as connection:
        connection.execute("CREATE TABLE samples (id text PRIMARY KEY, times int DEFAULT 0, due time)")
        connection.execute("ALTER TABLE samples OWNER TO headroom_owner; INSERT INTO samples VALUES (''), ('a'), ('b')")

    assert (await asyncio.wait_for(fill(owner, replace(BACKFILL, rows=1)), 30))[1:] == (3, 3, True)


async def test_table_without_a_key_of_one_column_is_refused(owner: URL) -> None:
    with connect(owner) as connection:
        connection.execute("CREATE TABLE samples (a int, b int, due time, PRIMARY KEY (a, b))")

    with pytest.raises(MigrationFailed, match="samples has no primary key of one column"):
        await fill(owner)


async def test_nothing_to_do_writes_nothing(samples: URL) -> None:
    with connect(samples) as connection:
        connection.execute("TRUNCATE samples")
        assert (await fill(samples)).is_finished
        assert connection.execute("SELECT to_regclass('schema_backfills')").fetchone() == (None,)


async def test_rows_that_match_after_the_end_are_filled_by_the_next_run(samples: URL) -> None:
    await fill(samples)
    with connect(samples) as connection:
        connection.execute("INSERT INTO samples (id) VALUES (1)")
    result = await fill(samples)

    assert (result.rows_read, result.rows_changed) == (ROWS + 1, ROWS + 1)
    assert times(samples) == [(1, ROWS + 1)]


async def test_condition_that_never_ends_is_reported(samples: URL) -> None:
    endless = Backfill(name="endless", table="samples", set="times = times + 1", where="due IS NULL")

    with pytest.raises(MigrationFailed, match="rows of samples still match after 3 passes"):
        await fill(samples, endless)
    assert times(samples) == [(3, ROWS)]


async def test_two_runs_at_once_change_each_row_once(samples: URL, json_log: Callable[[], str]) -> None:
    with connect(samples) as watcher, locked(samples, "SELECT FROM samples WHERE id = 7000 FOR UPDATE"):
        first = asyncio.create_task(fill(samples))
        await eventually_async(lambda: asyncio.to_thread(waits_for_a_lock, watcher), within=60, jobs=[first])
        second = asyncio.create_task(fill(samples))

        async def second_waits() -> bool:
            return "another process runs it" in json_log()

        await eventually_async(second_waits, within=60, jobs=[first, second])
    results = await asyncio.gather(first, second)

    assert results[0] == results[1]
    assert times(samples) == [(1, ROWS)]


async def test_batch_that_gets_no_lock_is_tried_again(samples: URL, json_log: Callable[[], str]) -> None:
    with locked(samples, "SELECT FROM samples WHERE id = 7 FOR UPDATE"):
        job = asyncio.create_task(fill(samples, lock=0.2))

        async def tried_twice() -> bool:
            return "attempt 2 after id None: batch: canceling statement due to lock timeout" in json_log()

        await eventually_async(tried_twice, within=60, jobs=[job])
    assert (await job).rows_read == ROWS
    assert times(samples) == [(1, ROWS)]


async def test_batch_that_never_gets_its_lock_fails_and_can_continue(samples: URL) -> None:
    with (
        locked(samples, "SELECT FROM samples WHERE id = 7000 FOR UPDATE"),
        pytest.raises(DBAPIError, match="lock timeout"),
    ):
        await fill(samples, lock=0.1, retry=0)
    with connect(samples) as connection:
        [(read,)] = connection.execute("SELECT rows_read FROM schema_backfills").fetchall()
    assert 0 < read < 1000

    assert (await fill(samples))[1:] == (ROWS, ROWS, True)
    assert times(samples) == [(1, ROWS)]


async def test_batch_that_loses_a_deadlock_is_tried_again(samples: URL, json_log: Callable[[], str]) -> None:
    """The server ends the statement that waits first: the batch."""
    with connect(samples) as watcher, locked(samples, "UPDATE samples SET id = id WHERE id = 70") as holder:
        job = asyncio.create_task(fill(samples, lock=30))
        await eventually_async(lambda: asyncio.to_thread(waits_for_a_lock, watcher), within=60, jobs=[job])
        await asyncio.to_thread(holder.execute, "UPDATE samples SET id = id WHERE id = 7")
    await job

    assert "attempt 1 after id None: batch: deadlock detected" in json_log()
    assert times(samples) == [(1, ROWS)]


async def test_backfill_pauses_while_a_standby_is_behind(
    new_directory: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, json_log: Callable[[], str]
) -> None:
    monkeypatch.setattr(module, "LAG_BYTES", 8_000)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)
    with ReplicatedPair.running(new_directory()) as pair:
        pair.primary.execute(
            "CREATE TABLE samples (id bigint PRIMARY KEY, times int NOT NULL DEFAULT 0, due time)",
            f"INSERT INTO samples (id) SELECT n FROM generate_series(1, {ROWS}) AS n",
        )
        pair.standby.execute("SELECT pg_wal_replay_pause()")
        job = asyncio.create_task(fill(pair.primary.url))

        async def pauses() -> bool:
            return "back-fill samples: pauses, because a standby is" in json_log()

        await eventually_async(pauses, within=60, jobs=[job])
        [(read,)] = pair.primary.execute("SELECT rows_read FROM schema_backfills")
        assert read < ROWS
        pair.standby.execute("SELECT pg_wal_replay_resume()")
        assert (await job).rows_read == ROWS


class Exporter:
    """An exporter that reports a number of waiting requests."""

    def __init__(self, pending: int) -> None:
        self.pending = pending
        self.scrapes = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.scrapes += 1
                body = (
                    "# TYPE db_pool_pending_requests gauge\n"
                    f'db_pool_pending_requests{{pool="api",replica="a"}} {self.pending}\n'
                    "# TYPE pgbouncer_pools_client_connections gauge\n"
                    f'pgbouncer_pools_client_connections{{state="waiting"}} {self.pending * 10}\n'
                    'pgbouncer_pools_client_connections{state="active"} 1000\n'
                ).encode()
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Write no lines to stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Exporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


async def test_backfill_slows_down_while_requests_wait(
    samples: URL, monkeypatch: pytest.MonkeyPatch, json_log: Callable[[], str]
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.02)
    with Exporter(3) as exporter:
        assert await asyncio.to_thread(pending_requests, exporter.url) == 33
        job = asyncio.create_task(fill(samples, throttle=Throttle(exporter_url=exporter.url)))

        async def waits() -> bool:
            return exporter.scrapes > 10

        await eventually_async(waits, within=60, jobs=[job])
        assert not job.done()
        assert "back-fill samples: pauses, because 33 requests wait for a connection" in json_log()
        exporter.pending = 0
        assert (await job).rows_read == ROWS


async def test_busy_system_delays_a_backfill_but_does_not_stop_it(
    samples: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(module, "QUEUE_PAUSE_SECONDS", 0.05)
    with Exporter(3) as exporter:
        assert (await fill(samples, throttle=Throttle(exporter_url=exporter.url))).rows_read == ROWS


async def test_exporter_that_does_not_answer_is_one_warning(samples: URL, json_log: Callable[[], str]) -> None:
    with Exporter(0) as exporter:
        url = exporter.url
    assert (await fill(samples, throttle=Throttle(exporter_url=url))).rows_read == ROWS
    assert json_log().count("does not know how many requests wait for a connection") == 1
