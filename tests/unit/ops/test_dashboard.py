"""Grafana's dashboard: the JSON file matches its generator and Grafana's schema."""

import importlib.util
import json
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from app.paths import PROJECT_ROOT
from tests.support.prometheus import DASHBOARD, panels

GENERATOR = PROJECT_ROOT / "ops/grafana/dashboard.py"
PROVISIONING = PROJECT_ROOT / "ops/grafana/provisioning"


FILES = ("docker-compose.yml", "compose.grafana.yml")


def compose(service: str, file: str = "docker-compose.yml") -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT_ROOT / file).read_text())["services"][service])


def test_dashboard_file_equals_the_output_of_its_generator() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert DASHBOARD.read_text() == module.render(), "run `make dashboard`"


def test_dashboard_has_only_fields_of_grafanas_schema() -> None:
    document = json.loads(DASHBOARD.read_text())

    # The classes of the schema drop unknown fields.
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(document))) == document


@pytest.mark.parametrize("file", FILES)
def test_schema_release_is_the_grafana_release_of_compose(file: str) -> None:
    release = compose("grafana", file)["image"].partition(":")[2]

    assert f"!{release}" in (PROJECT_ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panel_has_description_unit_and_query(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panel_overlaps_no_other_panel(panel: dict[str, Any]) -> None:
    cells = _grid_cells(panel)

    assert not any(cells & _grid_cells(other) for other in panels() if other["id"] != panel["id"])


def _grid_cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    grid = panel["gridPos"]
    return {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}


# The fields of Grafana's reference for provisioning, and the settings of our services in its defaults.ini.
SOURCE_FIELDS = {
    *("name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth", "basicAuthUser"),
    *("withCredentials", "isDefault", "jsonData", "secureJsonData", "version", "editable"),
}
PROVIDER_FIELDS = {
    *("name", "orgId", "folder", "folderUid", "type", "disableDeletion", "updateIntervalSeconds", "allowUiUpdates"),
    "options",
}
PROMETHEUS_FIELDS = {"timeInterval", "httpMethod", "customQueryParameters", "manageAlerts", "alertmanagerUid"}


def test_provisioning_has_only_fields_of_grafanas_reference() -> None:
    """Grafana ignores others without a message."""
    sources = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())
    dashboards = yaml.safe_load((PROVISIONING / "dashboards/headroom.yml").read_text())

    assert (sources["apiVersion"], dashboards["apiVersion"]) == (1, 1)
    assert sources.keys() <= {"apiVersion", "datasources", "deleteDatasources", "prune"}
    assert dashboards.keys() <= {"apiVersion", "providers"}
    for source in sources["datasources"]:
        assert source.keys() <= SOURCE_FIELDS
        assert source["jsonData"].keys() <= PROMETHEUS_FIELDS
    for provider in dashboards["providers"]:
        assert provider.keys() <= PROVIDER_FIELDS
        assert provider["options"].keys() <= {"path", "foldersFromFilesStructure"}


@pytest.mark.parametrize("file", FILES)
def test_provisioning_matches_the_dashboard_and_compose(file: str) -> None:
    [source] = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((PROVISIONING / "dashboards/headroom.yml").read_text())["providers"]

    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    grafana = compose("grafana", file)
    assert "prometheus" in grafana["depends_on"]
    assert f"./ops/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
