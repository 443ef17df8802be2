"""The database's URL in libpq's words, for what goes past SQLAlchemy: COPY, PgBouncer's console, `pg_isready`."""

from typing import Any

import psycopg
from sqlalchemy import URL

# What else a URL may say, as SQLAlchemy's dialects spell it: asyncpg's `ssl` takes the values of libpq's `sslmode`.
_OPTIONS = {"ssl": "sslmode", "sslmode": "sslmode", "sslrootcert": "sslrootcert"}


def parameters(url: URL) -> dict[str, Any]:
    """For `psycopg.connect()`. Not as one URL: libpq objects to characters that a password of SQLAlchemy's can have."""
    given = {
        "host": url.query.get("host") or url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    } | {libpq: url.query[name] for name, libpq in _OPTIONS.items() if name in url.query}
    return {name: value for name, value in given.items() if value}


def conninfo(url: URL, **changes: Any) -> str:
    """The same as a string, with libpq's own quoting."""
    return psycopg.conninfo.make_conninfo("", **(parameters(url) | changes))
