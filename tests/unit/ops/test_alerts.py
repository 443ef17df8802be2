"""The alerts agree with their promtool tests, their runbooks, the metrics catalogue and the live page."""

import re

import pytest

from app.exporter.status import conditions
from app.exporter.status.conditions import CONDITIONS
from app.observability import catalogue
from app.paths import PROJECT_ROOT
from tests.support.prometheus import FOLDER, expressions, read, rules

ALERTS = rules("alerts.yml") + rules("production.yml")
ABOUT_THE_STACK = {alert["alert"] for alert in rules("alerts.yml")}
PROMTOOL_TESTS = [test for file in sorted((FOLDER / "tests").glob("*.yml")) for test in read(file)["tests"]]
OTHER_METRICS = {
    "up",
    "alertmanager_notification_requests_failed_total",
    "haproxy_backend_active_servers",
    "haproxy_backend_agg_server_status",
    "haproxy_frontend_http_responses_total",
    "haproxy_process_current_connections",
    "haproxy_process_max_connections",
    "proxy_certificate_expiry_timestamp_seconds",
}
"""Of Prometheus, Alertmanager and the proxy. docs/metrics.md has those of the proxy."""


def heading_anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub derives from the headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_has_a_firing_and_a_quiet_promtool_case(alert: dict[str, str]) -> None:
    cases = [
        case
        for test in PROMTOOL_TESTS
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert["alert"] and test["name"].startswith(alert["alert"])
    ]

    assert any(case["exp_alerts"] for case in cases)
    assert alert["alert"] == "Watchdog" or any(
        test["name"].startswith(f"{alert['alert']} does not fire")
        and not any(case["exp_alerts"] for case in test["alert_rule_test"])
        for test in PROMTOOL_TESTS
    )


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_states_severity_value_and_next_step(alert: dict[str, dict[str, str]]) -> None:
    unsent = {"Watchdog", "ServerDownRecently"}
    allowed = ("none",) if str(alert["alert"]) in unsent else ("critical", "warning")
    assert alert["labels"]["severity"] in allowed
    assert "$value" in alert["annotations"]["summary"]
    assert alert["annotations"]["description"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_names_a_section_of_the_runbooks(alert: dict[str, dict[str, str]]) -> None:
    file, _, anchor = alert["annotations"]["runbook"].partition("#")

    assert anchor == str(alert["alert"]).lower()
    assert anchor in heading_anchors((PROJECT_ROOT / file).read_text())


def test_recording_rules_have_promtool_cases() -> None:
    tested = {test["name"].split()[0] for test in PROMTOOL_TESTS}

    assert {rule["record"] for rule in rules("recording.yml")} <= tested


def test_expressions_name_only_metrics_of_the_catalogue() -> None:
    known = OTHER_METRICS | {rule["record"] for rule in rules("recording.yml")}
    for metric in catalogue.metric_specs():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        known |= {metric.name + suffix for suffix in suffixes}

    for expression in expressions():
        bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|unless) *\([^)]*\)', " ", expression.text)
        names = set(re.findall(r"[a-z][a-z0-9_:]*[_:][a-z0-9_:]+|\bup\b", bare))
        functions = {"histogram_quantile", "quantile_over_time", "min_over_time", "max_over_time"}
        assert names - functions <= known, expression.origin


def test_page_conditions_match_names_and_thresholds_of_the_alerts() -> None:
    alerts = {alert["alert"]: alert for alert in ALERTS}
    # The exporter serves the page, so the page cannot report ExporterDown. It does not know the proxy.
    assert ABOUT_THE_STACK - {"ExporterDown"} == {condition.name for condition in CONDITIONS}
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
    assert f"> {conditions.MISSED_BACKUPS} *" in expression("BackupTooOld")
    assert f"+ {conditions.MISSED_BACKUPS} *" in expression("BackupRetentionExceeded")
    assert expression("BackupServiceDown").endswith(f"> {conditions.BACKUP_STATUS_SECONDS:.0f}")
    assert expression("WalArchiveLate").endswith(f"> {conditions.WAL_WAITING_SECONDS:.0f}")
    assert expression("RestoreDrillOverdue").endswith(f"> {conditions.DRILL_DAYS * 86_400}")
