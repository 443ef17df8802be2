"""Database URLs as platforms hand them out, in SQLAlchemy's form. What a driver cannot honour is refused by name.

The options are those of libpq, with both drivers. asyncpg understands most of them, and has a few of its own.
"""

import re

from psycopg.pq import Conninfo
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

SUPPORTED_DRIVERS = ("postgresql+asyncpg", "postgresql+psycopg", "sqlite+aiosqlite")
# Without a driver, as in the URLs of most platforms.
DEFAULT_DRIVER = "postgresql+asyncpg"
DEFAULT_PORT = 5432

# asyncpg's own, and their types: a URL has text only.
ASYNCPG_OPTIONS = {
    "ssl": str,
    "statement_cache_size": int,
    "prepared_statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}
# What asyncpg takes from a libpq URI.
ASYNCPG_URI_OPTIONS = {
    "passfile",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "target_session_attrs",
    "krbsrvname",
    "gsslib",
}
# The engine sets these itself, or asyncpg works without them: it has no channel binding and no GSSAPI encryption.
_ACCEPTED_BY_ASYNCPG = {
    "host",
    "port",
    "options",
    "application_name",
    "fallback_application_name",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "channel_binding",
    "gssencmode",
    "load_balance_hosts",
}
_VALUES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
}
# postgresql://user:password@a:5432,b:5432/database
_SEVERAL_HOSTS = re.compile(
    r"(?P<scheme>[^:/]+)://(?:(?P<user>[^@]*)@)?(?P<hosts>[^/?@]*,[^/?@]*)(?P<rest>(?:[/?].*)?)", re.DOTALL
)


def parse_database_url(value: URL | str) -> URL:
    """Return the URL in SQLAlchemy's form. Raise ValueError if it is malformed or cannot be honoured."""
    try:
        url = value if isinstance(value, URL) else _parse(value)
    except (ArgumentError, ValueError):
        raise ValueError("is not a database URL") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=DEFAULT_DRIVER)
    if url.drivername not in SUPPORTED_DRIVERS:
        raise ValueError(f"starts with {url.drivername!r}; supported are {', '.join(SUPPORTED_DRIVERS)}")
    if url.get_backend_name() != "postgresql":
        return url
    _check_options(url)
    return _with_a_port_for_each_host(url)


def _parse(text: str) -> URL:
    if not (match := _SEVERAL_HOSTS.fullmatch(text)):
        return make_url(text)
    names, ports = [], []
    for item in match["hosts"].split(","):
        name, colon, port = item.rpartition(":")
        if not colon or item.endswith("]"):
            name, port = item, str(DEFAULT_PORT)
        names.append(name.strip("[]"))
        ports.append(str(int(port)))
    user = "" if match["user"] is None else match["user"] + "@"
    url = make_url(f"{match['scheme']}://{user}{match['rest']}")
    return url.update_query_dict({"host": ",".join(names), "port": ",".join(ports)})


def _with_a_port_for_each_host(url: URL) -> URL:
    """Return the URL with several hosts in one form, `host=a,b&port=5432,5433`: asyncpg's dialect wants each port."""
    names = _items(url.query.get("host", ()))
    ports = _items(url.query.get("port", ()))
    if len(names) < 2:
        return url
    if not ports:
        pairs = [name.rsplit(":", 1) if name.count(":") == 1 else (name, "") for name in names]
        names, ports = [name for name, _ in pairs], [port for _, port in pairs]
    elif len(ports) == 1:
        ports = ports * len(names)
    if len(ports) != len(names):
        raise ValueError(f"has {len(names)} hosts and {len(ports)} ports")
    ports = [port or str(DEFAULT_PORT) for port in ports]
    if not all(port.isdecimal() for port in ports):
        raise ValueError("has a port that is not a number")
    return url.update_query_dict({"host": ",".join(names), "port": ",".join(ports)})


def _items(value: str | tuple[str, ...]) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value)


def _check_options(url: URL) -> None:
    is_asyncpg = url.get_driver_name() == "asyncpg"
    if is_asyncpg:
        known = ASYNCPG_OPTIONS.keys() | ASYNCPG_URI_OPTIONS | _ACCEPTED_BY_ASYNCPG
    else:
        known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    for name, value in url.query.items():
        if name not in known:
            hint = "; use sslmode" if name == "ssl" else ""
            raise ValueError(f"has the option {name!r}, which {url.get_driver_name()} does not know{hint}")
        if name in _VALUES and value not in _VALUES[name]:
            raise ValueError(f"has the option {name}={value}; its values are {', '.join(_VALUES[name])}")
        if is_asyncpg and ASYNCPG_OPTIONS.get(name) is int and not str(value).isdecimal():
            raise ValueError(f"has the option {name}={value}, which must be a number")
