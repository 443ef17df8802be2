"""Constraints have the same names for `violations()` on PostgreSQL, with both drivers, as on SQLite."""

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import IntegrityError

from app.database import Database
from app.database.error_mapping import violations
from app.errors import Conflict
from tests.support.constraints import METADATA, VIOLATIONS, create_tables
from tests.support.postgres import connect


class Taken(Conflict):
    pass


@pytest.mark.parametrize("database_setup", ["asyncpg", "psycopg"])
async def test_violated_constraint_is_found_by_its_name(database: Database, database_url: URL) -> None:
    with connect(database_url) as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO headroom_app")
    async with database.engine.connect() as connection:
        await create_tables(connection)

    for statement, name in VIOLATIONS:
        with pytest.raises(Taken):
            async with database.write() as session:
                with violations({"other": Conflict(), name: Taken()}, METADATA):
                    await session.execute(text(statement))
        with pytest.raises(IntegrityError):
            async with database.write() as session:
                with violations({"other": Conflict()}, METADATA):
                    await session.execute(text(statement))
