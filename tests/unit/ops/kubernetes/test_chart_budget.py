"""The arithmetic of the chart, of app/budget/model.py and of `headroom budget --file` agree."""

import re
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from app.budget.manifests import from_manifests
from app.budget.model import ApiPools, Budget, Pooler, Server
from tests.support.charts import MATRIX, RenderFailed, notes, render, rendered

small = st.integers(0, 3)
positive = st.integers(1, 12)
VALUES = st.fixed_dictionaries(
    {
        "autoscaling": st.fixed_dictionaries(
            {"kind": st.sampled_from(["hpa", "keda", "none"]), "maxReplicas": positive}
        ),
        "api": st.fixed_dictionaries(
            {
                "replicas": st.just(1) | positive,
                "surge": small,
                "terminating": st.integers(1, 3),
                "workers": st.integers(1, 4),
                "pool": st.fixed_dictionaries({"size": st.integers(1, 6), "maxOverflow": st.integers(0, 6)}),
            }
        ),
        "pooler": st.fixed_dictionaries(
            {
                "enabled": st.booleans(),
                "instances": st.integers(1, 3),
                "surge": small,
                "terminating": small,
                "maxClientConnections": st.integers(1, 1000),
                "poolSize": st.integers(1, 20),
                "reservePoolSize": st.integers(0, 5),
            }
        ),
        "database": st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["cloudnative-pg", "external"]),
                "maxConnections": st.integers(20, 600),
                "superuserReservedConnections": st.integers(0, 10),
                "reservedConnections": st.integers(0, 10),
                "otherConnections": st.integers(0, 15),
            }
        ),
        "readReplicas": st.fixed_dictionaries({"enabled": st.booleans(), "poolSize": st.integers(1, 6)}),
        "quota": st.fixed_dictionaries({"enabled": st.booleans()}),
    }
)


def budget_of(values: dict[str, Any]) -> Budget:
    """Return the budget that the values mean."""
    api, pooler, database = values["api"], values["pooler"], values["database"]
    return Budget(
        ApiPools(
            replicas=api["replicas"]
            if values["autoscaling"]["kind"] == "none"
            else values["autoscaling"]["maxReplicas"],
            surge=api["surge"] + api["terminating"],
            workers=api["workers"],
            pool_size=api["pool"]["size"],
            max_overflow=api["pool"]["maxOverflow"],
            read_pool_size=values["readReplicas"]["poolSize"] if values["readReplicas"]["enabled"] else 0,
        ),
        Server(
            max_connections=database["maxConnections"] - database["otherConnections"],
            superuser_reserved_connections=database["superuserReservedConnections"],
            reserved_connections=database["reservedConnections"],
        ),
        Pooler(
            max_client_conn=pooler["maxClientConnections"],
            default_pool_size=pooler["poolSize"],
            reserve_pool_size=pooler["reservePoolSize"],
            instances=pooler["instances"] + pooler["surge"] + pooler["terminating"],
        )
        if pooler["enabled"]
        else None,
    )


def table_in(text: str) -> str:
    """Return the budget's table out of a message of helm."""
    found = re.search(r"^server connections$.*?\n\n.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    assert found, text
    return found[0]


def table_of(budget: Budget) -> str:
    """Return the model's table without the lanes: they need the number of the server's cores."""
    rows, formulas = budget.table().split("\n\n")
    return rows.partition("\nlanes of a worker")[0] + "\n\n" + formulas.removesuffix("\n" + budget.lanes.formula)


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(VALUES)
def test_chart_and_manifests_have_the_budget_of_the_values(values: dict[str, Any]) -> None:
    """The chart prints the table of the model, and fails with it when the model complains."""
    assume(values["api"]["replicas"] <= values["autoscaling"]["maxReplicas"])
    expected = budget_of(values)
    if expected.exceeded:
        with pytest.raises(RenderFailed) as caught:
            render(values)
        assert table_in(str(caught.value)) == table_of(expected)
    else:
        assert from_manifests(render(values)).budget == expected
        assert table_in(notes(values)) == table_of(expected)


@pytest.mark.parametrize("name", MATRIX)
def test_each_installation_of_the_matrix_fits(name: str) -> None:
    report = from_manifests(rendered(name))

    assert report.budget.exceeded == []
    assert bool(report.remarks) == (name == "least"), "without a quota, nothing limits terminating pods"


def test_values_over_budget_are_refused_with_the_table() -> None:
    with pytest.raises(RenderFailed) as caught:
        render({"autoscaling": {"maxReplicas": 20}})

    message = str(caught.value)
    assert "the connections do not fit: lower autoscaling.maxReplicas" in message
    assert "OVER BUDGET" in message
    assert "(API_REPLICAS 20 + API_SURGE 3) * WEB_CONCURRENCY 2" in message


def test_reads_over_budget_are_refused_with_the_table() -> None:
    """Behind a pooler too: the pods connect to the standbys without one."""
    with pytest.raises(RenderFailed) as caught:
        render({"readReplicas": {"enabled": True, "poolSize": 5}})

    message = str(caught.value)
    assert "lower autoscaling.maxReplicas, api.workers, api.pool or readReplicas.poolSize" in message
    assert "reads = (API_REPLICAS 6 + API_SURGE 3) * WEB_CONCURRENCY 2 * DB_READ_POOL_SIZE 5" in message
