"""Prometheus: its files by its own tool, and every expression that somebody relies on against the running stacks."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event

import httpx
import psycopg
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from app.database.conninfo import parameters
from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.load import load
from tests.support.prometheus import Expression, expressions, files, hasty, promtool, query, rules
from tests.support.stacks import ComposeStack, ProdStack, Stack
from tests.support.waiting import eventually

ANSWERED_WITHIN_SECONDS = 90


@pytest.fixture
def compose(stack: Stack) -> ComposeStack:
    assert isinstance(stack, ComposeStack)
    return stack


in_compose = pytest.mark.parametrize("stack", ["compose"], indirect=True)


@contextmanager
def under_load(apis: list[str]) -> Iterator[None]:
    """Traffic on every route that the dashboard could want, a second at a time, until the block ends."""
    stop = Event()
    urls = [f"{api}{path}" for api in apis for path in ("/posts?cursor=", "/users/1", "/readyz")]

    def go_on() -> None:
        while not stop.is_set():
            uvloop.run(load(urls, clients=len(urls) * 2, seconds=1, pause=0.02))

    with ThreadPoolExecutor(1) as threads:
        traffic = threads.submit(go_on)
        try:
            yield
        finally:
            stop.set()
            traffic.result()


def unanswered(prometheus: str, wanted: list[Expression]) -> None:
    """Ask until each has been answered with a series; fails with those that never are."""
    left = list(wanted)

    def ask() -> bool:
        left[:] = [each for each in left if not query(prometheus, each.text)]
        return not left

    try:
        eventually(ask, within=ANSWERED_WITHIN_SECONDS, every=1)
    except AssertionError:
        pytest.fail("no series for:\n" + "\n".join(f"{each.origin}: {each.text}" for each in left))


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", *files("prometheus*.yml")],
        ["check", "rules", *files("rules/*.yml")],
        ["test", "rules", *files("tests/*.yml")],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_has_nothing_to_say(arguments: list[str]) -> None:
    require_engine()
    finished = promtool(*arguments)

    assert finished.returncode == 0, finished.stdout + finished.stderr


@in_compose
def test_promtool_finds_nothing_wrong_with_the_metrics(compose: ComposeStack) -> None:
    finished = promtool("check", "metrics", stdin=httpx.get(f"{compose.exporter}/metrics").text)

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_promtool_finds_nothing_wrong_with_those_of_pgbouncer_either(prod: ProdStack) -> None:
    metrics = httpx.get(f"{prod.exporter}/metrics").text
    finished = promtool("check", "metrics", stdin=metrics)

    assert "pgbouncer_up 1.0" in metrics
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


@in_compose
def test_what_people_know_from_elsewhere_has_a_counterpart_that_is_scraped(compose: ComposeStack) -> None:
    """The tables of docs/metrics.md: the other library's name on the left, Headroom's on the right."""
    _, tables = (PROJECT_ROOT / "docs/metrics.md").read_text().split("## Counterparts in other libraries")
    rows = re.findall(r"^\| (`.+`) \| (.+) \|$", tables, re.MULTILINE)
    assert len(rows) == 28, "ten of HikariCP's, nine of Go's, nine of OpenTelemetry's"
    scraped = [
        (sample.name, sample.labels)
        for family in text_string_to_metric_families(httpx.get(f"{compose.exporter}/metrics").text)
        for sample in family.samples
    ]

    for known, ours in rows:
        counterparts = re.findall(r"`(db_\w+)(?:\{(\w+)=\"(\w+)\"\})?`", ours)
        assert counterparts, known
        for name, label, value in counterparts:
            labels = {label: value} if label else {}
            assert any(
                has in (name, f"{name}_bucket") and labels.items() <= with_labels.items()
                for has, with_labels in scraped
            ), f"{known}: {name}{labels}"


@in_compose
def test_every_expression_is_answered_by_the_running_stack(compose: ComposeStack) -> None:
    with under_load(compose.apis):
        unanswered(compose.prometheus, [each for each in expressions() if not each.about_pgbouncer])


def test_every_expression_is_answered_behind_pgbouncer_and_exporters_are_found_by_name(prod: ProdStack) -> None:
    with under_load(prod.apis):
        unanswered(prod.prometheus, expressions())
    [target] = httpx.get(f"{prod.prometheus}/api/v1/targets").json()["data"]["activeTargets"]
    assert target["health"] == "up"
    assert target["discoveredLabels"]["__meta_dns_name"] == "exporter"


@in_compose
def test_prometheus_has_loaded_the_rules_and_no_alert_fires_at_rest(compose: ComposeStack) -> None:
    def loaded() -> bool:
        groups = httpx.get(f"{compose.prometheus}/api/v1/rules").json()["data"]["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return len(found) == len(rules("alerts.yml")) + len(rules("recording.yml")) and all(
            rule["health"] == "ok" for rule in found
        )

    eventually(loaded, within=30)
    assert httpx.get(f"{compose.exporter}/live.json").json()["conditions"]
    firing = [
        alert["labels"]["alertname"]
        for alert in httpx.get(f"{compose.prometheus}/api/v1/alerts").json()["data"]["alerts"]
        if alert["labels"]["severity"] == "critical" and alert["state"] == "firing"
    ]
    # The tests before have killed workers and filled pools; what lasts is not among them.
    assert not {"ServerDown", "ExporterDown", "HeadroomLow"} & set(firing)


@in_compose
def test_a_connection_leaked_on_purpose_makes_the_views_disagree(compose: ComposeStack) -> None:
    [disagree] = [rule["expr"] for rule in rules("alerts.yml") if rule["alert"] == "ViewsDisagree"]
    shortened = hasty(disagree)
    eventually(lambda: query(compose.prometheus, "stack:db_connections_beyond_pools:difference == 0"), within=30)
    eventually(lambda: not query(compose.prometheus, shortened), within=60, every=1)

    leaked = parameters(compose.database_url().set(username="headroom_app"))
    with closing(psycopg.connect(**leaked, application_name="headroom:api:forgotten:1")):
        [series] = eventually(lambda: query(compose.prometheus, shortened), within=60, every=1)
        assert float(series["value"][1]) == 1

    eventually(lambda: not query(compose.prometheus, shortened), within=60, every=1)
