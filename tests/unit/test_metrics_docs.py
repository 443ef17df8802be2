"""docs/metrics.md, docs/runbooks.md and docs/performance.md agree with the code and with the files they name."""

import re

import pytest

from app.observability.catalogue import metric_specs, metrics_table
from app.paths import POSTGRES_ROLES, PROJECT_ROOT
from app.settings import Settings
from tests.support.prometheus import rules

DOCS = PROJECT_ROOT / "docs"
PAGES = ("metrics.md", "runbooks.md", "performance.md")
METRIC_PREFIXES = ("db_", "http_", "headroom_", "pgbouncer_")


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def code_spans(markdown: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))


def anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub derives from the headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_metrics_page_has_the_generated_table() -> None:
    assert metrics_table() in read("metrics.md"), "docs/metrics.md: run `make docs`"


@pytest.mark.parametrize("page", PAGES)
def test_metric_names_in_docs_exist(page: str) -> None:
    roles = set(re.findall(r"headroom_\w+", POSTGRES_ROLES.read_text(encoding="utf-8")))
    known = {metric.name for metric in metric_specs()} | roles
    named = {
        metric
        for span in code_spans(read(page))
        for metric in re.findall(r"\b[a-z]+_[a-z_]+\b", span)
        if metric.startswith(METRIC_PREFIXES) and ":" not in span
    }

    assert {metric.removesuffix("_bucket") for metric in named if metric not in known} <= known


@pytest.mark.parametrize("page", PAGES)
def test_settings_named_in_docs_exist(page: str) -> None:
    named = {variable for span in code_spans(read(page)) for variable in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", span)}

    assert {variable.lower() for variable in named} <= Settings.model_fields.keys()


@pytest.mark.parametrize("page", PAGES)
def test_links_in_docs_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_in_docs_exist(page: str) -> None:
    makefile = (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))

    named = {target for span in code_spans(read(page)) for target in re.findall(r"\bmake ([a-z-]+)", span)}
    assert named <= targets


def test_runbooks_have_one_section_per_alert() -> None:
    sections = re.findall(r"^## (\w+)\n\n(Critical|Warning)\.", read("runbooks.md"), re.MULTILINE)
    alerts = [(alert["alert"], alert["labels"]["severity"].capitalize()) for alert in rules("alerts.yml")]

    assert sorted(sections) == sorted(alerts)


def test_images_in_docs_are_used() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (PROJECT_ROOT / "README.md", *DOCS.glob("*.md")))

    for image in (DOCS / "images").iterdir():
        assert f"images/{image.name}" in text
