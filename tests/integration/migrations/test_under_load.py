"""Migrations next to a live system: short waits for locks, retries, and nothing left of a job that was killed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from app.database.conninfo import parameters
from migrations import runner
from tests.support.docker import require_engine
from tests.support.migrations import Release, recorded
from tests.support.postgres import as_role, connect, run_postgres
from tests.support.waiting import eventually

ADD_COLUMN = "op.add_column('users', sa.Column('nickname', sa.Text()))"
# A job that is killed leaves nothing after one to two seconds. The rest is room for a busy machine.
NOTHING_LEFT_SECONDS = 6.0
# The limit of a wait for a lock is one second. The rest is room for a busy machine.
LONGEST_WAIT_SECONDS = 3.0
JOBS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'headroom:migrate' AND datname = current_database()"


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path / "release")


@contextmanager
def running(*processes: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()


@contextmanager
def open_transaction(owner: URL) -> Iterator[psycopg.Connection]:
    """Read a table and leave the transaction open, as a report does."""
    with psycopg.connect(**parameters(as_role(owner, "headroom_app")), application_name="report") as connection:
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        connection.execute("SELECT count(*) FROM users")
        yield connection


def backends(connection: psycopg.Connection, condition: str = "true") -> set[int]:
    return {pid for (pid,) in connection.execute(f"{JOBS} AND {condition}".encode())}


def test_long_transaction_delays_the_migration_and_nobody_else(owner: URL, release: Release, tmp_path: Path) -> None:
    """The job tries once, and again when the transaction has ended: not one attempt after the other."""
    release.add("added", ADD_COLUMN)
    log = tmp_path / "log"
    finished = Event()

    def longest(statement: str) -> float:
        """Run the statement again and again. Return the seconds of the slowest one."""
        slowest = 0.0
        with connect(as_role(owner, "headroom_app")) as connection:
            while not finished.is_set():
                started = time.monotonic()
                connection.execute(statement.encode())
                slowest = max(slowest, time.monotonic() - started)
        return slowest

    write = "UPDATE users SET name = name WHERE id = 1"
    job = release.start(owner, log)
    with ThreadPoolExecutor(2) as clients, running(job):
        with open_transaction(owner) as report:
            pid = report.info.backend_pid
            waits = [clients.submit(longest, each) for each in ("SELECT id FROM users LIMIT 1", write)]
            try:
                eventually(lambda: "attempt 1:" in log.read_text(), within=60)
                # Without the wait, attempt 2 would end after at most 0.75 + 1 s.
                time.sleep(3)
                assert "attempt 2:" not in log.read_text()
            finally:
                finished.set()
        slowest = [wait.result() for wait in waits]
        started = time.monotonic()
        assert job.wait(60) == 0, log.read_text()
        print(f"applied {time.monotonic() - started:.1f} s after the end of the transaction")

    print(f"the slowest read and write took {slowest[0]:.2f} s and {slowest[1]:.2f} s")
    assert max(slowest) < LONGEST_WAIT_SECONDS, slowest
    assert recorded(owner)[-1] == ("added", "additive")
    line = next(line for line in log.read_text().splitlines() if "attempt 1:" in line)
    assert "revision added (added.py, line " in line
    assert "statement: ALTER TABLE users ADD COLUMN nickname TEXT" in line
    assert f"blocked by pid {pid} (report, role headroom_app, idle in transaction, transaction open for " in line
    assert "SELECT count(*) FROM users" in line


@pytest.mark.parametrize(("seconds", "attempts"), [("0", 1), ("1", 2)])
def test_job_that_never_gets_its_lock_fails_in_a_few_lines(
    owner: URL, release: Release, seconds: str, attempts: int
) -> None:
    """The last attempt comes at the deadline, although the transaction has not ended."""
    release.add("added", ADD_COLUMN)
    with open_transaction(owner) as report:
        pid = report.info.backend_pid
        finished = release.run(
            owner, MIGRATION_RETRY_TIMEOUT=seconds, MIGRATION_DDL_LOCK_TIMEOUT="0.5", LOG_LEVEL="error"
        )

    assert finished.returncode != 0
    lines = finished.stdout.strip().splitlines()
    assert len(lines) < 8, finished.stdout
    assert f"blocked by: pid {pid} (report, role headroom_app" in finished.stdout
    assert f"gave up after {attempts} attempts in {seconds} s" in finished.stdout
    assert f"SELECT pg_terminate_backend({pid})" in lines[-1]


def test_relative_target_is_not_tried_again_after_a_step(owner: URL, release: Release) -> None:
    """The second attempt would count from another revision: `downgrade -2` once reverted three."""
    release.add("first", "op.execute('CREATE TABLE first_step ()')")
    release.add("second", ADD_COLUMN)
    release.add("third", "op.execute('CREATE TABLE third_step ()')")
    with open_transaction(owner):
        finished = release.run(owner, "upgrade", "+2", MIGRATION_DDL_LOCK_TIMEOUT="0.5", LOG_LEVEL="error")

    assert finished.returncode != 0
    assert "not tried again: the target is relative" in finished.stdout
    assert recorded(owner)[-1] == ("first", "additive")
    assert release.run(owner, "upgrade", "+2").returncode == 0
    assert recorded(owner)[-1] == ("third", "additive")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_failing_revision_is_reported_in_a_few_lines(owner: URL, release: Release, driver: str) -> None:
    release.add("twice", f"{ADD_COLUMN}\n{ADD_COLUMN}")
    finished = release.run(owner.set(drivername=f"postgresql+{driver}"), LOG_LEVEL="error")

    assert finished.returncode != 0
    lines = finished.stdout.strip().splitlines()
    assert len(lines) < 5, finished.stdout
    assert re.search(r'revision twice \(twice.py, line \d+\): column "nickname" of relation "users" already', lines[-2])
    assert lines[-1] == "statement: ALTER TABLE users ADD COLUMN nickname TEXT"


def test_statement_and_transaction_have_a_limit(owner: URL, release: Release) -> None:
    release.add("slow", "op.execute('SELECT pg_sleep(600)')")
    statement = release.run(owner, MIGRATION_REVISION_TIMEOUT="0.5", LOG_LEVEL="error")
    assert statement.returncode != 0
    assert "canceling statement due to statement timeout" in statement.stdout

    with connect(owner) as connection:
        if connection.info.server_version < 170000:
            pytest.skip("transaction_timeout exists since PostgreSQL 17")
    release.file("slow").unlink()
    release = Release(release.directory)
    release.add("many", "for _ in range(6000): op.execute('SELECT pg_sleep(0.1)')")
    transaction = release.run(owner, MIGRATION_REVISION_TIMEOUT="0.5", LOG_LEVEL="error")
    assert transaction.returncode != 0
    # The second message: the server ended the connection at the moment when a statement began.
    assert re.search("due to transaction timeout|its transaction_timeout", transaction.stdout)


def gone(connection: psycopg.Connection, pids: set[int]) -> bool:
    return pids.isdisjoint(backends(connection))


def stop(job: "subprocess.Popen[str]", number: signal.Signals) -> None:
    job.send_signal(number)
    job.wait(10)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("moment", ["statement", "waiting for a lock"])
def test_stopped_job_leaves_no_backend_and_no_lock(
    owner: URL, release: Release, tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    release.add("added", f"{ADD_COLUMN}\nop.execute('SELECT pg_sleep(600)')")
    log = tmp_path / "log"
    with connect(owner) as connection:
        if moment == "statement":
            job = release.start(owner, log)
            with running(job):
                eventually(lambda: backends(connection, "query LIKE '%pg_sleep%'"), within=60)
                stop(job, number)
        else:
            job = release.start(owner, log, MIGRATION_DDL_LOCK_TIMEOUT="600")
            with open_transaction(owner), running(job):
                eventually(lambda: backends(connection, "wait_event_type = 'Lock'"), within=60)
                stop(job, number)
                eventually(lambda: not backends(connection), within=NOTHING_LEFT_SECONDS)
        assert job.returncode != 0
        eventually(lambda: not backends(connection), within=NOTHING_LEFT_SECONDS)
        connection.execute("SET lock_timeout = '1s'")
        with connection.transaction():
            connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
    if number is signal.SIGTERM:
        assert "stopped by SIGTERM" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_job_that_loses_its_lock_stops(owner: URL, release: Release, tmp_path: Path) -> None:
    """Another job could start: the lock belongs to the connection."""
    release.add("slow", "op.execute('SELECT pg_sleep(600)')")
    log = tmp_path / "log"
    job = release.start(owner, log)
    with connect(owner) as connection, running(job):
        eventually(lambda: backends(connection, "query LIKE '%pg_sleep%'"), within=60)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        assert job.wait(30) != 0
        eventually(lambda: not backends(connection), within=NOTHING_LEFT_SECONDS)
    assert "the connection that holds the lock of the migration job was lost" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_revision_that_blocks_the_event_loop_keeps_its_lock(
    owner: URL, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch's own deadline passes while the revision computes; the server has answered long before."""
    release.add("blocking", "import time\nfor _ in range(3): op.execute('SELECT 1'); time.sleep(0.5)")
    monkeypatch.setenv("MIGRATION_DATABASE_URL", owner.render_as_string(hide_password=False))
    monkeypatch.setattr(runner, "WATCH_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(runner, "WATCH_SECONDS", 0.01)

    command.upgrade(Config(toml_file=release.config), "head")

    assert recorded(owner)[-1] == ("blocking", "additive")


@pytest.mark.alone
def test_cut_network_leaves_no_backend_and_no_lock(
    new_directory: Callable[[], Path], release: Release, tmp_path: Path
) -> None:
    require_engine()
    release.add("added", f"{ADD_COLUMN}\nop.execute('SELECT pg_sleep(600)')")
    log = tmp_path / "log"
    with run_postgres(new_directory()) as server:
        # Not a database that the server drops: its published port is another one after the cut.
        url = server.superuser.set(database="headroom")
        [container] = docker("ps", "--quiet", "--no-trunc", "--filter", f"publish={url.port}").split()
        direct = as_role(url, "headroom_owner").set(host=server.address, port=5432)
        job = release.start(direct, log)
        with running(job):
            with connect(url) as connection:
                eventually(lambda: backends(connection, "query LIKE '%pg_sleep%'"), within=60)

            def left() -> str:
                query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'headroom:migrate'"
                psql = ("psql", "-U", str(url.username), "-d", "headroom", "-At", "-c", query)
                return docker("exec", container, *psql).strip()

            docker("network", "disconnect", "bridge", container)
            try:
                started = time.monotonic()
                eventually(lambda: left() == "0", within=NOTHING_LEFT_SECONDS)
                print(f"no backend after {time.monotonic() - started:.1f} s")
            finally:
                docker("network", "connect", "bridge", container)
            assert job.wait(60) != 0
    assert "Traceback" not in log.read_text()


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


# Each moment is a revision. It blocks there as long as its file exists.
MOMENTS = {
    "statement": "op.execute('CREATE TABLE a ()')\nop.execute(f'SELECT pg_sleep({seconds})')",
    "transaction": "op.execute('CREATE TABLE b ()')\nop.execute('SELECT 1')\ntime.sleep(seconds)",
    "autocommit": "with op.get_context().autocommit_block():\n    op.execute(f'SELECT pg_sleep({seconds})')\n"
    "create_index('ix_c', 'users', ['name'])",
    "lock": "op.add_column('users', sa.Column('d', sa.Text()))",
    "between": "with op.get_context().autocommit_block():\n    time.sleep(seconds)\nop.execute('CREATE TABLE e ()')",
}
REACHED = {
    "statement": "query LIKE '%pg_sleep%' AND state = 'active'",
    "transaction": "query = 'SELECT 1' AND state = 'idle in transaction'",
    "autocommit": "query LIKE '%pg_sleep%' AND state = 'active'",
    "lock": "wait_event_type = 'Lock'",
    "between": "query !~ 'pg_blocking_pids|pg_try_advisory_lock|set_config|pg_backend_pid' AND state = 'idle'",
}


@pytest.mark.alone
def test_eight_jobs_apply_each_revision_once_although_holders_die(owner: URL, release: Release, tmp_path: Path) -> None:
    for moment, statements in MOMENTS.items():
        blocking = tmp_path / moment
        blocking.touch()
        setup = (
            "import time; from pathlib import Path; from migrations.concurrently import create_index\n"
            f"seconds = 600 if Path({str(blocking)!r}).exists() else 0\n"
        )
        release.add(moment, setup + statements)
    logs = [tmp_path / f"{number}.log" for number in range(8)]
    jobs = [release.start(owner, log, MIGRATION_DDL_LOCK_TIMEOUT="600") for log in logs]
    killed: list[subprocess.Popen[str]] = []

    def running_revisions() -> list[subprocess.Popen[str]]:
        each = zip(jobs, logs, strict=True)
        return [job for job, log in each if "Running upgrade" in log.read_text() and job not in killed]

    def the_backend(condition: str) -> set[int]:
        found = backends(connection, condition)
        return found if len(found) == 1 else set()

    slowest = 0.0
    with running(*jobs), connect(owner) as connection, open_transaction(owner) as report:
        for moment in MOMENTS:
            # A waiting job can match the condition too, so first find the job that runs the revisions.
            [holder] = eventually(running_revisions, within=120)
            [backend] = eventually(partial(the_backend, REACHED[moment]), within=120)
            locks = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            [(lock,)] = connection.execute(f"{locks} AND pid IN ({JOBS})".encode()).fetchall()
            (tmp_path / moment).unlink()
            os.kill(holder.pid, signal.SIGKILL)
            killed.append(holder)
            started = time.monotonic()
            eventually(partial(gone, connection, {backend, lock}), within=NOTHING_LEFT_SECONDS)
            slowest = max(slowest, time.monotonic() - started)
            if moment == "lock":
                report.rollback()
        statuses = [job.wait(120) for job in jobs if job not in killed]
        eventually(lambda: not backends(connection), within=NOTHING_LEFT_SECONDS)
    print(f"nothing left after at most {slowest:.1f} s")

    output = "\n".join(log.read_text() for log in logs)
    assert statuses == [0, 0, 0], output
    assert [revision for revision, _ in recorded(owner)][-len(MOMENTS) :] == list(MOMENTS)
    with connect(owner) as connection:
        invalid = connection.execute("SELECT FROM pg_index WHERE NOT indisvalid").fetchall()
    assert not invalid
