"""The connection budget: what the stack may open, against what the database admits. Pure arithmetic on plain integers.

This file is the one home of that arithmetic. What is checked before a start, exported while it runs and attacked in
tests is a `Budget`; a test holds the Compose files, `ops/` and the README against it.

Directly, there is one inequality:

    (replicas + surge) * workers * (pool_size + max_overflow) + jobs
        <= max_connections - superuser_reserved_connections - reserved_connections

Behind PgBouncer there are two. The left side above, as clients, must fit `max_client_conn`; and what PgBouncer opens,
`default_pool_size + reserve_pool_size` for each pair of user and database, capped by `max_db_connections`, must fit
the right side above, with the jobs that go to the server directly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from app.errors import ConfigurationError


def _at_least(least: int, **variables: int) -> None:
    for name, value in variables.items():
        if value < least:
            raise ConfigurationError(f"{name}: must be at least {least}, got {value}")


class Job(NamedTuple):
    """Connections of something that is not an API worker: to the server itself, and where the API's go."""

    name: str
    direct: int
    pooled: int = 0


# One for the lock, one for the migration: see migrations/env.py.
MIGRATE = Job("migrate", direct=2)
# Its view of the server; behind a pooler, a look at the pooler's console, too.
EXPORTER = Job("exporter", direct=1)
# `psql`, `headroom seed`, `headroom create-admin`: somebody who looks after things while everything runs.
ADMIN = Job("admin", direct=1)
JOBS = (MIGRATE, EXPORTER, ADMIN)
POOLER_JOBS = (MIGRATE, EXPORTER._replace(pooled=1), ADMIN._replace(pooled=1))


class Term(NamedTuple):
    """One summand, in connections, by the name that an operator would look for."""

    name: str
    connections: int
    of: str = ""


class Inequality(NamedTuple):
    """What is demanded must not exceed what there is."""

    name: str
    demanded: Sequence[Term]
    supplied: Sequence[Term]

    @property
    def demand(self) -> int:
        return sum(term.connections for term in self.demanded)

    @property
    def supply(self) -> int:
        """Never below zero: reserving more than there is leaves nothing."""
        return max(0, sum(term.connections for term in self.supplied))

    @property
    def headroom(self) -> int:
        """What is left; negative when over budget."""
        return self.supply - self.demand

    def __str__(self) -> str:
        demanded = " + ".join(f"{term.name} {term.connections}" for term in self.demanded)
        supplied = ", ".join(f"{term.name} {term.connections}" for term in self.supplied)
        of = "; ".join(term.of for term in self.demanded if term.of)
        return f"{self.name}: {self.demand} demanded, {self.supply} available ({demanded}, with {of}; {supplied})"


@dataclass(frozen=True)
class ApiPools:
    """Every pool of every worker of the API, in a deploy's worst moment."""

    replicas: int = 1
    surge: int = 0
    workers: int = 4
    pool_size: int = 5
    max_overflow: int = 10

    def __post_init__(self) -> None:
        _at_least(1, API_REPLICAS=self.replicas, WEB_CONCURRENCY=self.workers, DB_POOL_SIZE=self.pool_size)
        _at_least(0, API_SURGE=self.surge, DB_MAX_OVERFLOW=self.max_overflow)

    @property
    def processes(self) -> int:
        return (self.replicas + self.surge) * self.workers

    @property
    def term(self) -> Term:
        return Term(
            "api",
            self.processes * (self.pool_size + self.max_overflow),
            f"api = (API_REPLICAS {self.replicas} + API_SURGE {self.surge}) * WEB_CONCURRENCY {self.workers}"
            f" * (DB_POOL_SIZE {self.pool_size} + DB_MAX_OVERFLOW {self.max_overflow})",
        )


@dataclass(frozen=True)
class Server:
    """What PostgreSQL admits. The defaults are PostgreSQL's own; `cores` is for a warning, and unknown if None.

    `role_limit` and `database_limit` are the CONNECTION LIMIT of the API's role and database, if they have one.
    """

    max_connections: int = 100
    superuser_reserved_connections: int = 3
    reserved_connections: int = 0
    cores: int | None = None
    role_limit: int | None = None
    database_limit: int | None = None

    def __post_init__(self) -> None:
        _at_least(1, POSTGRES_MAX_CONNECTIONS=self.max_connections)
        _at_least(
            0,
            POSTGRES_SUPERUSER_RESERVED_CONNECTIONS=self.superuser_reserved_connections,
            POSTGRES_RESERVED_CONNECTIONS=self.reserved_connections,
        )

    @property
    def terms(self) -> Sequence[Term]:
        return (
            Term("max_connections", self.max_connections),
            Term("superuser_reserved_connections", -self.superuser_reserved_connections),
            Term("reserved_connections", -self.reserved_connections),
        )

    @property
    def useful(self) -> int | None:
        """Connections that can do work at the same time: 2 * cores + 1 disk (PostgreSQL's wiki)."""
        return None if self.cores is None else 2 * self.cores + 1


@dataclass(frozen=True)
class Pooler:
    """PgBouncer's limits, with its own defaults. `max_db_connections` 0 is no limit.

    `pairs` are the pairs of user and database for which it keeps a pool: the application's, and the one that looks up
    passwords (auth_query), which is in the same database.
    """

    max_client_conn: int = 100
    default_pool_size: int = 20
    reserve_pool_size: int = 0
    max_db_connections: int = 0
    pairs: int = 2

    def __post_init__(self) -> None:
        _at_least(1, PGBOUNCER_MAX_CLIENT_CONN=self.max_client_conn, PGBOUNCER_DEFAULT_POOL_SIZE=self.default_pool_size)
        _at_least(
            0,
            PGBOUNCER_RESERVE_POOL_SIZE=self.reserve_pool_size,
            PGBOUNCER_MAX_DB_CONNECTIONS=self.max_db_connections,
        )

    @property
    def term(self) -> Term:
        pools = self.pairs * (self.default_pool_size + self.reserve_pool_size)
        return Term(
            "pgbouncer",
            min(pools, self.max_db_connections) if self.max_db_connections else pools,
            f"pgbouncer = {self.pairs} pools * (default_pool_size {self.default_pool_size}"
            f" + reserve_pool_size {self.reserve_pool_size}), max_db_connections {self.max_db_connections or 'none'}",
        )


class Suggestion(NamedTuple):
    """The largest pool of a worker that fits; `max_db_connections` is PgBouncer's, None where there is none."""

    pool_size: int
    max_overflow: int
    max_db_connections: int | None = None

    @property
    def variables(self) -> dict[str, int]:
        pool = {"DB_POOL_SIZE": self.pool_size, "DB_MAX_OVERFLOW": self.max_overflow}
        return pool if self.max_db_connections is None else pool | {"max_db_connections": self.max_db_connections}


@dataclass(frozen=True)
class Budget:
    """Demand and supply together. Raises ConfigurationError, by the variable's name, for a number that cannot be."""

    api: ApiPools = ApiPools()
    server: Server = Server()
    pooler: Pooler | None = None

    @property
    def jobs(self) -> Sequence[Job]:
        return POOLER_JOBS if self.pooler else JOBS

    @property
    def on_server(self) -> Inequality:
        """Connections of the PostgreSQL server."""
        first = self.pooler.term if self.pooler else self.api.term
        jobs = [Term(job.name, job.direct) for job in self.jobs if job.direct]
        return Inequality("server connections", (first, *jobs), self.server.terms)

    @property
    def on_pooler(self) -> Inequality | None:
        """Connections that clients have to PgBouncer."""
        if self.pooler is None:
            return None
        jobs = [Term(job.name, job.pooled) for job in self.jobs if job.pooled]
        limit = Term("max_client_conn", self.pooler.max_client_conn)
        return Inequality("pooler clients", (self.api.term, *jobs), (limit,))

    @property
    def inequalities(self) -> Sequence[Inequality]:
        """All that must hold."""
        server = self.on_server
        limited = []
        if self.server.database_limit is not None:
            limit = Term("CONNECTION LIMIT of the database", self.server.database_limit)
            limited.append(Inequality("connections to the database", server.demanded, (limit,)))
        if self.server.role_limit is not None and self.pooler is None:
            limit = Term("CONNECTION LIMIT of the role", self.server.role_limit)
            limited.append(Inequality("connections of the role", (self.api.term,), (limit,)))
        return [server, *([self.on_pooler] if self.on_pooler else []), *limited]

    @property
    def over(self) -> Sequence[Inequality]:
        """Those that do not hold."""
        return [each for each in self.inequalities if each.headroom < 0]

    @property
    def warnings(self) -> Sequence[str]:
        """What fits, and is still not wise."""
        at_once = (self.pooler.term if self.pooler else self.api.term).connections
        if self.server.useful is not None and at_once > self.server.useful:
            return [
                f"{at_once} connections can be active at once; {self.server.cores} cores do useful work for about "
                f"{self.server.useful} (2 * POSTGRES_CORES + 1): more only queue inside the server"
            ]
        return []

    def suggest(self) -> Suggestion | None:
        """The largest pool that every inequality admits; None if not even one connection a worker fits.

        A third of it, rounded up, is kept open (DB_POOL_SIZE), the rest is overflow: 15 is 5 + 10.
        """
        cap = None
        if self.pooler:
            direct = sum(job.direct for job in self.jobs)
            cap = min(each.supply for each in self.inequalities if each != self.on_pooler) - direct
            if cap < 1:
                return None
        # What a pool of n costs is linear in n, so one division finds the largest.
        rooms = []
        for each in self.inequalities:
            if self.api.term in each.demanded:
                others = each.demand - self.api.term.connections
                rooms.append((each.supply - others) // self.api.processes)
        largest = min(rooms)
        if largest < 1:
            return None
        size = -(-largest // 3)
        return Suggestion(size, largest - size, cap)

    def adopting(self, suggestion: Suggestion) -> "Budget":
        """This budget with the suggestion followed."""
        api = replace(self.api, pool_size=suggestion.pool_size, max_overflow=suggestion.max_overflow)
        pooler = self.pooler and replace(self.pooler, max_db_connections=suggestion.max_db_connections or 0)
        return replace(self, api=api, pooler=pooler)

    @property
    def complaints(self) -> Sequence[str]:
        """A line for each inequality that does not hold."""
        return [f"over budget: {each}" for each in self.over]

    def table(self) -> str:
        """For a person: every term, every sum, and how the products come about."""
        rows: list[tuple[str, str]] = []
        for each in self.inequalities:
            rows += [(each.name, "")]
            rows += [(f"  {term.name}", str(term.connections)) for term in each.demanded]
            rows += [("  = demand", str(each.demand))]
            rows += [(f"  {term.name}", str(term.connections)) for term in each.supplied]
            rows += [("  = supply", str(each.supply))]
            rows += [("  headroom", f"{each.headroom:>6}{'   OVER BUDGET' if each.headroom < 0 else ''}")]
        width = max(len(name) for name, _ in rows)
        # Each product once: it can be a term of two inequalities.
        products = dict.fromkeys(term.of for each in self.inequalities for term in each.demanded if term.of)
        return "\n".join([*(f"{name:<{width}}  {value:>6}".rstrip() for name, value in rows), "", *products])

    def as_dict(self) -> dict[str, Any]:
        """For a program. `demand`, `supply` and `headroom` at the top are the server's."""
        server = self.on_server
        return {
            "ok": not self.over,
            "demand": server.demand,
            "supply": server.supply,
            "headroom": server.headroom,
            "checks": [
                {
                    "name": each.name,
                    "ok": each.headroom >= 0,
                    "demand": each.demand,
                    "supply": each.supply,
                    "headroom": each.headroom,
                    "demanded": {term.name: term.connections for term in each.demanded},
                    "supplied": {term.name: term.connections for term in each.supplied},
                }
                for each in self.inequalities
            ],
            "warnings": list(self.warnings),
        }
