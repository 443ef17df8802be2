"""Alertmanager's configuration names only alerts that exist."""

import re

from app.paths import PROJECT_ROOT
from tests.support.prometheus import read, rules

CONFIGURATION = read(PROJECT_ROOT / "ops/alertmanager/alertmanager.yml")
ALERTS = {rule["alert"]: rule for file in ("alerts.yml", "production.yml") for rule in rules(file)}


def named(matchers: list[str]) -> set[str]:
    """Return the alerts that `alertname="A"` or `alertname=~"A|B"` names."""
    return {name for matcher in matchers for name in re.sub(r'^alertname=~?"(.*)"$', r"\1", matcher).split("|")}


def test_inhibition_names_existing_alerts_and_no_source_as_its_target() -> None:
    assert CONFIGURATION["inhibit_rules"]
    for rule in CONFIGURATION["inhibit_rules"]:
        sources, targets = named(rule["source_matchers"]), named(rule["target_matchers"])
        assert sources | targets <= ALERTS.keys()
        assert not sources & targets


def test_inhibiting_alert_is_critical() -> None:
    """A warning must not hide what wakes somebody."""
    for rule in CONFIGURATION["inhibit_rules"]:
        for source in named(rule["source_matchers"]):
            assert ALERTS[source]["labels"]["severity"] == "critical"
