"""The backups of compose.prod.yml: `make backup`, `make restore` and `make restore-drill` with a real repository."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.stacks import ProdStack, total
from tests.support.waiting import eventually

SEGMENTS = "/var/lib/pgbackrest/archive/headroom/*-1"
# Each segment of the archive is finished after this time, if it has changes. In production it is a minute.
ARCHIVE_TIMEOUT = "3s"


class BackedUpStack(ProdStack):
    """The services of compose.prod.yml that concern backups."""

    def up(self) -> None:
        self.compose("up", *self.build, "--detach", "postgres", "backup", "pgbouncer", "migrate", "exporter")
        eventually(lambda: self.sql(f"SELECT 1 FROM {sample.TABLE} LIMIT 0") == [], within=120)
        eventually(lambda: total(self, "db_backups") == 1, within=60)
        self.sql(f"ALTER SYSTEM SET archive_timeout = '{ARCHIVE_TIMEOUT}'")
        self.sql("SELECT pg_reload_conf()")

    def make(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run what the target of this name runs."""
        return subprocess.run(
            [PROJECT_ROOT / "ops/backup.sh", command],
            env=os.environ
            | self.environment
            | {"COMPOSE_PROJECT_NAME": self.name, "COMPOSE_ENV_FILES": os.devnull, "stack": "prod"}
            | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def restore(self, **variables: str) -> None:
        finished = self.make("restore", **variables)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert "PostgreSQL serves again after" in finished.stdout

    def run_in(self, service: str, command: str) -> None:
        """Run a shell command in the service's container."""
        self.compose("exec", "-T", service, "sh", "-c", command)

    def checksum(self) -> str:
        """Return a checksum of all rows that the tests have written."""
        [[checksum]] = self.sql("SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY id)) FROM written t")
        return checksum

    def insert(self, rows: int) -> None:
        self.sql(f"INSERT INTO written (text) SELECT md5(n::text) FROM generate_series(1, {rows}) n")

    def wait_until_archived(self) -> None:
        """Commit a transaction, and wait until the repository has it."""
        # The segment of the message itself: a moment later the current one may be the next, which stays empty.
        [[segment]] = self.sql("SELECT pg_walfile_name(pg_logical_emit_message(true, 'test', ''))")
        query = f"SELECT left(last_archived_wal, 24) >= '{segment}' FROM pg_stat_archiver"
        eventually(lambda: self.sql(query) == [["t"]], within=60)


@pytest.fixture(scope="module")
def database(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackedUpStack]:
    secrets = tmp_path_factory.mktemp("secrets") / "backups"
    with BackedUpStack(f"headroom-backups-{os.getpid()}", secrets, build=False).running() as stack:
        stack.sql("CREATE TABLE written (id bigserial PRIMARY KEY, text text NOT NULL)")
        stack.insert(rows=1_000)
        yield stack


def test_backup_of_changed_rows_is_added_to_the_repository(database: BackedUpStack) -> None:
    before = total(database, "db_backups")
    finished = database.make("backup")

    assert finished.returncode == 0, finished.stderr
    assert re.search(r"backup \S+F_\S+I: [0-9]+ bytes of data, [0-9]+ bytes written", finished.stdout)
    eventually(lambda: total(database, "db_backups") == before + 1, within=60)


def test_restore_of_a_running_cluster_is_refused(database: BackedUpStack) -> None:
    finished = database.make("restore", force="yes")

    assert finished.returncode != 0
    assert "PostgreSQL is running" in finished.stderr
    assert database.sql("SELECT 1") == [["1"]]


def test_lost_volume_is_restored_to_the_last_and_a_chosen_moment(database: BackedUpStack) -> None:
    first = database.checksum()
    [[moment]] = database.sql("SELECT clock_timestamp()")
    database.insert(rows=500)
    assert database.make("backup").returncode == 0
    database.sql("DELETE FROM written WHERE id % 7 = 0")
    last = database.checksum()
    database.wait_until_archived()

    database.compose("kill", "postgres", "backup")
    database.compose("rm", "--force", "postgres", "backup")
    subprocess.run(["docker", "volume", "rm", f"{database.name}_postgres"], check=True, capture_output=True)

    database.restore()
    assert database.checksum() == last
    database.compose("stop", "postgres")
    database.restore(at=moment)
    assert database.checksum() == first


def test_drill_after_a_restore_uses_a_backup_of_the_new_timeline(database: BackedUpStack) -> None:
    """The newest backup before the restore is younger than the moment, so it does not lead to the new timeline."""
    before = total(database, "db_backups")
    database.compose("up", "--no-build", "--detach", "backup")
    eventually(lambda: total(database, "db_backups") > before, within=60)
    [[rows]] = database.sql("SELECT count(*) FROM written")

    finished = database.make("restore-drill")

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"rows of public.written: {rows}\n" in finished.stdout
    assert "pg_amcheck: tables and indexes are consistent" in finished.stdout
    assert "pg_checksums: all pages are intact" in finished.stdout
    [at_risk] = re.findall(r"RPO: (\d+) s", finished.stdout)
    [recovery] = re.findall(r"RTO: (\d+) s", finished.stdout)
    assert total(database, "db_backup_drill_success") == 1
    assert total(database, "db_backup_drill_rpo_seconds") == int(at_risk)
    assert total(database, "db_backup_drill_rto_seconds") == int(recovery)


def test_killed_cluster_is_overwritten_only_by_force(database: BackedUpStack) -> None:
    before = database.checksum()
    database.wait_until_archived()
    database.compose("kill", "postgres")

    refused = database.make("restore")
    assert refused.returncode != 0
    assert "was not shut down" in refused.stderr
    unclear = database.make("restore", at="soon")
    assert "at: must be a time such as" in unclear.stderr
    too_late = database.make("restore", at="tomorrow", force="yes")
    assert too_late.returncode != 0
    assert "recovery ended before configured recovery target was reached" in too_late.stderr
    database.restore()  # over the cluster that was restored and never promoted
    assert database.checksum() == before


def test_broken_archive_shows_in_metrics_and_forbids_a_restore(database: BackedUpStack) -> None:
    before = total(database, "db_wal_archive_failures_total")
    database.run_in("postgres", f"chmod -R a-w {SEGMENTS}")
    try:
        database.insert(rows=1)
        eventually(lambda: total(database, "db_wal_archive_waiting_seconds") > 1, within=60)
        eventually(lambda: total(database, "db_wal_archive_failures_total") > before, within=60)
        database.compose("stop", "postgres")
        refused = database.make("restore")
        assert refused.returncode != 0
        assert "has WAL that the repository lacks" in refused.stderr
    finally:
        database.run_in("backup", f"chmod -R u+w {SEGMENTS}")
    database.compose("start", "postgres")
    eventually(lambda: total(database, "db_wal_archive_waiting_seconds") == 0, within=90)


def test_unreadable_repository_shows_in_metrics_and_log(database: BackedUpStack) -> None:
    eventually(lambda: total(database, "db_backup_repository_readable") == 1, within=60)
    database.run_in("backup", "chmod 000 /var/lib/pgbackrest")
    try:
        eventually(lambda: total(database, "db_backup_repository_readable") == 0, within=60)
    finally:
        database.run_in("backup", "chmod 750 /var/lib/pgbackrest")
    assert "Permission denied" in database.compose("logs", "backup")


def test_key_of_the_repository_is_in_no_environment_and_no_log(database: BackedUpStack) -> None:
    [key] = re.findall(r"cipher-pass=(\w+)", Path(database.environment["SECRETS_DIR"], "backup_repository").read_text())
    containers = [str(database.inspect(service)["Config"]) for service in ("postgres", "backup")]

    assert key not in "".join(containers) + database.compose("logs")
