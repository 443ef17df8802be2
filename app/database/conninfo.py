"""A database URL as libpq connection parameters, for code without SQLAlchemy: COPY, PgBouncer's console, pings."""

from typing import Any

import psycopg
from sqlalchemy import URL

# Options of SQLAlchemy URLs by libpq's name. asyncpg's `ssl` takes the values of libpq's `sslmode`.
_OPTIONS = {"ssl": "sslmode", "sslmode": "sslmode", "sslrootcert": "sslrootcert"}


def parameters(url: URL) -> dict[str, Any]:
    """Return the keyword arguments of `psycopg.connect()` for a SQLAlchemy URL.

    Not a libpq URI: libpq rejects characters that passwords in SQLAlchemy URLs may contain.
    """
    given = {
        "host": url.query.get("host") or url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    } | {libpq: url.query[name] for name, libpq in _OPTIONS.items() if name in url.query}
    return {name: value for name, value in given.items() if value}


def conninfo(url: URL, **changes: Any) -> str:
    """Return the same as a connection string, quoted as libpq requires. `changes` override parameters of the URL."""
    return psycopg.conninfo.make_conninfo("", **(parameters(url) | changes))
