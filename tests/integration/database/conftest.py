"""The tests of the database package run with both drivers, directly and through PgBouncer."""

import pytest


@pytest.fixture(params=["asyncpg", "psycopg", "asyncpg-pgbouncer", "psycopg-pgbouncer"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)
