"""Where the budget's numbers come from: the settings, and what the server and the pooler say of themselves."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import make_engine
from app.database.budget import ApiPools, Budget, Pooler, Server
from app.database.libpq import parameters
from app.errors import DatabaseUnavailable
from app.settings import Settings

Row = Mapping[str, Any]

RETRY_SECONDS = 0.5
CONSOLE_TIMEOUT_SECONDS = 3

_SERVER_LIMITS = ("max_connections", "superuser_reserved_connections", "reserved_connections")
_POOLER_LIMITS = ("max_client_conn", "default_pool_size", "reserve_pool_size", "max_db_connections")

# Whose CONNECTION LIMIT counts: who asks, or whoever the API's connections belong to.
OWN_ROLE = "rolname = current_user"
API_ROLES = "rolname IN (SELECT usename FROM pg_stat_activity WHERE application_name LIKE 'headroom:api:%')"

_LIMITS = """
    SELECT current_setting('max_connections')::int AS max_connections,
           current_setting('superuser_reserved_connections')::int AS superuser_reserved_connections,
           coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved_connections,
           (SELECT min(rolconnlimit) FROM pg_roles WHERE rolconnlimit >= 0 AND {role}) AS role_limit,
           (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()) AS database_limit,
           (SELECT count(*)::int FROM pg_stat_activity WHERE {client}) AS observed
"""
# Others than these (autovacuum and so on) have places of their own. A role that may not know sees no type.
CLIENTS = "(backend_type = 'client backend' OR backend_type IS NULL AND datname IS NOT NULL)"


def limits_query(role: str) -> str:
    """One row: what `with_server()` wants. `role` is OWN_ROLE or API_ROLES."""
    return _LIMITS.replace("{role}", role).replace("{client}", CLIENTS)


class Facts(NamedTuple):
    """A budget, where its numbers come from, and how many connections the server has at the moment (None: unknown)."""

    budget: Budget
    sources: dict[str, str]
    observed: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a person should know beside the numbers."""
        notes = [f"limits of the {whose}: from {source}" for whose, source in self.sources.items()]
        if self.observed is not None:
            notes.append(f"open on the server now, by whoever: {self.observed}")
        return [*notes, *self.remarks, *(f"warning: {each}" for each in self.budget.warnings)]


def declared(settings: Settings) -> Facts:
    """The budget as the settings tell it, without asking anybody."""
    api = ApiPools(
        replicas=settings.api_replicas,
        surge=settings.api_surge,
        workers=settings.web_concurrency,
        pool_size=settings.db_pool_size,
        max_overflow=settings.db_max_overflow,
    )
    server = replace(Server(cores=settings.postgres_cores), **_set(settings, "postgres_", _SERVER_LIMITS))
    pooler = None
    if settings.db_pooler == "pgbouncer":
        pooler = replace(Pooler(), **_set(settings, "pgbouncer_", _POOLER_LIMITS))
    return Facts(Budget(api, server, pooler), {"server": "settings"} | ({"pooler": "settings"} if pooler else {}))


async def asked(settings: Settings, deadline: float = 0) -> Facts:
    """The budget with what the server, and the pooler's console, say of themselves.

    A limit in the settings still counts where it is lower: it is our share of a server that others use, too. What
    cannot be reached until `deadline`, in the time of monotonic(), is left as the settings have it, with a remark.
    """
    url = settings.known_database_url()
    while True:
        facts = declared(settings)
        if url is None or url.get_backend_name() != "postgresql":
            return facts._replace(remarks=("the server was not asked: DATABASE_URL names none",))
        facts = await _ask_server(facts, url, share=settings.postgres_max_connections)
        if facts.budget.pooler:
            facts = await _ask_console(facts, url)
        if not facts.remarks or monotonic() >= deadline:
            return facts
        await asyncio.sleep(RETRY_SECONDS)


async def _ask_server(facts: Facts, url: URL, share: int | None) -> Facts:
    try:
        async with brief_connection(url) as connection:
            row = dict((await connection.exec_driver_sql(limits_query(OWN_ROLE))).mappings().one())
    except DatabaseUnavailable as error:
        return facts._replace(remarks=(*facts.remarks, f"the server was not asked: {error}"))
    return with_server(facts, row, share)


def with_server(facts: Facts, row: Row, share: int | None) -> Facts:
    """The facts with what the server said; `share` is our part of its connections, where others use it too."""
    limits = {name: row[name] for name in (*_SERVER_LIMITS, "role_limit", "database_limit")}
    limits["max_connections"] = min(limits["max_connections"], share or limits["max_connections"])
    budget = replace(facts.budget, server=replace(facts.budget.server, **limits))
    return facts._replace(budget=budget, sources=facts.sources | {"server": "the server"}, observed=row["observed"])


async def _ask_console(facts: Facts, url: URL) -> Facts:
    """The console speaks the simple protocol only, which SQLAlchemy's dialects do not."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            **parameters(url.set(database="pgbouncer")),
            application_name="headroom:preflight",
            connect_timeout=CONSOLE_TIMEOUT_SECONDS,
            autocommit=True,
            row_factory=dict_row,
        )
        async with asyncio.timeout(CONSOLE_TIMEOUT_SECONDS), connection:
            config = await (await connection.execute("SHOW CONFIG")).fetchall()
            databases = await (await connection.execute("SHOW DATABASES")).fetchall()
    except (psycopg.Error, OSError) as error:
        return facts._replace(remarks=(*facts.remarks, f"PgBouncer's console was not asked: {first_line(error)}"))
    return with_console(facts, config, databases, url.database)


def with_console(facts: Facts, config: Sequence[Row], databases: Sequence[Row], database: str | None) -> Facts:
    """The facts with the rows of PgBouncer's SHOW CONFIG and SHOW DATABASES: a database can have limits of its own."""
    settings = {row["key"]: row["value"] for row in config}
    limits = {name: int(settings[name]) for name in _POOLER_LIMITS}
    for row in databases:
        if row["name"] == database:
            own = {"default_pool_size": row["pool_size"], "max_db_connections": row["max_connections"]}
            limits |= own | {"reserve_pool_size": row.get("reserve_pool_size", row.get("reserve_pool"))}
    assert facts.budget.pooler is not None
    budget = replace(facts.budget, pooler=replace(facts.budget.pooler, **limits))
    return facts._replace(budget=budget, sources=facts.sources | {"pooler": "its console"})


@asynccontextmanager
async def brief_connection(url: URL) -> AsyncIterator[AsyncConnection]:
    """One connection, for a question or two. Raises DatabaseUnavailable, also for a server that hangs up on us."""
    engine = make_engine(url=url, application_name="headroom:preflight", pool_size=1, max_overflow=0)
    try:
        async with engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")
    except DBAPIError as error:
        raise DatabaseUnavailable(first_line(error)) from error
    finally:
        await engine.dispose()


def _set(settings: Settings, prefix: str, names: Iterable[str]) -> dict[str, int]:
    """The settings of these names that are set."""
    return {name: value for name in names if (value := getattr(settings, prefix + name)) is not None}


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
