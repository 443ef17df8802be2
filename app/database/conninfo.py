"""A database URL as libpq connection parameters, for code without SQLAlchemy: COPY, PgBouncer's console, pings."""

from functools import cache
from typing import Any

import psycopg
from sqlalchemy import URL
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg


def parameters(url: URL) -> dict[str, Any]:
    """Return the keyword arguments of `psycopg.connect()` that lead where the engine of this URL leads.

    Options that libpq does not know (asyncpg's own) are left out; asyncpg's `ssl` takes the values of libpq's
    `sslmode`. Not a libpq URI: libpq rejects characters that passwords in SQLAlchemy URLs may contain.
    """
    _, arguments = PGDialect_psycopg().create_connect_args(url)  # type: ignore[no-untyped-call]
    if "ssl" in arguments:
        arguments.setdefault("sslmode", arguments["ssl"])
    return {name: value for name, value in arguments.items() if name in _libpq_options() and value}


def hosts(url: URL) -> list[URL]:
    """Return a URL for each host of the URL; the URL itself if it has at most one."""
    found = parameters(url)
    names = str(found.get("host", "")).split(",")
    ports = str(found.get("port", "")).split(",")
    if len(names) == 1:
        return [url]
    ports = ports * len(names) if len(ports) == 1 else ports  # one port is for all hosts
    bare = url.difference_update_query(["host", "port"])
    return [
        bare.set(host=name, port=int(port) if port else None)
        if not name.startswith("/")
        else bare.set(host=None, port=None).update_query_dict({"host": name} | ({"port": port} if port else {}))
        for name, port in zip(names, ports, strict=True)
    ]


def conninfo(url: URL, **changes: Any) -> str:
    """Return the same as a connection string, quoted as libpq requires. `changes` override parameters of the URL."""
    return psycopg.conninfo.make_conninfo("", **(parameters(url) | changes))


@cache
def _libpq_options() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())
