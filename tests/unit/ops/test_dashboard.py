"""Grafana's dashboard: the file is what the code gives, and what Grafana's schema knows."""

import importlib.util
import json
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from app.paths import PROJECT_ROOT
from tests.support.prometheus import DASHBOARD, panels

CODE = PROJECT_ROOT / "ops/grafana/dashboard.py"
PROVISIONING = PROJECT_ROOT / "ops/grafana/provisioning"


def compose(service: str) -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text())["services"][service])


def test_the_dashboard_is_what_its_code_gives() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", CODE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert DASHBOARD.read_text() == module.text(), "run `make dashboard`"


def test_grafanas_schema_knows_every_field_of_the_dashboard() -> None:
    document = json.loads(DASHBOARD.read_text())

    # What the schema's classes do not know, they do not keep.
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(document))) == document


def test_the_schema_is_that_of_the_grafana_that_is_started() -> None:
    release = compose("grafana")["image"].partition(":")[2]

    assert f"!{release}" in (PROJECT_ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit_and_does_not_lie_on_another(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    mine = _cells(panel)
    assert not any(mine & _cells(other) for other in panels() if other["id"] != panel["id"])


def _cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    return {
        (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
    }


def test_the_data_source_and_the_folder_are_where_the_dashboard_and_compose_have_them() -> None:
    [source] = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((PROVISIONING / "dashboards/headroom.yml").read_text())["providers"]

    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose("grafana")["depends_on"]
    assert f"./ops/grafana/dashboards:{provider['options']['path']}:ro" in compose("grafana")["volumes"]
