"""Releases and schemas of different age: which programs start, what migrations change, and which remedies work."""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import psycopg
import pytest
from sqlalchemy import URL

from app.database.admin_connection import AdminConnection
from app.database.schema_version import State, check_schema, compare, database_schema, kind_of, scripts
from app.errors import SchemaMismatch
from app.exporter.collectors.migrations import MigrationsCollector
from tests.integration.exporter.collectors.helpers import total
from tests.support.migrations import (
    PYPROJECT,
    Release,
    head,
    recorded,
    run_project,
    statements,
    upgrade_project,
    version,
)
from tests.support.postgres import PgBouncer, as_role, connect

HEADROOM = [sys.executable, "-m", "app.cli.main"]
ADD_COLUMN = ("op.add_column('users', sa.Column('nickname', sa.Text()))", "op.drop_column('users', 'nickname')")
DROP_COLUMN = ("op.drop_column('users', 'is_admin')", "op.add_column('users', sa.Column('is_admin', sa.Boolean()))")


@pytest.fixture
def newer(tmp_path: Path) -> Release:
    """Return a release that adds a column."""
    release = Release(tmp_path / "newer")
    release.add("added", *ADD_COLUMN)
    return release


@pytest.fixture
def contracting(newer: Release) -> Release:
    """Return a release that adds a column, and then drops one that the project uses."""
    newer.add("dropped", *DROP_COLUMN, kind="contracting")
    return newer


async def check(url: URL, seconds: float = 0) -> None:
    await check_schema(url, deadline=monotonic() + seconds, application_name="headroom:test")


def test_history_follows_upgrade_and_downgrade(owner: URL, contracting: Release) -> None:
    before = recorded(owner)
    newest = scripts().get_revision(head())
    assert newest is not None
    assert before[-1] == (head(), kind_of(newest))

    assert contracting.run(owner).returncode == 0
    assert recorded(owner) == [*before, ("added", "additive"), ("dropped", "contracting")]

    assert contracting.run(owner, "downgrade", "-1").returncode == 0
    assert recorded(owner) == [*before, ("added", "additive")]


def test_history_follows_a_stamp(owner: URL, contracting: Release) -> None:
    before = recorded(owner)
    assert contracting.run(owner, "stamp", "dropped").returncode == 0
    assert recorded(owner) == [*before, ("added", "additive"), ("dropped", "contracting")]

    assert contracting.run(owner, "stamp", head()).returncode == 0
    assert recorded(owner) == before


def test_history_of_a_failed_revision_is_rolled_back(owner: URL, newer: Release) -> None:
    """The row is written last; a deferred constraint fails after it, at the commit."""
    newer.add(
        "failing",
        "op.execute('CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)')\n"
        "op.execute('INSERT INTO once VALUES (1), (1)')",
    )
    finished = newer.run(owner)

    assert finished.returncode != 0
    assert "once_id_key" in finished.stdout
    assert (version(owner), recorded(owner)[-1]) == ("added", ("added", "additive"))


def test_undeclared_kind_is_refused(owner: URL, newer: Release) -> None:
    newer.add("odd", "pass", kind="additiv")
    finished = newer.run(owner)

    assert finished.returncode != 0
    assert "revision odd: kind must be one of additive, contracting, got 'additiv'" in finished.stdout
    assert version(owner) == "added"


async def test_database_of_a_release_without_history_is_adopted(owner: URL, tmp_path: Path) -> None:
    before = recorded(owner)
    with connect(owner) as connection:
        connection.execute("DROP TABLE schema_revisions")
    await check(owner)

    assert upgrade_project(owner, tmp_path).returncode == 0
    assert recorded(owner) == before
    async with AdminConnection(as_role(owner, "headroom_monitor"), application_name="test") as monitor:
        assert compare(await database_schema(monitor)).state is State.CURRENT


def test_history_that_another_release_did_not_maintain_is_repaired(owner: URL, newer: Release) -> None:
    assert newer.run(owner).returncode == 0
    after = recorded(owner)
    with connect(owner) as connection:  # as a release without the table does
        connection.execute("ALTER TABLE users DROP COLUMN nickname")
        connection.execute("UPDATE alembic_version SET version_num = %s", (head(),))

    assert newer.run(owner).returncode == 0
    assert recorded(owner) == after


async def test_older_release_runs_on_a_newer_compatible_schema(
    owner: URL, database_url: URL, newer: Release, tmp_path: Path, json_log: Callable[[], str]
) -> None:
    assert newer.run(owner).returncode == 0
    await check(database_url)
    assert f"the database is at revision added, newer than this release ({head()}) and compatible" in json_log()

    before = recorded(owner)
    again = upgrade_project(owner, tmp_path)
    assert again.returncode == 0, again.stdout
    assert "nothing to do: the database is at revision added, newer than this release" in again.stdout
    assert (version(owner), recorded(owner)) == ("added", before)

    refused = upgrade_project(owner, tmp_path, "downgrade", "-1")
    assert refused.returncode != 0
    assert "only `alembic upgrade head` is possible with this release" in refused.stdout
    assert version(owner) == "added"


async def test_remedy_for_an_incompatible_schema_works(
    owner: URL, database_url: URL, contracting: Release, tmp_path: Path
) -> None:
    assert contracting.run(owner).returncode == 0
    with pytest.raises(SchemaMismatch) as refusal:
        await check(database_url)
    migration = upgrade_project(owner, tmp_path)
    assert migration.returncode != 0
    assert str(refusal.value) in migration.stdout
    assert "Traceback" not in migration.stdout
    assert "Start a release that has revision dropped" in str(refusal.value)

    [target] = re.findall(r"`alembic downgrade (\w+)`", str(refusal.value))
    assert contracting.run(owner, "downgrade", target).returncode == 0
    await check(database_url)
    assert upgrade_project(owner, tmp_path).returncode == 0


async def test_contracting_revision_lets_the_release_before_run(owner: URL, newer: Release, tmp_path: Path) -> None:
    """The release before has stopped using the column, and the revision says so."""
    newer.add("dropped", *DROP_COLUMN, kind="contracting", oldest="added")
    before = Release(tmp_path / "before")
    before.add("added", *ADD_COLUMN)
    assert newer.run(owner).returncode == 0

    again = before.run(owner)
    assert again.returncode == 0, again.stdout
    assert "nothing to do: the database is at revision dropped, newer than this release (added)" in again.stdout
    with pytest.raises(
        SchemaMismatch, match=r"revision dropped is contracting\. Start a release that has revision added"
    ):
        await check(owner)
    shown = json.loads(run_project([*HEADROOM, "schema", "--json"], owner, tmp_path).stdout.partition("headroom")[0])
    assert shown["oldest_that_may_run"] == "added"


async def test_history_table_of_an_earlier_release_gets_its_column(owner: URL, newer: Release) -> None:
    newer.add("dropped", *DROP_COLUMN, kind="contracting", oldest="added")
    with connect(owner) as connection:
        connection.execute("ALTER TABLE schema_revisions DROP COLUMN oldest_that_may_run")
    await check(owner)

    assert newer.run(owner).returncode == 0
    with connect(owner) as connection:
        rows = connection.execute("SELECT revision, oldest_that_may_run FROM schema_revisions ORDER BY position")
        assert rows.fetchall()[-2:] == [("added", None), ("dropped", "added")]


@pytest.mark.parametrize(("kind", "oldest"), [("additive", "added"), ("contracting", "unknown")])
def test_invalid_oldest_revision_is_refused(owner: URL, newer: Release, kind: str, oldest: str) -> None:
    newer.add("dropped", *DROP_COLUMN, kind=kind, oldest=oldest)
    finished = newer.run(owner)

    assert finished.returncode != 0
    assert "revision dropped: oldest_that_may_run" in finished.stdout
    assert version(owner) == "added"


async def test_remedy_for_another_branch_works(owner: URL, newer: Release, tmp_path: Path) -> None:
    assert newer.run(owner).returncode == 0
    other = Release(tmp_path / "other")
    other.add("elsewhere", "op.execute('CREATE TABLE elsewhere ()')")
    refused = other.run(owner)
    assert refused.returncode != 0
    assert "it comes from another branch, which lacks revision elsewhere" in refused.stdout

    [target] = re.findall(r"`alembic downgrade (\w+)`", refused.stdout)
    assert newer.run(owner, "downgrade", target).returncode == 0
    assert other.run(owner).returncode == 0
    assert version(owner) == "elsewhere"


async def test_api_on_an_older_schema_waits_for_the_migration(empty_database: URL, tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="run `alembic upgrade head`"):
        await check(empty_database)

    waiting = asyncio.create_task(check(empty_database, 60))
    finished = await asyncio.to_thread(upgrade_project, empty_database, tmp_path)
    assert finished.returncode == 0, finished.stdout
    await waiting


def test_headroom_schema_shows_both_sides(owner: URL, contracting: Release, tmp_path: Path) -> None:
    current = run_project([*HEADROOM, "schema"], owner, tmp_path)
    assert current.returncode == 0
    assert re.search(rf"^code +{head()}$", current.stdout, re.MULTILINE)
    assert re.search(r"^pending +none$", current.stdout, re.MULTILINE)

    assert contracting.run(owner).returncode == 0
    refused = run_project([*HEADROOM, "schema", "--json"], owner, tmp_path)
    document, _, message = refused.stdout.partition("headroom schema: ")
    assert refused.returncode == 1
    assert "`alembic downgrade added`" in message
    shown = json.loads(document)
    assert (shown["database"], shown["oldest_that_may_run"]) == (["dropped"], "dropped")
    assert (shown["pending"], shown["ahead"]) == ([], ["added", "dropped"])


CREATE_ADMIN = ["create-admin", "--email", "root@example.com"]


@pytest.mark.parametrize("program", [["seed"], CREATE_ADMIN], ids=["seed", "create-admin"])
def test_job_on_an_incompatible_schema_is_refused(
    owner: URL, contracting: Release, tmp_path: Path, program: list[str]
) -> None:
    assert contracting.run(owner).returncode == 0
    (tmp_path / "password").write_text("correct horse\n")
    refused = run_project(["sh", "-c", f'"$@" < {tmp_path}/password', "sh", *HEADROOM, *program], owner, tmp_path)

    assert refused.returncode == 1
    assert "revision dropped is contracting" in refused.stdout
    assert "Traceback" not in refused.stdout


async def test_exporter_reports_and_logs_both_directions(
    owner: URL, contracting: Release, json_log: Callable[[], str]
) -> None:
    async with AdminConnection(as_role(owner, "headroom_monitor"), application_name="headroom:exporter") as server:
        collector = MigrationsCollector(server)

        async def values() -> tuple[float, float, float]:
            metrics = await collector.collect()
            names = ("db_migrations_pending", "db_migrations_ahead", "db_schema_compatible")
            return tuple(total(metrics, name) for name in names)  # type: ignore[return-value]

        assert await values() == (0, 0, 1)
        assert not json_log()
        contracting.run(owner, "upgrade", "added")
        assert await values() == (0, 1, 1)
        contracting.run(owner, "upgrade", "dropped")
        assert await values() == (0, 2, 0)
        assert await values() == (0, 2, 0)
    assert json_log().count("newer than this release") == 1
    assert json_log().count("revision dropped is contracting") == 1


def test_edited_revision_is_logged_by_the_next_migration(owner: URL, newer: Release) -> None:
    assert newer.run(owner).returncode == 0
    file = newer.file("added")
    file.write_text(f'"""Add a nickname."""\n# a comment\n{file.read_text()}')
    assert "was edited" not in newer.run(owner).stdout

    file.write_text(file.read_text().replace("sa.Text()", "sa.String(50)"))
    finished = newer.run(owner)
    assert finished.returncode == 0
    assert "revision added was edited after it was applied to this database" in finished.stdout


def test_script_maintains_the_same_history(owner: URL, newer: Release, empty_database: URL) -> None:
    assert newer.run(owner).returncode == 0
    columns = "SELECT revision, kind, checksum, release, oldest_that_may_run FROM schema_revisions ORDER BY position"
    with connect(owner) as migrated, connect(empty_database) as scripted:
        for revision_range in (head(), f"{head()}:added"):
            script = newer.run(empty_database, "upgrade", revision_range, "--sql", LOG_LEVEL="error").stdout
            if "CREATE EXTENSION" in script and not available(scripted, "pg_trgm"):
                pytest.skip("a script requires pg_trgm, which this server does not provide")
            lines = [line for line in script.splitlines() if not line.startswith("INFO ")]
            for statement in statements("\n".join(lines) + "\n"):
                scripted.execute(statement.encode())
        assert scripted.execute(columns).fetchall() == migrated.execute(columns).fetchall()


def available(connection: psycopg.Connection, extension: str) -> bool:
    query = "SELECT FROM pg_available_extensions WHERE name = %s"
    return bool(connection.execute(query, (extension,)).fetchall())


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("variable", ["MIGRATION_DATABASE_URL", "DATABASE_URL"])
def test_migration_through_pgbouncer_is_refused(
    database_url: URL, pgbouncer: PgBouncer, tmp_path: Path, driver: str, variable: str
) -> None:
    """Also if MIGRATION_DATABASE_URL is not set and DATABASE_URL leads to PgBouncer."""
    url = pgbouncer.url(database_url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    other = {"MIGRATION_DATABASE_URL": "", "DATABASE_URL": ""} | {variable: url}
    finished = run_project(
        [sys.executable, "-m", "alembic", "-c", str(PYPROJECT), "upgrade", "head"], database_url, tmp_path, **other
    )

    assert finished.returncode != 0
    [line] = [line for line in finished.stdout.splitlines() if "pooler" in line]
    assert f"{variable}: 127.0.0.1:{pgbouncer.port} is a connection pooler" in line
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize("variable", ["MIGRATION_DATABASE_URL", "DATABASE_URL"])
def test_migration_as_the_role_of_the_api_names_the_next_step(database_url: URL, tmp_path: Path, variable: str) -> None:
    other = {"MIGRATION_DATABASE_URL": "", variable: database_url.render_as_string(hide_password=False)}
    finished = run_project(
        [sys.executable, "-m", "alembic", "-c", str(PYPROJECT), "upgrade", "head"], database_url, tmp_path, **other
    )

    assert finished.returncode != 0
    [line] = [line for line in finished.stdout.splitlines() if "may not create tables" in line]
    assert f"{variable}: the role headroom_app may not create tables in the schema public" in line
    assert "set MIGRATION_DATABASE_URL to the role that owns the tables: headroom_owner" in line
    assert "Traceback" not in finished.stdout
