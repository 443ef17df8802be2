"""The arithmetic of the budget: each way to exceed it, and the largest pool that fits."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.budget.model import ApiPools, Budget, Pooler, Server
from app.errors import ConfigurationError
from app.lanes import LaneSpec

API = ApiPools(replicas=1, surge=0, workers=4, pool_size=5, max_overflow=10)
DIRECT = Budget(API)
POOLED = Budget(API, pooler=Pooler(max_client_conn=100, default_pool_size=20, max_db_connections=30))


def test_budget_with_defaults_counts_api_and_other_programs() -> None:
    on_server = DIRECT.on_server

    assert {term.name: term.connections for term in on_server.demanded} == {
        "api": 60,
        "migrate": 2,
        "exporter": 1,
        "admin": 1,
    }
    assert (on_server.demand, on_server.supply, on_server.headroom) == (64, 97, 33)
    assert DIRECT.exceeded == []


def test_budget_with_pooler_has_one_inequality_for_each_side() -> None:
    assert [(each.name, each.demand, each.supply) for each in POOLED.inequalities] == [
        ("server connections", 30 + 4, 97),
        ("pooler clients", 60 + 2, 100),
    ]


@pytest.mark.parametrize(
    ("pooler", "connections"),
    [
        (Pooler(default_pool_size=20), 40),
        (Pooler(default_pool_size=20, reserve_pool_size=5), 50),
        (Pooler(default_pool_size=20, reserve_pool_size=5, max_db_connections=30), 30),
        (Pooler(default_pool_size=20, max_db_connections=300), 40),
        (Pooler(default_pool_size=20, instances=3), 120),
        (Pooler(default_pool_size=20, max_db_connections=30, instances=3), 90),
    ],
)
def test_pooler_term_is_a_pool_for_each_user_up_to_the_cap(pooler: Pooler, connections: int) -> None:
    assert pooler.term.connections == connections


EXCEEDED: Mapping[str, tuple[Budget, str, tuple[int, int]]] = {
    "workers": (replace(DIRECT, api=replace(API, workers=8)), "WEB_CONCURRENCY 8", (124, 97)),
    "pool": (replace(DIRECT, api=replace(API, pool_size=50)), "DB_POOL_SIZE 50", (244, 97)),
    "overflow": (replace(DIRECT, api=replace(API, max_overflow=20)), "DB_MAX_OVERFLOW 20", (104, 97)),
    "replicas": (replace(DIRECT, api=replace(API, replicas=2)), "API_REPLICAS 2", (124, 97)),
    "surge": (replace(DIRECT, api=replace(API, surge=1)), "API_SURGE 1", (124, 97)),
    "max_connections": (replace(DIRECT, server=Server(max_connections=66)), "max_connections 66", (64, 63)),
    "superuser reserve": (
        replace(DIRECT, server=Server(superuser_reserved_connections=40)),
        "superuser_reserved_connections -40",
        (64, 60),
    ),
    "reserve": (replace(DIRECT, server=Server(reserved_connections=90)), "reserved_connections -90", (64, 7)),
    "more reserved than exist": (replace(DIRECT, server=Server(reserved_connections=200)), "-200", (64, 0)),
    "limit of the role": (replace(DIRECT, server=Server(role_limit=59)), "CONNECTION LIMIT of the role 59", (60, 59)),
    "limit of the role behind PgBouncer": (
        replace(POOLED, server=Server(role_limit=24), pooler=Pooler(default_pool_size=20, reserve_pool_size=5)),
        "1 pool * (default_pool_size 20 + reserve_pool_size 5)",
        (25, 24),
    ),
    "limit of the database": (
        replace(DIRECT, server=Server(database_limit=63)),
        "CONNECTION LIMIT of the database 63",
        (64, 63),
    ),
    "max_client_conn": (replace(POOLED, pooler=Pooler(max_client_conn=61)), "max_client_conn 61", (62, 61)),
    "default_pool_size": (replace(POOLED, pooler=Pooler(default_pool_size=47)), "default_pool_size 47", (98, 97)),
    "reserve_pool_size": (replace(POOLED, pooler=Pooler(reserve_pool_size=27)), "reserve_pool_size 27", (98, 97)),
    "instances of PgBouncer": (
        replace(POOLED, pooler=Pooler(default_pool_size=12, instances=4)),
        "PGBOUNCER_INSTANCES 4",
        (100, 97),
    ),
    "max_db_connections": (
        replace(POOLED, pooler=Pooler(default_pool_size=90, max_db_connections=94)),
        "max_db_connections 94",
        (98, 97),
    ),
}


@pytest.mark.parametrize(("budget", "named", "numbers"), EXCEEDED.values(), ids=EXCEEDED.keys())
def test_complaint_names_the_term_and_both_numbers(budget: Budget, named: str, numbers: tuple[int, int]) -> None:
    [complaint] = budget.complaints

    assert complaint.startswith("over budget: ")
    assert named in complaint
    assert f"{numbers[0]} demanded, {numbers[1]} available" in complaint
    assert "OVER BUDGET" in budget.table()


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: replace(API, pool_size=0), "DB_POOL_SIZE: must be at least 1, got 0"),
        (lambda: replace(API, max_overflow=-1), "DB_MAX_OVERFLOW: must be at least 0, got -1"),
        (lambda: replace(API, workers=0), "WEB_CONCURRENCY: must be at least 1, got 0"),
        (lambda: replace(API, replicas=0), "API_REPLICAS: must be at least 1, got 0"),
        (lambda: replace(API, surge=-1), "API_SURGE: must be at least 0, got -1"),
        (lambda: Server(max_connections=0), "POSTGRES_MAX_CONNECTIONS: must be at least 1, got 0"),
        (lambda: Server(reserved_connections=-1), "POSTGRES_RESERVED_CONNECTIONS: must be at least 0, got -1"),
        (lambda: Pooler(max_client_conn=0), "PGBOUNCER_MAX_CLIENT_CONN: must be at least 1, got 0"),
        (lambda: Pooler(default_pool_size=0), "PGBOUNCER_DEFAULT_POOL_SIZE: must be at least 1, got 0"),
        (lambda: Pooler(instances=0), "PGBOUNCER_INSTANCES: must be at least 1, got 0"),
        (lambda: Pooler(max_db_connections=-1), "PGBOUNCER_MAX_DB_CONNECTIONS: must be at least 0, got -1"),
    ],
)
def test_number_below_its_minimum_is_refused_by_variable_name(build: type, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build()

    assert str(caught.value) == complaint


@pytest.mark.parametrize(("fits", "split"), [(1, (1, 0)), (2, (1, 1)), (3, (1, 2)), (15, (5, 10)), (16, (6, 10))])
def test_suggestion_splits_the_pool_into_a_third_and_overflow(fits: int, split: tuple[int, int]) -> None:
    budget = Budget(replace(API, workers=1), Server(max_connections=fits + 4, superuser_reserved_connections=0))

    suggestion = budget.suggest()
    assert suggestion is not None
    assert (suggestion.pool_size, suggestion.max_overflow) == split


@pytest.mark.parametrize(
    ("size", "in_flight", "suggested"), [(15, 2, (2, 2)), (5, 2, (2, 2)), (4, 2, None), (15, 8, None)]
)
def test_smaller_pool_is_suggested_for_coalesced_reads(
    size: int, in_flight: int, suggested: tuple[int, int] | None
) -> None:
    budget = Budget(replace(API, pool_size=1, max_overflow=size - 1))
    suggestion = budget.suggest_for_coalesced_reads(in_flight)
    assert (suggestion and suggestion[:2]) == suggested


def test_programs_that_connect_directly_do_not_count_against_the_limit_of_the_role() -> None:
    """They have roles of their own. With a limit of up to their number, no pool was suggested."""
    budget = Budget(
        replace(API, workers=1, pool_size=1, max_overflow=0), Server(role_limit=1), Pooler(default_pool_size=1)
    )
    assert budget.exceeded == []
    suggestion = budget.suggest()
    assert suggestion is not None
    assert suggestion.max_db_connections == 1


counts = st.integers(1, 10**6)
apis = st.builds(ApiPools, counts, st.integers(0, 50), st.integers(1, 500), counts, st.integers(0, 10**6))
limits = st.none() | st.integers(0, 10**7)
servers = st.builds(
    Server, st.integers(1, 10**9), st.integers(0, 1000), st.integers(0, 1000), st.none(), limits, limits
)
poolers = st.none() | st.builds(
    Pooler,
    st.integers(1, 10**9),
    st.integers(1, 10**5),
    st.integers(0, 1000),
    st.integers(0, 10**6),
    instances=st.integers(1, 9),
)
budgets = st.builds(Budget, apis, servers, poolers)


@given(budgets)
def test_suggestion_fits_and_one_more_connection_does_not(budget: Budget) -> None:
    suggestion = budget.suggest()
    if suggestion is None:
        smallest = replace(budget.api, pool_size=1, max_overflow=0)
        # With a pooler, the limit that is too low may also be the server's.
        pooler = budget.pooler and replace(budget.pooler, max_db_connections=1)
        assert replace(budget, api=smallest, pooler=pooler).exceeded
        return

    pools = replace(budget.api, pool_size=suggestion.pool_size, max_overflow=suggestion.max_overflow)
    pooler = budget.pooler and replace(budget.pooler, max_db_connections=suggestion.max_db_connections or 0)
    changed = replace(budget, api=pools, pooler=pooler)
    assert not changed.exceeded
    larger = replace(changed.api, max_overflow=changed.api.max_overflow + 1)
    assert replace(changed, api=larger).exceeded


@given(budgets)
def test_inequality_sums_are_those_of_its_named_terms(budget: Budget) -> None:
    for each in budget.inequalities:
        assert each.demand == sum(term.connections for term in each.demanded)
        assert each.headroom == each.supply - each.demand
        assert all(term.name for term in (*each.demanded, *each.supplied))
        assert each.supply >= 0
    assert bool(budget.exceeded) == bool(budget.complaints) == (not budget.as_dict()["ok"])


@pytest.mark.parametrize(
    ("cores", "workers", "set_share", "expected"),
    [
        pytest.param(None, 4, None, 1, id="unknown cores"),
        pytest.param(2, 4, None, 0.25, id="one core to spare for four workers"),
        pytest.param(1, 4, None, 0.25, id="no core to spare"),
        pytest.param(9, 4, None, 2, id="two cores for each worker"),
        pytest.param(12, 4, None, 2, id="whole connections"),
        pytest.param(128, 4, None, 15, id="never more than the pool"),
        pytest.param(2, 4, 3.0, 3, id="set"),
    ],
)
def test_expensive_lane_has_the_cores_to_spare(
    cores: int | None, workers: int, set_share: float | None, expected: float
) -> None:
    budget = Budget(replace(API, workers=workers, expensive_share=set_share), Server(cores=cores))

    assert budget.lanes.limits == {"critical": 15, "normal": 15, "expensive": expected}
    assert budget.as_dict()["lanes"] == budget.lanes.limits
    assert budget.table().splitlines()[-1] == budget.lanes.formula
    [line] = [line.split() for line in budget.table().splitlines() if line.startswith("  expensive")]
    assert line == ["expensive", f"{expected:g}"]


def test_lane_of_the_application_is_part_of_the_budget() -> None:
    own = (LaneSpec("reports", 0.5, 10, 5.0), LaneSpec("exports", 2.5, 10, 5.0), LaneSpec("imports", 99, 10, 5.0))
    budget = Budget(replace(API, own_lanes=own))

    assert budget.lanes.limits == {
        "critical": 15,
        "normal": 15,
        "expensive": 1,
        "reports": 0.5,
        "exports": 2,
        "imports": 15,
    }
    rows = [line.split() for line in budget.table().splitlines()]
    assert rows[rows.index(["reports", "0.5"]) :][:3] == [["reports", "0.5"], ["exports", "2"], ["imports", "15"]]
    assert budget.as_dict()["lanes"]["reports"] == 0.5


def test_surge_of_a_deploy_shares_the_cores_too() -> None:
    assert Budget(replace(API, surge=1), Server(cores=5)).lanes.expensive == 0.5


def test_more_connections_than_cores_can_use_are_a_warning() -> None:
    budget = Budget(API, Server(cores=4))

    assert budget.exceeded == []
    [warning] = budget.warnings
    assert "60 connections can be active at once; 4 cores do useful work for about 9" in warning
    assert Budget(replace(API, workers=1, pool_size=9, max_overflow=0), Server(cores=4)).warnings == []
    assert Budget(API, Server(cores=16), pooler=Pooler(max_db_connections=33)).warnings == []


def test_standby_has_terms_of_its_own() -> None:
    budget = Budget(replace(API, surge=1, read_pool_size=5), Server(role_limit=200, database_limit=30))

    [server, database, role] = budget.on_read_server
    assert (server.name, server.demand, server.supply) == ("read server connections", 40, 97)
    assert (database.name, database.demand, database.supply) == ("read connections of the database", 40, 30)
    assert (role.name, role.demand, role.supply) == ("read connections of the role", 40, 200)
    assert database in budget.exceeded
    assert "reads = (API_REPLICAS 1 + API_SURGE 1) * WEB_CONCURRENCY 4 * DB_READ_POOL_SIZE 5" in budget.table()
    assert budget.on_server.demand == Budget(replace(API, surge=1)).on_server.demand


def test_standby_may_admit_more_connections_than_the_server() -> None:
    budget = Budget(replace(API, read_pool_size=30), read_server=Server(max_connections=200))

    assert budget.exceeded == []
    assert budget.on_read_server[0].headroom == 77


@pytest.mark.parametrize("pooler", [None, Pooler(max_client_conn=400)])
def test_largest_pool_does_not_depend_on_the_standby(pooler: Pooler | None) -> None:
    with_standby = replace(API, read_pool_size=24)

    assert Budget(with_standby, pooler=pooler, read_server=Server(max_connections=50)).exceeded
    assert (
        Budget(with_standby, pooler=pooler, read_server=Server(max_connections=50)).suggest()
        == Budget(API, pooler=pooler).suggest()
    )
