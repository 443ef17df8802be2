"""A database URL as connection parameters: of libpq, for code without SQLAlchemy, and of the engine's driver."""

from functools import cache
from typing import Any
from urllib.parse import urlencode

import psycopg
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine.interfaces import Dialect

from app.database_url import ASYNCPG_OPTIONS, ASYNCPG_URI_OPTIONS, DEFAULT_PORT


def parameters(url: URL) -> dict[str, Any]:
    """Return the keyword arguments of `psycopg.connect()` that lead where the engine of this URL leads.

    Options that libpq does not know (asyncpg's own) are left out; asyncpg's `ssl` takes the values of libpq's
    `sslmode`. Not a libpq URI: libpq rejects characters that passwords in SQLAlchemy URLs may contain.
    """
    _, arguments = PGDialect_psycopg().create_connect_args(url)  # type: ignore[no-untyped-call]
    if "ssl" in arguments:
        arguments.setdefault("sslmode", arguments["ssl"])
    return {name: value for name, value in arguments.items() if name in _libpq_options() and value}


def conninfo(url: URL, **changes: Any) -> str:
    """Return the same as a connection string, quoted as libpq requires. `changes` override parameters of the URL."""
    return psycopg.conninfo.make_conninfo("", **(parameters(url) | changes))


def hosts(url: URL) -> list[URL]:
    """Return a URL for each host of the URL, in their order; the URL itself if it has at most one."""
    found = parameters(url)
    names = str(found.get("host", "")).split(",")
    if len(names) == 1:
        return [url]
    ports = str(found.get("port", "")).split(",")
    ports = ports * len(names) if len(ports) == 1 else ports  # one port is for all hosts
    bare = url.difference_update_query(["host", "port"]).set(host=None, port=None)
    return [
        bare.update_query_dict({"host": name, "port": port or str(DEFAULT_PORT)})
        if name.startswith("/")  # a Unix socket
        else bare.set(host=name, port=int(port or DEFAULT_PORT))
        for name, port in zip(names, ports, strict=True)
    ]


def driver_arguments(dialect: Dialect, url: URL, own: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments with which the dialect connects to the URL, which has one host.

    `own` are the program's, which override the URL's. libpq's options are given to asyncpg as it understands them.
    """
    if dialect.driver != "asyncpg":
        return dict(dialect.create_connect_args(url)[1]) | own
    query = {name: str(value) for name, value in url.query.items()}
    of_uri = {name: query[name] for name in ASYNCPG_URI_OPTIONS & query.keys()}
    arguments: dict[str, Any] = {
        name: convert(query[name]) for name, convert in ASYNCPG_OPTIONS.items() if name in query
    }
    if of_uri:
        arguments["dsn"] = f"postgresql:///?{urlencode(of_uri)}"
    address = url.set(query={name: query[name] for name in ("host", "port") if name in query})
    arguments |= dict(dialect.create_connect_args(address)[1]) | own
    if "options" in query:
        arguments["server_settings"] = {"options": query["options"]} | arguments.get("server_settings", {})
    return arguments


@cache
def _libpq_options() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())
