"""Options of a URL reach the server with both drivers."""

from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import URL, func, select

from app.database import Database, make_engine
from app.database.admin_connection import AdminConnection
from app.database.conninfo import parameters
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


def _forms(url: URL) -> dict[str, str]:
    """Return forms of a test's URL: with a socket if the server is embedded, else with a TCP address."""
    address = parameters(url)
    user, password, database = (quote(str(address[name]), safe="") for name in ("user", "password", "dbname"))
    host = quote(str(address["host"]), safe="")
    forms = {
        "query": f"postgres://{user}:{password}@/{database}?host={host}",
        "account": f"postgresql:///?host={host}&user={user}&password={password}&dbname={database}",
        "options": f"postgresql://{user}:{password}@{host}/{database}?sslmode=prefer&channel_binding=prefer",
        "upper case": f"POSTGRES://{user}:{password}@{host}/{database}",
    }
    if "port" not in address:
        return forms
    port = address["port"]
    forms = {name: text + ("&" if "?" in text else "?") + f"port={port}" for name, text in forms.items()}
    hosts = f"127.0.0.1:1,{host}:{port}"
    return forms | {"hosts": f"postgresql://{user}:{password}@{hosts}/{database}?target_session_attrs=read-write"}


async def test_url_forms_lead_every_program_to_one_server(database_url: URL) -> None:
    """The engine of the API and the migrations, the exporter's connection, and libpq, which the seed uses."""
    statement = "SELECT current_database() AS name"
    for form, text in _forms(database_url).items():
        url = parse_database_url(text).set(drivername=database_url.drivername)
        engine = make_engine(url=url, application_name="headroom:test")
        async with engine.connect() as connection:
            of_engine = (await connection.exec_driver_sql(statement)).scalar_one()
        await engine.dispose()
        async with AdminConnection(url, application_name="headroom:test") as admin:
            of_exporter = await admin.query(statement)
        with psycopg.connect(**parameters(url)) as connected:
            of_seed = connected.info.dbname

        assert {of_engine, of_exporter[0]["name"], of_seed} == {database_url.database}, form
