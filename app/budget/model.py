"""The connection budget: arithmetic on plain integers that compares the connections of the stack with its limits.

This module is the only place with that arithmetic (docs/decisions/0007-connection-budget.md). The check before a start,
the exporter and the tests all use `Budget`; a test compares the Compose files, `ops/` and the documents with it.

Without a pooler there is one inequality:

    (replicas + surge) * workers * (pool_size + max_overflow) + other programs
        <= max_connections - superuser_reserved_connections - reserved_connections

Behind PgBouncer there are two:

- The left side above counts clients of PgBouncer, and must not exceed `max_client_conn`.
- PgBouncer opens `default_pool_size + reserve_pool_size` connections for each pair of user and database, at most
  `max_db_connections`. Together with the programs that bypass PgBouncer, they must not exceed the right side above.
  Several PgBouncer processes open as many each.

A CONNECTION LIMIT of the database or of the API's role adds an inequality of its own.

A standby for reads (DATABASE_READ_URL) has an inequality of its own, too:

    (replicas + surge) * workers * read_pool_size <= what the standby admits
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.errors import ConfigurationError
from app.lanes import CRITICAL, EXPENSIVE, NORMAL, LaneName, LaneSpec


def _require_minimum(minimum: int, **variables: int) -> None:
    """Raise ConfigurationError, with the name of the setting, if a value is too small."""
    for name, value in variables.items():
        if value < minimum:
            raise ConfigurationError(f"{name}: must be at least {minimum}, got {value}")


class Program(NamedTuple):
    """The connections of a program other than the API: `direct` to the server, `pooled` to PgBouncer."""

    name: str
    direct: int
    pooled: int = 0


# One connection for the lock and one for the migration: see migrations/env.py.
MIGRATE = Program("migrate", direct=2)
# One connection to the server; behind a pooler, also one to its console.
EXPORTER = Program("exporter", direct=1)
# One operator at a time: `psql`, `headroom seed`, `headroom create-admin`, `headroom backfill`.
ADMIN = Program("admin", direct=1)
PROGRAMS = (MIGRATE, EXPORTER, ADMIN)
PROGRAMS_WITH_POOLER = (MIGRATE, EXPORTER._replace(pooled=1), ADMIN._replace(pooled=1))


class Term(NamedTuple):
    """A term of a sum, in connections, with a name that an operator knows.

    `formula` says how the number is computed, for a term that is a product.
    """

    name: str
    connections: int
    formula: str = ""


class Inequality(NamedTuple):
    """A limit: the sum of the demanded terms must not exceed the sum of the supplied ones."""

    name: str
    demanded: Sequence[Term]
    supplied: Sequence[Term]

    @property
    def demand(self) -> int:
        """Return the number of connections that could be opened."""
        return sum(term.connections for term in self.demanded)

    @property
    def supply(self) -> int:
        """Return the number of connections that the limit allows; 0 if more are reserved than exist."""
        return max(0, sum(term.connections for term in self.supplied))

    @property
    def headroom(self) -> int:
        """Return supply minus demand; negative if the budget is exceeded."""
        return self.supply - self.demand

    def __str__(self) -> str:
        demanded = " + ".join(f"{term.name} {term.connections}" for term in self.demanded)
        supplied = ", ".join(f"{term.name} {term.connections}" for term in self.supplied)
        formulas = "; ".join(term.formula for term in self.demanded if term.formula)
        return f"{self.name}: {self.demand} demanded, {self.supply} available ({demanded}, with {formulas}; {supplied})"


@dataclass(frozen=True)
class ApiPools:
    """The connection pools of all API workers, at the moment of a deploy when old and new replicas run together.

    `expensive_share` is the share of the expensive lane if it is set, in connections of a worker. `own_lanes` are the
    lanes that the application declares. `read_pool_size` is the size of a worker's pool to a standby; 0 without one.
    """

    replicas: int
    surge: int
    workers: int
    pool_size: int
    max_overflow: int
    expensive_share: float | None = None
    own_lanes: tuple[LaneSpec, ...] = ()
    read_pool_size: int = 0

    def __post_init__(self) -> None:
        _require_minimum(1, API_REPLICAS=self.replicas, WEB_CONCURRENCY=self.workers, DB_POOL_SIZE=self.pool_size)
        _require_minimum(
            0, API_SURGE=self.surge, DB_MAX_OVERFLOW=self.max_overflow, DB_READ_POOL_SIZE=self.read_pool_size
        )

    @property
    def processes(self) -> int:
        """Return the number of API workers of all replicas."""
        return (self.replicas + self.surge) * self.workers

    @property
    def term(self) -> Term:
        """Return the connections of all pools as a term."""
        return Term(
            "api",
            self.processes * (self.pool_size + self.max_overflow),
            f"api = (API_REPLICAS {self.replicas} + API_SURGE {self.surge}) * WEB_CONCURRENCY {self.workers}"
            f" * (DB_POOL_SIZE {self.pool_size} + DB_MAX_OVERFLOW {self.max_overflow})",
        )

    @property
    def read_term(self) -> Term:
        """Return the connections of all pools to the standby as a term."""
        return Term(
            "reads",
            self.processes * self.read_pool_size,
            f"reads = (API_REPLICAS {self.replicas} + API_SURGE {self.surge}) * WEB_CONCURRENCY {self.workers}"
            f" * DB_READ_POOL_SIZE {self.read_pool_size}",
        )


@dataclass(frozen=True)
class Server:
    """The limits of the PostgreSQL server. The defaults are PostgreSQL's own.

    `role_limit` and `database_limit` are the CONNECTION LIMIT of the API's role and database; None if there is none.
    `cores` is used for a warning only; None if unknown.
    """

    max_connections: int = 100
    superuser_reserved_connections: int = 3
    reserved_connections: int = 0
    cores: int | None = None
    role_limit: int | None = None
    database_limit: int | None = None

    def __post_init__(self) -> None:
        _require_minimum(1, POSTGRES_MAX_CONNECTIONS=self.max_connections)
        _require_minimum(
            0,
            POSTGRES_SUPERUSER_RESERVED_CONNECTIONS=self.superuser_reserved_connections,
            POSTGRES_RESERVED_CONNECTIONS=self.reserved_connections,
        )

    @property
    def terms(self) -> Sequence[Term]:
        """Return the limits as terms of the supply."""
        return (
            Term("max_connections", self.max_connections),
            Term("superuser_reserved_connections", -self.superuser_reserved_connections),
            Term("reserved_connections", -self.reserved_connections),
        )

    @property
    def useful_connections(self) -> int | None:
        """Return how many connections can do work at once, as in PostgreSQL's wiki: 2 * cores + 1 disk."""
        return None if self.cores is None else 2 * self.cores + 1


@dataclass(frozen=True)
class Pooler:
    """The limits of PgBouncer. The defaults are PgBouncer's own; `max_db_connections` 0 means no limit.

    `pools` is the number of users for which it keeps a pool to the API's database. They are the API's role and the
    role that looks up passwords (auth_query). `instances` is the number of processes, each with these limits. Clients
    choose one at random, and the others when one is gone: each must admit all clients.
    """

    max_client_conn: int = 100
    default_pool_size: int = 20
    reserve_pool_size: int = 0
    max_db_connections: int = 0
    pools: int = 2
    instances: int = 1

    def __post_init__(self) -> None:
        _require_minimum(
            1,
            PGBOUNCER_MAX_CLIENT_CONN=self.max_client_conn,
            PGBOUNCER_DEFAULT_POOL_SIZE=self.default_pool_size,
            PGBOUNCER_INSTANCES=self.instances,
        )
        _require_minimum(
            0,
            PGBOUNCER_RESERVE_POOL_SIZE=self.reserve_pool_size,
            PGBOUNCER_MAX_DB_CONNECTIONS=self.max_db_connections,
        )

    @property
    def term(self) -> Term:
        """Return the connections that PgBouncer can open to the server as a term."""
        return self._term(self.pools)

    @property
    def role_term(self) -> Term:
        """Return the connections that PgBouncer can open to the server with the API's role as a term."""
        return self._term(1)

    def _term(self, pools: int) -> Term:
        connections = pools * (self.default_pool_size + self.reserve_pool_size)
        processes = f"PGBOUNCER_INSTANCES {self.instances} * " if self.instances > 1 else ""
        return Term(
            "pgbouncer",
            self.instances * (min(connections, self.max_db_connections) if self.max_db_connections else connections),
            f"pgbouncer = {processes}{pools} pool{'s' if pools > 1 else ''} * (default_pool_size"
            f" {self.default_pool_size} + reserve_pool_size {self.reserve_pool_size}),"
            f" max_db_connections {self.max_db_connections or 'none'}",
        )


class Lanes(NamedTuple):
    """The lanes of a worker's pool: the connections that each may use at a time (docs/decisions/0037-lanes.md).

    A share less than 1 is a share of the time, of one connection. `own` are the lanes that the application declares.
    """

    critical: float
    normal: float
    expensive: float
    own: Mapping[LaneName, float]
    formula: str

    @property
    def limits(self) -> dict[str, float]:
        """Return the connections by the name of the lane."""
        return {CRITICAL: self.critical, NORMAL: self.normal, EXPENSIVE: self.expensive, **self.own}


def _limit(share: float, pool: int) -> float:
    """Return how much of its share a lane can use in a pool of this many connections."""
    return min(share if share < 1 else math.floor(share), pool)


class Suggestion(NamedTuple):
    """The largest pool of a worker that fits. `max_db_connections` is for PgBouncer; None without one."""

    pool_size: int
    max_overflow: int
    max_db_connections: int | None = None

    @property
    def variables(self) -> dict[str, int]:
        """Return the values by the name of the setting."""
        pool = {"DB_POOL_SIZE": self.pool_size, "DB_MAX_OVERFLOW": self.max_overflow}
        return pool if self.max_db_connections is None else pool | {"max_db_connections": self.max_db_connections}


@dataclass(frozen=True)
class Budget:
    """The demand of the stack, and the limits of the server, of PgBouncer and of the standby for reads.

    `read_server` None: a standby admits as many connections as the server. PostgreSQL requires that of its
    `max_connections`, at least.
    """

    api: ApiPools
    server: Server = Server()
    pooler: Pooler | None = None
    read_server: Server | None = None

    @property
    def lanes(self) -> Lanes:
        """Return the lanes of a worker.

        All workers together run as many expensive statements as the server has cores, except one core for the others.
        """
        pool = self.api.pool_size + self.api.max_overflow
        share = self.api.expensive_share
        if share is not None:
            formula = f"expensive = DB_EXPENSIVE_SHARE {share:g}"
        elif self.server.cores is None:
            share, formula = 1.0, "expensive = 1, because POSTGRES_CORES is not set"
        else:
            spare = max(1, self.server.cores - 1)
            share = spare / self.api.processes
            formula = f"expensive = {spare} of POSTGRES_CORES {self.server.cores} / {self.api.processes} workers"
        own = {each.name: _limit(each.share, pool) for each in self.api.own_lanes}
        return Lanes(pool, pool, _limit(share, pool), own, formula)

    @property
    def programs(self) -> Sequence[Program]:
        """Return the programs other than the API."""
        return PROGRAMS_WITH_POOLER if self.pooler else PROGRAMS

    @property
    def on_server(self) -> Inequality:
        """Return the inequality of connections to the PostgreSQL server."""
        first = self.pooler.term if self.pooler else self.api.term
        others = [Term(program.name, program.direct) for program in self.programs if program.direct]
        return Inequality("server connections", (first, *others), self.server.terms)

    @property
    def on_pooler(self) -> Inequality | None:
        """Return the inequality of client connections to PgBouncer; None without PgBouncer."""
        if self.pooler is None:
            return None
        others = [Term(program.name, program.pooled) for program in self.programs if program.pooled]
        limit = Term("max_client_conn", self.pooler.max_client_conn)
        return Inequality("pooler clients", (self.api.term, *others), (limit,))

    @property
    def on_read_server(self) -> Sequence[Inequality]:
        """Return the inequalities of connections to the standby for reads; none without one.

        The limits of roles and databases are those of the server, and each server counts its own connections.
        """
        if not self.api.read_pool_size:
            return []
        read_server = self.read_server or self.server
        limits = [("read server connections", read_server.terms)]
        for of, limit in (("database", read_server.database_limit), ("role", read_server.role_limit)):
            if limit is not None:
                limits.append((f"read connections of the {of}", (Term(f"CONNECTION LIMIT of the {of}", limit),)))
        return [Inequality(name, (self.api.read_term,), supplied) for name, supplied in limits]

    @property
    def inequalities(self) -> Sequence[Inequality]:
        """Return every inequality that must hold."""
        server = self.on_server
        limited = []
        if self.server.database_limit is not None:
            limit = Term("CONNECTION LIMIT of the database", self.server.database_limit)
            limited.append(Inequality("connections to the database", server.demanded, (limit,)))
        if self.server.role_limit is not None:
            limit = Term("CONNECTION LIMIT of the role", self.server.role_limit)
            own = self.pooler.role_term if self.pooler else self.api.term
            limited.append(Inequality("connections of the role", (own,), (limit,)))
        return [server, *([self.on_pooler] if self.on_pooler else []), *limited, *self.on_read_server]

    @property
    def exceeded(self) -> Sequence[Inequality]:
        """Return the inequalities that do not hold."""
        return [each for each in self.inequalities if each.headroom < 0]

    @property
    def warnings(self) -> Sequence[str]:
        """Return a line if more connections can be active than the server's cores can use."""
        active = (self.pooler.term if self.pooler else self.api.term).connections
        useful = self.server.useful_connections
        if useful is not None and active > useful:
            return [
                f"{active} connections can be active at once; {self.server.cores} cores do useful work for about "
                f"{useful} (2 * POSTGRES_CORES + 1): more only queue inside the server"
            ]
        return []

    def suggest(self) -> Suggestion | None:
        """Return the largest pool that fits; None if not even one connection for each worker does.

        A third of it, rounded up, is DB_POOL_SIZE; the rest is DB_MAX_OVERFLOW: 15 is 5 + 10.
        """
        max_db_connections = None
        if self.pooler:
            # Programs that connect directly use other roles: no inequality of the API's role counts them.
            own = (self.pooler.term, self.pooler.role_term)
            elsewhere = (self.on_pooler, *self.on_read_server)
            left = min(
                each.supply - sum(term.connections for term in each.demanded if term not in own)
                for each in self.inequalities
                if each not in elsewhere
            )
            max_db_connections = left // self.pooler.instances
            if max_db_connections < 1:
                return None
        # Demand is linear in the size of the pool, so a division finds the largest size for each inequality.
        sizes = []
        for each in self.inequalities:
            if self.api.term in each.demanded:
                others = each.demand - self.api.term.connections
                sizes.append((each.supply - others) // self.api.processes)
        largest = min(sizes)
        if largest < 1:
            return None
        pool_size = -(-largest // 3)
        return Suggestion(pool_size, largest - pool_size, max_db_connections)

    def suggest_for_coalesced_reads(self, in_flight: int) -> Suggestion | None:
        """Return a smaller pool, for reads that share statements; None if the pool is not larger than that.

        Reads of one kind use at most `in_flight` connections. As many again are for writes and other reads.
        """
        if self.api.pool_size + self.api.max_overflow <= 2 * in_flight:
            return None
        return Suggestion(in_flight, in_flight)

    @property
    def complaints(self) -> Sequence[str]:
        """Return a line for each inequality that does not hold, with the numbers and every term."""
        return [f"over budget: {each}" for each in self.exceeded]

    def table(self) -> str:
        """Return the table for people: every term, every sum, and the formulas."""
        rows: list[tuple[str, str]] = []
        for each in self.inequalities:
            rows += [(each.name, "")]
            rows += [(f"  {term.name}", str(term.connections)) for term in each.demanded]
            rows += [("  = demand", str(each.demand))]
            rows += [(f"  {term.name}", str(term.connections)) for term in each.supplied]
            rows += [("  = supply", str(each.supply))]
            rows += [("  headroom", f"{each.headroom:>6}{'   OVER BUDGET' if each.headroom < 0 else ''}")]
        rows += [("lanes of a worker", "")]
        rows += [(f"  {name}", f"{limit:.4g}") for name, limit in self.lanes.limits.items()]
        width = max(len(name) for name, _ in rows)
        # Each formula once: its term can be part of two inequalities.
        formulas = dict.fromkeys(term.formula for each in self.inequalities for term in each.demanded if term.formula)
        return "\n".join(
            [*(f"{name:<{width}}  {value:>6}".rstrip() for name, value in rows), "", *formulas, self.lanes.formula]
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the budget for JSON. `demand`, `supply` and `headroom` at the top level are those of the server."""
        server = self.on_server
        return {
            "ok": not self.exceeded,
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
            "lanes": self.lanes.limits,
            "warnings": list(self.warnings),
        }
