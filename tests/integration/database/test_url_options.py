"""Options of a URL reach the server with both drivers."""

import pytest
from sqlalchemy import URL, func, select

from app.database import Database, make_engine
from app.database_url import parse_database_url

SETTINGS = select(
    func.current_setting("jit").label("jit"), func.current_setting("application_name").label("application_name")
)


@pytest.fixture(params=["asyncpg", "psycopg"])
def database_setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_options_of_libpq_work_with_both_drivers(database_url: URL) -> None:
    """The engine's own application_name overrides the URL's: the exporter counts connections by it."""
    options = {
        "sslmode": "prefer",
        "channel_binding": "prefer",
        "application_name": "x",
        "options": "-c jit=off",
        "target_session_attrs": "read-write",
    }
    url = parse_database_url(database_url.update_query_dict(options))
    engine = make_engine(url=url, application_name="headroom:test")

    row = await Database(engine).read.first(SETTINGS)
    await engine.dispose()

    assert row is not None
    assert (row["jit"], row["application_name"]) == ("off", "headroom:test")
