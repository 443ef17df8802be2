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


def seconds(duration: str) -> int:
    number, unit = int(duration[:-1]), duration[-1]
    return number * {"s": 1, "m": 60}[unit]


def test_alert_about_a_dead_dependency_fires_before_its_consequences_are_sent() -> None:
    wait = seconds(CONFIGURATION["route"]["group_wait"])
    evaluation = 2 * seconds(read(PROJECT_ROOT / "ops/prometheus/prometheus.prod.yml")["global"]["evaluation_interval"])

    for source in ("ServerDown", "NoReplicaReady"):
        assert seconds(ALERTS[source]["for"]) + evaluation < wait


def test_inhibiting_alert_is_critical() -> None:
    """A warning must not hide a critical alert."""
    for rule in CONFIGURATION["inhibit_rules"]:
        for source in named(rule["source_matchers"]) - {"ServerDownRecently"}:  # it follows a critical one
            assert ALERTS[source]["labels"]["severity"] == "critical"


def test_watchdog_is_sent_at_every_flush() -> None:
    """A message that is as old as `repeat_interval` is not repeated, and a flush comes every `group_interval`."""
    [route] = [each for each in CONFIGURATION["route"]["routes"] if each.get("receiver") == "watchdog"]

    assert seconds(route["repeat_interval"]) < seconds(route["group_interval"])


def test_one_failed_scrape_of_the_proxy_is_shorter_than_its_alert_waits() -> None:
    prometheus = read(PROJECT_ROOT / "ops/prometheus/prometheus.prod.yml")
    intervals = [
        each.get("scrape_interval", prometheus["global"]["scrape_interval"]) for each in prometheus["scrape_configs"]
    ]

    assert 2 * max(map(seconds, intervals)) < seconds(ALERTS["ProxyDown"]["for"])
