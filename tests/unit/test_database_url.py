"""Database URLs as platforms hand them out, for every program and both drivers."""

from typing import Any

import pytest
from sqlalchemy import make_url

from app.database import make_engine
from app.database.conninfo import driver_arguments, hosts, parameters
from app.database_url import parse_database_url

TWO = {"host": "a,b", "port": "5432,5433"}


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("postgres://u:p@h/d", "asyncpg"),
        ("postgresql://u:p@h/d", "asyncpg"),
        ("postgresql+psycopg://u:p@h/d", "psycopg"),
    ],
)
def test_url_of_a_platform_gets_a_supported_driver(text: str, driver: str) -> None:
    url = parse_database_url(text)

    assert (url.get_driver_name(), url.username, url.password, url.host, url.database) == (driver, "u", "p", "h", "d")


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
    ("text", "reason"),
    [
        ("postgresql+psycopg://u:p@h/d?ssl=require", "has the option 'ssl', which psycopg does not know; use sslmode"),
        ("postgresql+asyncpg://u:p@h/d?sslmod=require", "has the option 'sslmod', which asyncpg does not know"),
        ("postgresql+psycopg://u:p@h/d?sslmode=yes", "has the option sslmode=yes; its values are disable, "),
        ("postgresql://h/d?target_session_attrs=master", "has the option target_session_attrs=master; its values are"),
        ("postgresql://h/d?statement_cache_size=none", "has the option statement_cache_size=none, which must be a num"),
        ("postgresql://u@/d?host=a,b&port=1,2,3", "has 2 hosts and 3 ports"),
        ("postgresql://u@a:x,b/d", "is not a database URL"),
        ("mysql://h/d", "starts with 'mysql'; supported are"),
        ("nonsense", "is not a database URL"),
    ],
)
def test_url_that_cannot_be_honoured_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_database_url(text)


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


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_host_and_port_in_the_query_are_those_of_the_engine(driver: str) -> None:
    url = parse_database_url(f"postgresql+{driver}://u:p@/d?host=127.0.0.1&port=5446")
    dialect = make_engine(url=url, application_name="own").dialect

    arguments = driver_arguments(dialect, url, {})
    assert (arguments["host"], int(arguments["port"])) == ("127.0.0.1", 5446)
    assert (parameters(url)["host"], int(parameters(url)["port"])) == ("127.0.0.1", 5446)
