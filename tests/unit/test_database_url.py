"""Database URLs as platforms hand them out, for every program and both drivers."""

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from app.database import make_engine
from app.database.conninfo import driver_arguments, hosts, parameters
from app.database_url import parse_database_url

TWO = {"host": "a,b", "port": "5432,5433"}


# URLs of the platforms and other forms, each with its user, password, host, port and database, for both drivers.
FORMS = {
    # Heroku
    "postgres://u1:p1@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1": "u1 p1 ec2-1-2-3-4.compute-1.amazonaws.com 5432 d1",
    # Render: internal, external
    "postgresql://u:p@dpg-abc-a/d": "u p dpg-abc-a - d",
    "postgresql://u:p@dpg-abc-a.oregon-postgres.render.com/d": "u p dpg-abc-a.oregon-postgres.render.com - d",
    # Railway: private, public
    "postgresql://u:p@postgres.railway.internal:5432/railway": "u p postgres.railway.internal 5432 railway",
    "postgresql://postgres:p@roundhouse.proxy.rlwy.net:41234/railway": (
        "postgres p roundhouse.proxy.rlwy.net 41234 railway"
    ),
    # Fly: Postgres apps, managed
    "postgres://app:p@app-db.flycast:5432/app?sslmode=disable": "app p app-db.flycast 5432 app",
    "postgresql://fly-user:p@pgbouncer.abc.flympg.net/fly-db": "fly-user p pgbouncer.abc.flympg.net - fly-db",
    # Supabase: direct, session pooler, transaction pooler
    "postgresql://postgres:p@db.ref.supabase.co:5432/postgres": "postgres p db.ref.supabase.co 5432 postgres",
    "postgresql://postgres.ref:p@aws-0-eu.pooler.supabase.com:5432/postgres": (
        "postgres.ref p aws-0-eu.pooler.supabase.com 5432 postgres"
    ),
    "postgres://postgres.ref:p@aws-0-eu.pooler.supabase.com:6543/postgres": (
        "postgres.ref p aws-0-eu.pooler.supabase.com 6543 postgres"
    ),
    # Neon: pooled, with the endpoint in the options
    "postgresql://u:p@ep-x-pooler.eu.aws.neon.tech/neondb?sslmode=require&channel_binding=require": (
        "u p ep-x-pooler.eu.aws.neon.tech - neondb"
    ),
    "postgresql://u:p@ep-x.eu.aws.neon.tech/neondb?sslmode=require&options=endpoint%3Dep-x": (
        "u p ep-x.eu.aws.neon.tech - neondb"
    ),
    # RDS
    "postgresql://u:p@db.abc.eu-west-1.rds.amazonaws.com:5432/d?sslmode=verify-full&sslrootcert={file}": (
        "u p db.abc.eu-west-1.rds.amazonaws.com 5432 d"
    ),
    # Cloud SQL: the socket of its proxy
    "postgresql://u:p@/d?host=/cloudsql/project:region:name": "u p /cloudsql/project:region:name - d",
    # Schemes
    "postgresql+asyncpg://u:p@h/d": "u p h - d",
    "postgresql+psycopg://u:p@h/d": "u p h - d",
    "POSTGRES://u:p@h/d": "u p h - d",
    " postgres://u:p@h/d\n": "u p h - d",
    # Host and port in the query, sockets
    "postgresql://u:p@/d?host=127.0.0.1&port=5446": "u p 127.0.0.1 5446 d",
    "postgresql://u:p@h/d?port=5446": "u p h 5446 d",
    "postgresql://u:p@h:1/d?host=x": "u p x 1 d",
    "postgresql://u:p@/d?host=h:5433": "u p h 5433 d",
    "postgresql://u:p@%2Fvar%2Frun%2Fpostgresql/d": "u p /var/run/postgresql - d",
    "postgresql://u:p@%2Fvar%2Frun%2Fpostgresql:5433/d": "u p /var/run/postgresql 5433 d",
    "postgresql://u:p@/d?host=/tmp&port=5433": "u p /tmp 5433 d",
    "postgresql://u:p@/d": "u p - - d",
    # IPv6
    "postgresql://u:p@[::1]/d": "u p ::1 - d",
    "postgresql://u:p@[2001:db8::1]:5433/d": "u p 2001:db8::1 5433 d",
    "postgresql://u:p@[fe80::1%25eth0]/d": "u p fe80::1%eth0 - d",
    # Percent-encoding, and characters that need none
    "postgresql://u%40x:p%2Fw%40@h/d": "u@x p/w@ h - d",
    "postgresql://u:p+w@h/d": "u p+w h - d",
    "postgresql://u:p#w?/@h/d": "u p#w?/ h - d",
    "postgresql://u:p%25w@h/d": "u p%w h - d",
    "postgresql://u:p@h/my%2Ddb": "u p h - my-db",
    # The account in the query, no password, no database
    "postgresql://h/d?user=u&password=p": "u p h - d",
    "postgresql://u:p@h?dbname=d": "u p h - d",
    "postgresql://u@h/d": "u - h - d",
    "postgresql://u:p@h": "u p h - -",
    "postgresql://u:p@h/": "u p h - -",
    "postgresql://u:p@h/d?sslmode=": "u p h - d",
}
NO_URL = "is not a database URL, such as postgresql://user:password@host:5432/database"
REFUSED = {
    "postgresql+psycopg://h/d?ssl=require": "has the option 'ssl', which psycopg does not know; use sslmode",
    "postgresql://h/d?sslmod=require": "has the option 'sslmod', which asyncpg does not know; did you mean sslmode?",
    "postgresql://h/d?sslaccept=strict": "has the option 'sslaccept', which asyncpg does not know; use sslmode",
    "postgresql://h/d?pgbouncer=true": "does not know; leave it out, and set DB_POOLER=pgbouncer",
    "postgresql://h/d?connection_limit=1": "does not know; leave it out, and set DB_POOL_SIZE",
    "postgresql://h/d?schema=public": "does not know; use options=-csearch_path%3DNAME",
    "postgresql://h/d?supa=base-pooler.x": "has the option 'supa', which asyncpg does not know; leave it out",
    "postgresql://h/d?zzz=1": "has the option 'zzz', which asyncpg does not know; leave it out",
    "postgresql://h/d?unix_sock=/tmp/s": "does not know; use host with the directory of the socket",
    "postgresql://h/d?hostaddr=1.2.3.4": "has the option 'hostaddr', which asyncpg does not know; psycopg does",
    "postgresql+psycopg://h/d?statement_cache_size=0": "which psycopg does not know; asyncpg does",
    "postgresql+psycopg://h/d?sslmode=yes": "has the option sslmode=yes; its values are disable, ",
    "postgresql://h/d?ssl=true": "has the option ssl=true; its values are disable, ",
    "postgresql://h/d?target_session_attrs=master": "has the option target_session_attrs=master; its values are any, ",
    "postgresql://h/d?channel_binding=yes": "has the option channel_binding=yes; its values are disable, ",
    "postgresql://h/d?statement_cache_size=none": "has the option statement_cache_size=none, which must be a number",
    "postgresql+psycopg://h/d?connect_timeout=3s": "has the option connect_timeout=3s, which must be a number",
    "postgresql://h/d?sslmode=require&sslmode=disable": "has the option 'sslmode' more than once",
    "postgresql://h/d?gssencmode=require": "has the option gssencmode=require, which asyncpg cannot honour; psycopg",
    "postgresql://h/d?sslmode=verify-full": "has sslmode=verify-full and no certificate of an authority; add ssl",
    "postgresql://h/d?sslrootcert=/no.pem": "has the option sslrootcert=/no.pem, which is no file that this program",
    "postgresql://h/d?sslmode=verify-full&sslrootcert=system": "sslrootcert=system, which asyncpg does not know; name",
    "postgresql+psycopg://h/d?sslmode=require&sslrootcert=system": "system needs sslmode=verify-full",
    "postgresql://u@/d?host=a,b&port=1,2,3": "has 2 hosts and 3 ports",
    "postgresql://a,/d": "has a list of hosts with an empty name",
    "postgresql://h:99999/d": "has a port that is not a number from 1 to 65535",
    "postgresql://a:1,b:0/d": "has a port that is not a number from 1 to 65535",
    "postgresql://u@a:x,b/d": NO_URL,
    "postgresql://h:x/d": NO_URL,
    "nonsense": NO_URL,
    "mysql://h/d": "starts with 'mysql'; supported are postgresql+asyncpg, postgresql+psycopg",
    "postgresql+psycopg2://h/d": "starts with 'postgresql+psycopg2'; supported are",
    "jdbc:postgresql://h/d": "is a JDBC URL; write postgresql://user:password@host:5432/database",
    "psql 'postgresql://h/d'": "is a command of psql; keep only the URL",
    '"postgresql://h/d"': "starts with a quotation mark; remove the quotation marks",
    "host=h dbname=d": "is a connection string of libpq; write postgresql://",
    "${DATABASE_URL}": "contains a variable that was not replaced by its value",
    "postgresql://u:$(PASSWORD)@h/d": "contains a variable that was not replaced by its value",
    "postgresql://u:[YOUR-PASSWORD]@h/d": "has a placeholder instead of the password; replace it",
    "postgresql://u:p@w@h/d": "has an @ in the user or the password; write it as %40",
    "postgresql://u:p@w?sslmode=PASSWORD@h/d": "has an @ in the user or the password; write it as %40",
    "postgresql://u:p@w?PASSWORD=x@h/d": "has an @ in the user or the password; write it as %40",
}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("text", FORMS)
def test_url_form_leads_every_program_to_its_server(tmp_path: Path, text: str, driver: str) -> None:
    """The engine of the API and of migrations, and libpq: the seed, the exporter and startup checks."""
    (tmp_path / "ca.pem").touch()
    url = parse_database_url(text.replace("{file}", str(tmp_path / "ca.pem")))
    assert url.get_driver_name() == ("psycopg" if "psycopg" in text else "asyncpg")

    dialect = make_engine(url=make_url(f"postgresql+{driver}://"), application_name="test").dialect
    of_engine = driver_arguments(dialect, url.set(drivername=f"postgresql+{driver}"), {})
    of_libpq = parameters(url)

    for found, database in ((of_engine, "database" if driver == "asyncpg" else "dbname"), (of_libpq, "dbname")):
        shown = (str(found.get(name) or "-") for name in ("user", "password", "host", "port", database))
        assert " ".join(shown) == FORMS[text]
    assert hosts(url) == [url]
    assert parse_database_url(url.render_as_string(hide_password=False)) == url


@pytest.mark.parametrize("text", REFUSED)
def test_url_form_that_cannot_be_honoured_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(ValueError, match=re.escape(REFUSED[text])) as raised:
        parse_database_url(text)

    assert "PASSWORD" not in str(raised.value)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    "text",
    [
        "u:p@a,b:5433/d",
        "u:p@a:5432,b:5433/d",
        "u:p@/d?host=a:5432&host=b:5433",
        "u:p@/d?host=a&host=b:5433",
        "u:p@/d?host=a,b&port=5432,5433",
        "u:p@/d?host=a,b&port=,5433",
    ],
)
def test_url_with_two_hosts_leads_every_program_to_both(driver: str, text: str) -> None:
    url = parse_database_url(f"postgresql+{driver}://{text}")

    assert parameters(url) == {"user": "u", "password": "p", "dbname": "d"} | TWO
    assert [(each.host, each.port) for each in hosts(url)] == [("a", 5432), ("b", 5433)]
    assert make_engine(url=url, application_name="test").url == url


def test_url_with_two_hosts_keeps_ipv6_addresses_and_options() -> None:
    url = parse_database_url("postgresql://u:p%40,q@[::1]:5433,b/d?target_session_attrs=read-write")

    assert [(each.host, each.port) for each in hosts(url)] == [("::1", 5433), ("b", 5432)]
    assert {each.query["target_session_attrs"] for each in hosts(url)} == {"read-write"}
    assert url.password == "p@,q"


def test_comma_in_a_password_is_no_second_host() -> None:
    url = parse_database_url("postgresql://u:p,q@h/d")

    assert (url.password, url.host, len(hosts(url))) == ("p,q", "h", 1)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("sslmode=require", {"dsn": "postgresql:///?sslmode=require"}),
        ("sslmode=require&channel_binding=require", {"dsn": "postgresql:///?sslmode=require"}),
        ("application_name=x", {}),
        ("connect_timeout=9&keepalives=1", {}),
        ("ssl=require", {"ssl": "require"}),
        ("statement_cache_size=0", {"statement_cache_size": 0}),
        ("options=-c%20jit%3Doff", {"server_settings": {"options": "-c jit=off", "application_name": "own"}}),
    ],
)
def test_options_of_libpq_reach_asyncpg_as_it_knows_them(query: str, expected: dict[str, Any]) -> None:
    url = parse_database_url(f"postgresql://u:p@h:5433/d?{query}")
    dialect = make_engine(url=make_url("postgresql+asyncpg://"), application_name="own").dialect
    own = {"server_settings": {"application_name": "own"}}

    assert (
        driver_arguments(dialect, url, own)
        == {"user": "u", "password": "p", "host": "h", "port": 5433, "database": "d"} | own | expected
    )
