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


def conninfo(url: URL, **changes: Any) -> str:
    """Return the same as a connection string, quoted as libpq requires. `changes` override parameters of the URL."""
    return psycopg.conninfo.make_conninfo("", **(parameters(url) | changes))


@cache
def _libpq_options() -> frozenset[str]:
    return frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())
