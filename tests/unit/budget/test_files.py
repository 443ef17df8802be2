"""The numbers in the Compose files, `ops/` and docs/connections.md agree with `app/budget/model.py`."""

import re
from dataclasses import replace
from typing import Any

import yaml

from app.budget.model import ApiPools, Budget, Pooler, Server
from app.budget.sources import from_settings
from app.paths import PROJECT_ROOT
from app.settings import Settings

DEFAULT_API = from_settings(Settings()).budget.api
DOCUMENT = (PROJECT_ROOT / "docs/connections.md").read_text()
ASSIGNMENT = re.compile(r"^(\w+) *= *(\S+)", re.MULTILINE)
TERMS = ("API_REPLICAS", "API_SURGE", "WEB_CONCURRENCY", "DB_POOL_SIZE", "DB_MAX_OVERFLOW")
DEFAULT = re.compile(r"\$\{\w+:-(.*?)\}")


def values(file: str) -> dict[str, str]:
    """Return the parameters that a PostgreSQL or PgBouncer configuration file sets."""
    return dict(ASSIGNMENT.findall((PROJECT_ROOT / file).read_text()))


def compose(file: str, service: str) -> dict[str, Any]:
    """Return a service of a Compose file, with the default of each variable."""
    text = DEFAULT.sub(r"\1", (PROJECT_ROOT / file).read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"][service]
    return found


def api_pools(environment: dict[str, Any]) -> ApiPools:
    return ApiPools(
        replicas=int(environment["API_REPLICAS"]),
        surge=int(environment["API_SURGE"]),
        workers=int(environment["WEB_CONCURRENCY"]),
        pool_size=int(environment["DB_POOL_SIZE"]),
        max_overflow=int(environment["DB_MAX_OVERFLOW"]),
    )


def server() -> Server:
    conf = values("ops/postgres/postgresql.conf")
    return Server(
        max_connections=int(conf["max_connections"]),
        superuser_reserved_connections=int(conf["superuser_reserved_connections"]),
        reserved_connections=int(conf["reserved_connections"]),
    )


def pooler() -> Pooler:
    ini = values("ops/pgbouncer/pgbouncer.ini")
    return Pooler(
        max_client_conn=int(ini["max_client_conn"]),
        default_pool_size=int(ini["default_pool_size"]),
        reserve_pool_size=int(ini["reserve_pool_size"]),
        max_db_connections=int(ini["max_db_connections"]),
    )


def test_development_stack_is_within_the_budget() -> None:
    service = compose("docker-compose.yml", "api")
    budget = Budget(api_pools(service["environment"]), server())

    assert budget.exceeded == []
    assert f"{budget.on_server.demand} of {budget.on_server.supply} server connections" in DOCUMENT
    migrate = compose("docker-compose.yml", "migrate")["environment"]
    assert {name: migrate[name] for name in TERMS} == {name: service["environment"][name] for name in TERMS}


def test_production_stack_with_surge_is_within_the_budget() -> None:
    service = compose("compose.prod.yml", "api")
    environment = service["environment"]
    budget = Budget(api_pools(environment), server(), pooler())

    assert environment["DB_POOLER"] == "pgbouncer"
    assert budget.api.surge >= 1, "a deploy starts new replicas before it stops old ones"
    assert budget.exceeded == []
    assert budget.on_pooler is not None
    assert service["deploy"]["replicas"] == budget.api.replicas
    assert f"{budget.on_server.demand} of {budget.on_server.supply} server connections" in DOCUMENT
    assert f"{budget.on_pooler.demand} of {budget.on_pooler.supply} clients" in DOCUMENT
    migrate = compose("compose.prod.yml", "migrate")["environment"]
    terms = ("DB_POOLER", *TERMS)
    assert {name: migrate[name] for name in terms} == {name: environment[name] for name in terms}


def test_container_is_killed_only_after_its_workers_had_their_time() -> None:
    for file in ("docker-compose.yml", "compose.prod.yml"):
        service = compose(file, "api")
        drain = float(service["environment"]["DRAIN_SECONDS"])
        assert drain + Settings().graceful_timeout + 1 < float(service["stop_grace_period"].removesuffix("s"))


def test_both_stacks_mount_the_configuration_in_ops() -> None:
    for file in ("docker-compose.yml", "compose.prod.yml"):
        postgres = compose(file, "postgres")
        assert "./ops/postgres/postgresql.conf:/etc/postgresql/postgresql.conf:ro" in postgres["volumes"]
        assert postgres["command"] == ["postgres", "-c", "config_file=/etc/postgresql/postgresql.conf"]
    prod = compose("compose.prod.yml", "postgres")
    assert "./ops/postgres/archive.conf:/etc/postgresql/archive.conf:ro" in prod["volumes"]
    assert prod["build"]["context"] == "ops/postgres"
    assert compose("compose.prod.yml", "pgbouncer")["build"]["context"] == "ops/pgbouncer"


def test_pgbouncer_timeouts_are_shorter_than_the_pool_timeout() -> None:
    ini = values("ops/pgbouncer/pgbouncer.ini")

    assert float(ini["reserve_pool_timeout"]) < float(ini["query_wait_timeout"]) < Settings().db_pool_timeout


def test_pgbouncer_has_a_file_descriptor_for_each_connection() -> None:
    limits = pooler()
    descriptors = compose("compose.prod.yml", "pgbouncer")["ulimits"]["nofile"]

    assert descriptors > limits.max_client_conn + limits.max_db_connections + 32


def test_lock_timeout_is_shorter_than_the_pool_timeout() -> None:
    roles = (PROJECT_ROOT / "ops/postgres/roles.sql").read_text()
    [seconds] = re.findall(r"ALTER ROLE headroom_app SET lock_timeout = '(\d+)s'", roles)

    assert int(seconds) < Settings().db_pool_timeout


def test_document_shows_the_budget_table_of_the_development_stack() -> None:
    budget = Budget(DEFAULT_API, server())
    suggestion = budget.suggest()

    assert budget.table() in DOCUMENT
    assert suggestion is not None
    assert " ".join(f"{name}={value}" for name, value in suggestion.variables.items()) in DOCUMENT


def test_document_shows_the_sum_of_the_default_pools() -> None:
    api = DEFAULT_API
    total = api.workers * (api.pool_size + api.max_overflow)

    assert f"{api.workers} * ({api.pool_size} + {api.max_overflow}) = {total}" in DOCUMENT


def test_document_shows_the_message_for_two_replicas() -> None:
    [message] = Budget(replace(DEFAULT_API, replicas=2), server()).complaints
    [shown] = re.findall(r"^(over budget: .*)\.\.\.$", DOCUMENT, re.MULTILINE)
    fitting = Budget(replace(DEFAULT_API, replicas=2, max_overflow=5), server()).on_server

    assert message.startswith(shown)
    assert f"{fitting.demand} of {fitting.supply}." in DOCUMENT
    assert fitting.headroom >= 0
