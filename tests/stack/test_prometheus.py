"""Prometheus: promtool checks its files, and the running stacks return series for every expression."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from ssl import SSLContext
from threading import Event

import httpx
import psycopg
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from app.database.conninfo import parameters
from app.paths import PROJECT_ROOT
from tests.support import sample
from tests.support.docker import require_engine
from tests.support.load import load
from tests.support.prometheus import Expression, expressions, files, hasty, promtool, query, rules
from tests.support.stacks import ComposeStack, ProdStack
from tests.support.waiting import eventually

SERIES_WITHIN_SECONDS = 90


in_compose = pytest.mark.parametrize("stack", ["compose"], indirect=True)


@contextmanager
def under_load(apis: list[str], tls: SSLContext | None = None) -> Iterator[None]:
    """Send requests to every kind of route that the dashboard shows, until the block ends."""
    stop = Event()
    urls = [f"{api}{path}" for api in apis for path in ("/posts?cursor=", sample.READ, "/readyz")]

    def send_requests() -> None:
        while not stop.is_set():
            uvloop.run(load(urls, clients=len(urls) * 2, seconds=1, pause=0.02, tls=tls))

    with ThreadPoolExecutor(1) as threads:
        traffic = threads.submit(send_requests)
        try:
            yield
        finally:
            stop.set()
            traffic.result()


def assert_series_exist(prometheus: str, wanted: list[Expression]) -> None:
    """Query the expressions until each has returned a series. Fail with those that never do."""
    left = list(wanted)

    def complete() -> bool:
        left[:] = [each for each in left if not query(prometheus, each.text)]
        return not left

    try:
        eventually(complete, within=SERIES_WITHIN_SECONDS, every=1)
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
def test_promtool_accepts_the_files(arguments: list[str]) -> None:
    require_engine()
    finished = promtool(*arguments)

    assert finished.returncode == 0, finished.stdout + finished.stderr


@in_compose
def test_promtool_accepts_the_metrics(compose: ComposeStack) -> None:
    finished = promtool("check", "metrics", stdin=httpx.get(f"{compose.exporter}/metrics").text)

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_promtool_accepts_the_metrics_of_pgbouncer(prod: ProdStack) -> None:
    def metrics() -> str | None:
        text = httpx.get(f"{prod.exporter}/metrics").text
        return text if "pgbouncer_up 1.0" in text else None

    finished = promtool("check", "metrics", stdin=eventually(metrics, within=60))

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


@in_compose
def test_counterparts_of_other_libraries_metrics_are_scraped(compose: ComposeStack) -> None:
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
def test_every_expression_returns_series(compose: ComposeStack) -> None:
    everywhere = [
        each
        for each in expressions()
        if not (each.about_pgbouncer or each.about_backups or each.about_production or each.about_standbys)
    ]
    with under_load(compose.apis):
        assert_series_exist(compose.prometheus, everywhere)


def test_every_expression_returns_series_behind_pgbouncer(prod: ProdStack) -> None:
    with under_load([prod.api] * 2, prod.tls):
        assert_series_exist(
            prod.prometheus,
            [
                each
                for each in expressions()
                if not (each.about_drills or each.about_receivers or each.about_alerts or each.about_standbys)
            ],
        )
    targets = httpx.get(f"{prod.prometheus}/api/v1/targets").json()["data"]["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == dict.fromkeys(
        ("headroom", "proxy", "certificates", "alertmanager"), "up"
    )
    found = {target["labels"]["job"]: target["discoveredLabels"].get("__meta_dns_name") for target in targets}
    assert (found["headroom"], found["proxy"]) == ("exporter", "proxy")


@in_compose
def test_rules_are_loaded_and_no_lasting_alert_fires(compose: ComposeStack) -> None:
    def loaded() -> bool:
        groups = httpx.get(f"{compose.prometheus}/api/v1/rules").json()["data"]["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return len(found) == len(rules("alerts.yml")) + len(rules("recording.yml")) and all(
            rule["health"] == "ok" for rule in found
        )

    eventually(loaded, within=60)
    eventually(lambda: httpx.get(f"{compose.exporter}/live.json").json()["conditions"], within=60)
    firing = [
        alert["labels"]["alertname"]
        for alert in httpx.get(f"{compose.prometheus}/api/v1/alerts").json()["data"]["alerts"]
        if alert["labels"]["severity"] == "critical" and alert["state"] == "firing"
    ]
    # Earlier tests kill workers and fill pools, so alerts about those may fire.
    assert not {"ServerDown", "ExporterDown", "HeadroomLow"} & set(firing)


@in_compose
def test_leaked_connection_makes_server_and_pools_disagree(compose: ComposeStack) -> None:
    [disagree] = [rule["expr"] for rule in rules("alerts.yml") if rule["alert"] == "ViewsDisagree"]
    shortened = hasty(disagree)
    eventually(lambda: query(compose.prometheus, "stack:db_connections_beyond_pools:difference == 0"), within=60)
    eventually(lambda: not query(compose.prometheus, shortened), within=60, every=1)

    leaked = parameters(compose.database_url().set(username="headroom_app"))
    with closing(psycopg.connect(**leaked, application_name="headroom:api:forgotten:1")):
        [series] = eventually(lambda: query(compose.prometheus, shortened), within=60, every=1)
        assert float(series["value"][1]) == 1

    eventually(lambda: not query(compose.prometheus, shortened), within=60, every=1)
