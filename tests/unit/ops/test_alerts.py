"""The alerts, beside what tests them, what explains them, and what the page says of them."""

import re

import pytest

from app.exporter.status import conditions
from app.exporter.status.conditions import CONDITIONS
from app.observability import catalogue
from app.paths import PROJECT_ROOT
from tests.support.prometheus import FOLDER, expressions, read, rules

ALERTS = rules("alerts.yml")
RUNBOOK = (FOLDER / "README.md").read_text()
TESTS = [test for file in sorted((FOLDER / "tests").glob("*.yml")) for test in read(file)["tests"]]
# What Prometheus makes itself.
BUILT_IN = {"up"}


def anchors(markdown: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_a_case_that_makes_it_fire_and_one_that_keeps_it_quiet(alert: dict[str, str]) -> None:
    cases = [
        case
        for test in TESTS
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert["alert"] and test["name"].startswith(alert["alert"])
    ]

    assert any(case["exp_alerts"] for case in cases)
    assert any(
        f"{alert['alert']} keeps quiet" in test["name"] and not any(c["exp_alerts"] for c in test["alert_rule_test"])
        for test in TESTS
    )


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_a_number_how_bad_it_is_and_where_to_read_on(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert "$value" in alert["annotations"]["summary"]
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor == str(alert["alert"]).lower()
    assert anchor in anchors((PROJECT_ROOT / file).read_text())


def test_every_recording_rule_has_a_case() -> None:
    tested = {test["name"].split()[0] for test in TESTS}

    assert {rule["record"] for rule in rules("recording.yml")} <= tested


def test_every_metric_that_an_expression_names_is_in_the_catalogue() -> None:
    known = BUILT_IN | {rule["record"] for rule in rules("recording.yml")}
    for each in catalogue.described():
        suffixes = ("_bucket", "_sum", "_count") if each.kind == "histogram" else ("",)
        known |= {each.name + suffix for suffix in suffixes}

    for expression in expressions():
        bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|unless) *\([^)]*\)', " ", expression.text)
        names = set(re.findall(r"[a-z][a-z0-9_:]*[_:][a-z0-9_:]+|\bup\b", bare))
        functions = {"histogram_quantile", "quantile_over_time", "min_over_time", "max_over_time"}
        assert names - functions <= known, expression.origin


def test_the_page_tells_of_the_alerts_conditions_by_the_same_names_and_thresholds() -> None:
    alerts = {alert["alert"]: alert for alert in ALERTS}
    # That the exporter is down, it cannot tell.
    assert alerts.keys() - {"ExporterDown"} == {condition.name for condition in CONDITIONS}
    for condition in CONDITIONS:
        assert condition.severity == alerts[condition.name]["labels"]["severity"], condition.name

    def expression(name: str) -> str:
        return str(alerts[name]["expr"])

    assert expression("HeadroomLow").endswith(f"< {conditions.LOW_HEADROOM:.2f}")
    assert expression("PoolSaturated").endswith(f"> {conditions.SATURATED}")
    assert expression("PoolWaitSlow").endswith(f"> {conditions.SLOW_WAIT_SECONDS}")
    assert f"[{conditions.DISAGREEMENT_SECONDS / 60:.0f}m]" in expression("ViewsDisagree")
    assert f"[{conditions.LEAKS_SECONDS / 60:.0f}m]" in expression("PoolLeakSuspects")
    assert f"[{conditions.FLAPPING_SECONDS / 60:.0f}m]" in expression("WorkerFlapping")
    assert f"> {conditions.FLAPPING_STARTS} *" in expression("WorkerFlapping")
    for name in ("PoolTimeouts", "PoolRejections", "PoolConnectErrors"):
        assert f"[{conditions.RECENT_SECONDS / 60:.0f}m]" in expression(name)
