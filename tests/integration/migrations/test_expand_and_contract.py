"""`users.is_active` becomes `users.deactivated_at` under load: no failed statement, no wrong value at any step."""

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from httpx import AsyncClient
from sqlalchemy import URL, NullPool, create_engine

from app.database.base import Base
from migrations import autogenerate
from migrations.autogenerate import OPTIONS
from tests.support.expand_and_contract import BEFORE, CONTRACTED, EXPANDED, FILLED, NEW, OLD, SWITCHED, Clients
from tests.support.migrations import run_project, upgrade_project
from tests.support.people import person
from tests.support.postgres import as_role, connect

from .test_backfill_command import HEADROOM, NAME

CLIENTS = 6
INACTIVE = 1_000


@pytest.fixture
def before(owner: URL, tmp_path: Path) -> URL:
    """Return the owner's URL of a database before the change, with accounts that were deactivated a day ago."""
    migrate(owner, tmp_path, "downgrade", BEFORE)
    with connect(owner) as connection:
        connection.execute(
            "INSERT INTO users (email, name, password_hash, is_active, updated_at)"
            " SELECT n || '@example.com', 'Before', '', n %% 2 = 0, now() - interval '1 day'"
            " FROM generate_series(1, %s) AS n",
            (2 * INACTIVE,),
        )
    return owner


def migrate(url: URL, directory: Path, *arguments: str) -> None:
    finished = upgrade_project(url, directory, *arguments)
    assert finished.returncode == 0, finished.stdout


def test_no_statement_fails_and_no_value_is_wrong_at_any_step(before: URL, tmp_path: Path) -> None:
    clients = Clients(as_role(before, "headroom_app"), CLIENTS)
    with clients.running(OLD):
        migrate(before, tmp_path, "upgrade", EXPANDED)
        clients.serve(OLD)
        filled = run_project([*HEADROOM, "backfill", NAME], before, tmp_path)
        assert filled.returncode == 0, filled.stdout
        assert "finished" in filled.stdout
        migrate(before, tmp_path, "upgrade", SWITCHED)
        clients.serve(OLD, NEW)  # the new release is rolled out
        clients.serve(OLD)  # back
        clients.serve(OLD, NEW)
        clients.serve(NEW)
        migrate(before, tmp_path, "upgrade", CONTRACTED)
        clients.serve(NEW)

    print(f"{clients.done.total()} statements, the slowest one took {clients.slowest:.2f} s")
    with connect(before) as connection:
        known = "SELECT count(*) FROM users WHERE name = 'Before' AND deactivated_at = updated_at"
        assert connection.execute(known).fetchone() == (INACTIVE,)
        unknown = "SELECT count(*) FROM users WHERE name = 'Before' AND deactivated_at IS NULL"
        assert connection.execute(unknown).fetchone() == (INACTIVE,)


def test_contracting_step_can_be_reverted_under_load(owner: URL, tmp_path: Path) -> None:
    clients = Clients(as_role(owner, "headroom_app"), 2)
    with clients.running(NEW):
        migrate(owner, tmp_path, "downgrade", SWITCHED)
        clients.serve(OLD, NEW)
        clients.serve(NEW)
        migrate(owner, tmp_path, "upgrade", CONTRACTED)


async def test_code_of_the_switch_serves_before_and_after_the_contraction(
    owner: URL, database_url: URL, client: AsyncClient, tmp_path: Path
) -> None:
    """It is the code of this tree. Its connections stay open."""
    admin = await person(client, "Admin", database_url, is_admin=True)
    for number, step in enumerate((("downgrade", SWITCHED), ("upgrade", CONTRACTED))):
        await asyncio.to_thread(migrate, owner, tmp_path, *step)
        ann = await person(client, f"Ann{number}", database_url)
        assert (await ann("POST", "/posts", json={"title": "t", "content": "c"})).status_code == 201
        for active in (False, True, False):
            answer = await admin("PATCH", f"/users/{ann.id}", json={"is_active": active})
            assert (answer.status_code, answer.json()["is_active"]) == (200, active)
            assert (await ann("GET", "/users/me")).status_code == (200 if active else 401)
        assert (await admin("GET", "/users?is_active=false")).json()["total"] == number + 1
        assert (await admin("DELETE", f"/users/{admin.id + 99}")).status_code == 404


def test_leaving_column_is_no_drift(owner: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(owner, tmp_path, "downgrade", SWITCHED)
    engine = create_engine(owner.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)

        def drift() -> list[str]:
            found = compare_metadata(context, Base.metadata)
            return [getattr(each[-1], "name", "") for each in found if each[0] != "remove_table"]

        assert set(drift()) == {"is_active", "ck_users_deactivated_at"}
        for name in ("is_active", "ck_users_deactivated_at"):
            autogenerate.LEAVING.add(("users", name))
        try:
            assert drift() == []
        finally:
            autogenerate.LEAVING.clear()


@pytest.mark.parametrize("steps", ["without the trigger", "without the back-fill"])
def test_step_that_was_left_out_is_found(before: URL, tmp_path: Path, steps: str) -> None:
    """The migration fails before a release that reads the new column can start."""
    migrate(before, tmp_path, "upgrade", EXPANDED if steps == "without the trigger" else FILLED)
    with connect(before) as connection:
        if steps == "without the trigger":
            connection.execute("ALTER TABLE users DISABLE TRIGGER users_synchronise_deactivated_at")
            migrate(before, tmp_path, "upgrade", FILLED)
            connection.execute("UPDATE users SET is_active = false WHERE id = 2")
        else:
            connection.execute(
                "ALTER TABLE users DISABLE TRIGGER users_synchronise_deactivated_at;"
                "UPDATE users SET deactivated_at = NULL;"
                "ALTER TABLE users ENABLE TRIGGER users_synchronise_deactivated_at"
            )
    finished = upgrade_project(before, tmp_path)

    assert finished.returncode != 0
    assert 'check constraint "ck_users_deactivated_at" of relation "users" is violated by some row' in finished.stdout
    with connect(before) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("83e4b6170d5f",)


def test_clients_find_a_wrong_value(before: URL, tmp_path: Path) -> None:
    migrate(before, tmp_path, "upgrade", SWITCHED)
    with connect(before) as connection:
        connection.execute("DROP TRIGGER users_synchronise_deactivated_at ON users")
        connection.execute("ALTER TABLE users DROP CONSTRAINT ck_users_deactivated_at")
    with pytest.raises(AssertionError, match="of user"), Clients(as_role(before, "headroom_app"), 2).running(OLD, NEW):
        pass
