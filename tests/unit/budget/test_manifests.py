"""`headroom budget --file`: the budget of manifests counts what their objects allow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.budget.manifests import from_manifests
from app.cli.main import main
from app.errors import ConfigurationError
from app.paths import PROJECT_ROOT

Manifest = dict[str, Any]
GOLDEN = PROJECT_ROOT / "tests/unit/ops/kubernetes/golden/default.yaml"


def changed(change: Callable[[dict[str, Manifest]], None]) -> str:
    """Return the manifests of the chart after a change. Its argument has them by kind and name."""
    documents = {f"{each['kind']} {each['metadata']['name']}": each for each in yaml.safe_load_all(GOLDEN.read_text())}
    change(documents)
    return yaml.safe_dump_all(documents.values())


def container_of(documents: dict[str, Manifest]) -> Manifest:
    """Return the container of the API."""
    [container] = documents["Deployment headroom-api"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def replicas(maximum: int) -> Callable[[dict[str, Manifest]], None]:
    def change(documents: dict[str, Manifest]) -> None:
        documents["HorizontalPodAutoscaler headroom-api"]["spec"]["maxReplicas"] = maximum
        del documents["ResourceQuota headroom-api"]

    return change


def test_autoscaler_maximum_counts_not_the_variable() -> None:
    report = from_manifests(changed(replicas(50)))

    assert (report.budget.api.replicas, report.budget.api.surge) == (50, 3)
    assert [each.name for each in report.budget.exceeded] == ["pooler clients"]
    assert "no ResourceQuota limits the pods: more than 3" in report.remarks[0]
    assert "API_REPLICAS + API_SURGE of the container are 9, but there can be 53 pods" in report.remarks[1]


def test_quota_limits_the_pods_of_a_larger_autoscaler() -> None:
    def change(documents: dict[str, Manifest]) -> None:
        documents["HorizontalPodAutoscaler headroom-api"]["spec"]["maxReplicas"] = 50

    report = from_manifests(changed(change))

    assert (report.budget.api.replicas, report.budget.api.surge) == (9, 0)
    assert report.budget.exceeded == []
    assert report.remarks == ()


def test_quota_of_other_pods_does_not_count() -> None:
    def change(documents: dict[str, Manifest]) -> None:
        documents["Deployment headroom-api"]["spec"]["template"]["spec"]["priorityClassName"] = "other"

    assert "no ResourceQuota" in from_manifests(changed(change)).remarks[0]


@pytest.mark.parametrize(
    ("strategy", "surge"),
    [
        ({"type": "Recreate"}, 3),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 5, "maxUnavailable": 0}}, 5),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%"}}, 6),
        ({}, 3),
    ],
)
def test_larger_surge_than_the_variable_counts(strategy: Manifest, surge: int) -> None:
    """Kubernetes rounds a share up, and its default is a quarter."""

    def change(documents: dict[str, Manifest]) -> None:
        del documents["ResourceQuota headroom-api"]
        documents["Deployment headroom-api"]["spec"]["strategy"] = strategy

    assert from_manifests(changed(change)).budget.api.surge == surge


def test_fixed_number_of_pods_is_that_of_the_deployment() -> None:
    def change(documents: dict[str, Manifest]) -> None:
        del documents["HorizontalPodAutoscaler headroom-api"]
        documents["Deployment headroom-api"]["spec"]["replicas"] = 4

    report = from_manifests(changed(change))
    assert (report.budget.api.replicas, report.budget.api.surge) == (4, 5)


def test_limits_of_cluster_and_pooler_count_not_the_variables() -> None:
    def change(documents: dict[str, Manifest]) -> None:
        documents["Cluster headroom-db"]["spec"]["postgresql"]["parameters"]["max_connections"] = "60"
        pooler = documents["Pooler headroom-pooler"]["spec"]
        pooler["pgbouncer"]["parameters"] |= {"default_pool_size": "30", "max_db_connections": "10"}
        documents["ResourceQuota headroom-pooler"]["spec"]["hard"]["pods"] = "7"

    budget = from_manifests(changed(change)).budget
    assert budget.server.max_connections == 60
    assert budget.pooler is not None
    assert (budget.pooler.default_pool_size, budget.pooler.instances) == (30, 7)
    assert budget.pooler.max_db_connections == 0, "CloudNativePG looks passwords up in another database"


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        (
            [
                {"name": "DATABASE_READ_URL_FILE", "value": "/run/secrets/x"},
                {"name": "DB_READ_POOL_SIZE", "value": "9"},
            ],
            9,
        ),
        ([{"name": "DATABASE_READ_URL", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}], 5),
        ([{"name": "DATABASE_READ_URL", "value": ""}, {"name": "DB_READ_POOL_SIZE", "value": "9"}], 0),
    ],
    ids=["file", "secret", "empty"],
)
def test_pools_to_a_standby_count(variables: list[Manifest], size: int) -> None:
    def change(documents: dict[str, Manifest]) -> None:
        container_of(documents)["env"] += variables

    budget = from_manifests(changed(change)).budget

    assert budget.api.read_pool_size == size
    assert [each.name for each in budget.exceeded] == ([] if size == 0 else ["read server connections"])


def test_share_of_the_expensive_lane_is_that_of_the_container() -> None:
    def change(documents: dict[str, Manifest]) -> None:
        container_of(documents)["env"].append({"name": "DB_EXPENSIVE_SHARE", "value": "0.25"})

    assert from_manifests(changed(change)).budget.lanes.limits["expensive"] == 0.25


def test_list_of_objects_is_read_as_documents() -> None:
    items = list(yaml.safe_load_all(GOLDEN.read_text()))

    assert from_manifests(yaml.safe_dump({"kind": "List", "items": items})) == from_manifests(GOLDEN.read_text())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "the manifests have 0 Deployments with a container named api"),
        (GOLDEN.read_text() + "---\n" + GOLDEN.read_text(), "the manifests have 2 Deployments"),
        ("a: [", "the manifests are no YAML"),
        ("kind: Deployment", "the manifests are not valid (KeyError('spec'))"),
        (
            GOLDEN.read_text().replace("name: DB_POOL_SIZE", "name: OTHER"),
            "DB_POOL_SIZE: the container api must set it",
        ),
    ],
    ids=["empty", "two", "no-yaml", "no-spec", "no-variable"],
)
def test_manifests_without_a_budget_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_manifests(text)

    assert complaint in str(caught.value)


def test_command_prints_the_table_and_fails_over_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "manifests.yaml"
    file.write_text(changed(replicas(50)))

    assert main(["budget", "--file", str(GOLDEN)]) == 0
    assert main(["budget", "--file", str(file)]) == 1
    captured = capsys.readouterr()
    assert "OVER BUDGET" in captured.out
    assert "over budget: pooler clients: 1062 demanded, 400 available" in captured.err


def test_command_names_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "--file", str(tmp_path / "missing.yaml")]) == 1
    assert "missing.yaml" in capsys.readouterr().err
