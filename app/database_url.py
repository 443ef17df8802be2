"""Database URLs as platforms hand them out, in SQLAlchemy's form. What a driver cannot honour is refused by name.

The options are those of libpq, with both drivers. asyncpg understands most of them, and has a few of its own.
"""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

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
# Options of libpq with a number that asyncpg does not have.
_LIBPQ_NUMBERS = {
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
}
# The engine sets these itself, or asyncpg works without them: it has no channel binding and no GSSAPI encryption.
_ACCEPTED_BY_ASYNCPG = _LIBPQ_NUMBERS | {
    "host",
    "port",
    "options",
    "application_name",
    "fallback_application_name",
    "channel_binding",
    "gssencmode",
    "load_balance_hosts",
}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VALUES = {
    "sslmode": _SSL_MODES,
    "ssl": _SSL_MODES,
    "sslnegotiation": ("postgres", "direct"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
}
_NUMBERS = {name for name, kind in ASYNCPG_OPTIONS.items() if kind is int} | _LIBPQ_NUMBERS
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
# Options of other drivers and tools, which stand in the URLs of some platforms, and what to write instead.
_INSTEAD = {
    "ssl": "use sslmode",
    "sslaccept": "use sslmode",
    "pgbouncer": "leave it out, and set DB_POOLER=pgbouncer",
    "connection_limit": "leave it out, and set DB_POOL_SIZE",
    "pool_timeout": "leave it out, and set DB_POOL_TIMEOUT",
    "schema": "use options=-csearch_path%3DNAME",
    "currentSchema": "use options=-csearch_path%3DNAME",
    "search_path": "use options=-csearch_path%3DNAME",
    "supa": "leave it out",
    "unix_sock": "use host with the directory of the socket",
    "unix_socket": "use host with the directory of the socket",
}
# postgresql://user:password@a:5432,b:5432/database
_SEVERAL_HOSTS = re.compile(
    r"(?P<scheme>[^:/]+)://(?:(?P<user>[^@]*)@)?(?P<hosts>[^/?@]*,[^/?@]*)(?P<rest>(?:[/?].*)?)", re.DOTALL
)
_REFERENCE = re.compile(r"\$\w+$|\$\{\w+\}|\$\(\w+\)|\{\{.*\}\}")
_PLACEHOLDER = re.compile(r"\[.*\]|<.*>|\*+|\$[A-Z_]+", re.DOTALL)
_AT_SIGN = "has an @ in the user or the password; write it as %40"
_MALFORMED = "is not a database URL, such as postgresql://user:password@host:5432/database"


def parse_database_url(value: URL | str) -> URL:
    """Return the URL in SQLAlchemy's form. Raise ValueError if it is malformed or cannot be honoured.

    The message never contains a part of the URL that may be a secret.
    """
    url = value if isinstance(value, URL) else _parse(value.strip())
    url = url.set(drivername=url.drivername.lower())
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername=DEFAULT_DRIVER)
    if url.drivername not in SUPPORTED_DRIVERS:
        raise ValueError(f"starts with {url.drivername!r}; supported are {', '.join(SUPPORTED_DRIVERS)}")
    if url.get_backend_name() != "postgresql":
        return url
    if "@" in (url.host or ""):
        raise ValueError(_AT_SIGN)
    if _PLACEHOLDER.fullmatch(url.password or ""):
        raise ValueError("has a placeholder instead of the password; replace it")
    url = _with_account_of_query(url)
    try:
        _check_options(url)
        _check_files(url)
    except ValueError:
        if any("@" in "".join(value) for value in url.query.values()):  # the option may be a part of the password
            raise ValueError(_AT_SIGN) from None
        raise
    return _with_one_form_of_hosts(url)


def _parse(text: str) -> URL:
    if reason := _reason_why_no_url(text):
        raise ValueError(reason)
    try:
        if match := _SEVERAL_HOSTS.fullmatch(text):
            return _parse_several_hosts(match)
        return make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(_MALFORMED) from None


def _reason_why_no_url(text: str) -> str | None:
    """Return what is wrong with a text that is often given instead of a URL; None if it may be one."""
    if text[:1] in ("'", '"'):
        return "starts with a quotation mark; remove the quotation marks"
    if text.startswith("psql "):
        return "is a command of psql; keep only the URL, without quotation marks"
    if text.startswith("jdbc:"):
        return "is a JDBC URL; write postgresql://user:password@host:5432/database"
    if _REFERENCE.match(text) or _REFERENCE.search(text.partition("://")[2]):
        return "contains a variable that was not replaced by its value; set the value, or write $ as %24 and { as %7B"
    if "://" not in text and re.search(r"\b(host|dbname|user)\s*=", text):
        return "is a connection string of libpq; write postgresql://user:password@host:5432/database"
    return None


def _parse_several_hosts(match: re.Match[str]) -> URL:
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


def _with_account_of_query(url: URL) -> URL:
    """Return the URL with `user`, `password` and `dbname` of its query in their places, as libpq reads them."""
    if "user" in url.query:
        url = url.set(username=_only(url, "user"))
    if "password" in url.query:
        url = url.set(password=_only(url, "password"))
    if "dbname" in url.query:
        url = url.set(database=_only(url, "dbname"))
    return url.difference_update_query(["user", "password", "dbname"])


def _with_one_form_of_hosts(url: URL) -> URL:
    """Return the URL with one host or address in its place, and a socket or several hosts in its query.

    Several hosts have the form `host=a,b&port=5432,5433`: asyncpg's dialect wants the port of each.
    """
    names = _items(url.query.get("host", ())) or [url.host or ""]
    ports = _items(url.query.get("port", ())) or ([] if url.port is None else [str(url.port)])
    if not ports and not names[0].startswith("/"):
        pairs = [name.rsplit(":", 1) if name.count(":") == 1 else (name, "") for name in names]
        names, ports = [name for name, _ in pairs], [port for _, port in pairs]
    elif len(ports) == 1:
        ports = ports * len(names)
    if ports and len(ports) != len(names):
        raise ValueError(f"has {len(names)} hosts and {len(ports)} ports")
    ports = ports or [""] * len(names)
    if not all(port == "" or (port.isdecimal() and 1 <= int(port) <= 65535) for port in ports):
        raise ValueError("has a port that is not a number from 1 to 65535")
    names = [unquote(name) for name in names]
    # Not url.set(): it leaves a place as it is that is set to None.
    bare = url.difference_update_query(["host", "port"])._replace(host=None, port=None)
    if len(names) > 1:
        if not all(names):
            raise ValueError("has a list of hosts with an empty name")
        ports = [port or str(DEFAULT_PORT) for port in ports]
        return bare.update_query_dict({"host": ",".join(names), "port": ",".join(ports)})
    [name], [port] = names, ports
    if name.startswith("/"):
        return bare.update_query_dict({"host": name} | ({"port": port} if port else {}))
    return bare.set(host=name or None, port=int(port) if port else None)


def _items(value: str | tuple[str, ...]) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value)


def _only(url: URL, option: str) -> str:
    value = url.query[option]
    if not isinstance(value, str):
        raise ValueError(f"has the option {option!r} more than once")  # noqa: TRY004 - the parser's one error
    return value


def _check_options(url: URL) -> None:
    is_asyncpg = url.get_driver_name() == "asyncpg"
    of_asyncpg = ASYNCPG_OPTIONS.keys() | ASYNCPG_URI_OPTIONS | _ACCEPTED_BY_ASYNCPG
    of_libpq = {option.keyword.decode() for option in Conninfo.get_defaults()}
    known, of_the_other = (of_asyncpg, of_libpq) if is_asyncpg else (of_libpq, of_asyncpg)
    for name in url.query:
        if name not in known:
            hint = _INSTEAD.get(name)
            if hint is None and name in of_the_other:
                hint = f"{'psycopg' if is_asyncpg else 'asyncpg'} does"
            elif hint is None and (close := get_close_matches(name, known, n=1, cutoff=0.75)):
                hint = f"did you mean {close[0]}?"
            hint = "leave it out" if hint is None else hint
            raise ValueError(f"has the option {name!r}, which {url.get_driver_name()} does not know; {hint}")
        if name in ("host", "port"):
            continue
        value = _only(url, name)
        if name in _VALUES and value not in _VALUES[name]:
            raise ValueError(f"has the option {name}={value}; its values are {', '.join(_VALUES[name])}")
        if name in _NUMBERS and not value.isdecimal():
            raise ValueError(f"has the option {name}={value}, which must be a number")
    if is_asyncpg and url.query.get("gssencmode") == "require":
        raise ValueError("has the option gssencmode=require, which asyncpg cannot honour; psycopg does")


def _check_files(url: URL) -> None:
    """Refuse certificates that are missing: no connection would succeed, and each request would get 503."""
    is_asyncpg = url.get_driver_name() == "asyncpg"
    mode = str(url.query.get("sslmode") or url.query.get("ssl") or "")
    authority = str(url.query.get("sslrootcert") or "")
    if authority == "system":
        if is_asyncpg:
            raise ValueError(
                "has the option sslrootcert=system, which asyncpg does not know; name a file, such as "
                "/etc/ssl/certs/ca-certificates.crt"
            )
        if mode not in ("", "verify-full"):
            raise ValueError(f"has the options sslrootcert=system and sslmode={mode}; system needs sslmode=verify-full")
    for option in _FILES:
        path = str(url.query.get(option) or "")
        if path and path != "system" and not os.access(path, os.R_OK):
            raise ValueError(f"has the option {option}={path}, which is no file that this program can read")
    if mode in ("verify-ca", "verify-full") and not authority and not os.environ.get("PGSSLROOTCERT"):
        files = "sslrootcert=FILE" if is_asyncpg else "sslrootcert=FILE or sslrootcert=system"
        if not Path(os.path.expanduser("~/.postgresql/root.crt")).exists():  # noqa: PTH111 - Path raises without a home
            raise ValueError(f"has sslmode={mode} and no certificate of an authority; add {files}")
