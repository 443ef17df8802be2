"""The documents agree with the code: links, commands, paths, variables, tables and examples."""

import argparse
import re
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from app import models
from app.cli.main import _parser
from app.observability.catalogue import metric_specs, metrics_table
from app.paths import POSTGRES_ROLES, PROJECT_ROOT
from app.settings import Settings, settings_table
from ops.domain.__main__ import write_domain
from ops.domain.rendering import Names
from tests.support.prometheus import rules
from tests.support.tree import copy_tree

DOCS = PROJECT_ROOT / "docs"
DECISIONS = DOCS / "decisions"
WALK_THROUGH = "docs/adding-a-domain.md"
DOCUMENTS = sorted(path.name for path in PROJECT_ROOT.glob("*.md")) + sorted(
    str(path.relative_to(PROJECT_ROOT))
    for folder in (".github", "docs", "ops")
    for path in (PROJECT_ROOT / folder).rglob("*.md")
)
DECISION_SECTIONS = ["Status", "Context", "Decision", "Measurements", "Consequences", "Alternatives rejected"]
MAX_README_WORDS = 1_800
VARIABLE = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
# Of PL/pgSQL: nothing sets it.
NO_SETTING = {"TG_OP"}
# Created by commands, so not in a clean checkout.
CREATED_PATHS = (".deploy/", ".data", ".secrets", ".venv")
CODE = (
    "app",
    "migrations",
    "ops",
    "tests",
    "benchmarks",
    "Makefile",
    "docker-compose.yml",
    "compose.prod.yml",
    ".ci",
    "compose.acme.yml",
    "compose.direct.yml",
    "compose.external.yml",
    "compose.grafana.yml",
    "compose.noswap.yml",
    "compose.replica.yml",
    "compose.swarm.yml",
)

# Pages about metrics: they name no other variables than settings, and no other metrics than the catalogue's.
METRIC_PAGES = ("docs/metrics.md", "docs/runbooks.md", "docs/performance.md")
METRIC_PREFIXES = ("db_", "http_", "headroom_", "pgbouncer_")

each_document = pytest.mark.parametrize("document", DOCUMENTS)
each_metric_page = pytest.mark.parametrize("document", METRIC_PAGES)


@cache
def read(document: str) -> str:
    return (PROJECT_ROOT / document).read_text(encoding="utf-8")


@cache
def code_files() -> tuple[Path, ...]:
    roots = [PROJECT_ROOT / name for name in CODE]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    return tuple(path for path in files if not {"__pycache__", "node_modules"} & set(path.parts))


@cache
def code() -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in code_files())


@cache
def variables_of_code() -> set[str]:
    return set(VARIABLE.findall(code()))


def blocks(document: str, language: str = r"\w*") -> list[str]:
    """Return the fenced code blocks of the language, by default of every language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", read(document), re.MULTILINE | re.DOTALL)


def spans(document: str) -> list[str]:
    """Return the code spans, without the fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", read(document), flags=re.MULTILINE | re.DOTALL))


def commands(document: str) -> list[str]:
    """Return everything that could be a command: code spans, and the lines of blocks without their comments."""
    lines = [line for block in blocks(document) for line in block.replace("\\\n", " ").splitlines()]
    return [*spans(document), *(line.partition(" # ")[0] for line in lines)]


def anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub derives from the headings."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_relative_links_and_anchors_resolve(document: str) -> None:
    text = read(document)
    for target in (*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (PROJECT_ROOT / document).parent / path if path else PROJECT_ROOT / document
        assert file.exists(), f"{document} links to {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{document} links to {target}"


@each_document
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE))

    named = {target for command in commands(document) for target in re.findall(r"\bmake ([a-z][a-z-]*)", command)}
    assert named <= targets


def test_make_targets_are_defined_once() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE)

    assert len(targets) == len(set(targets))


def test_index_of_the_documents_names_each_once() -> None:
    rows = [line for line in read("docs/README.md").splitlines() if line.startswith("| ")]

    assert len(rows) == len(set(rows))


@each_document
def test_headroom_commands_and_their_options_exist(document: str) -> None:
    [subcommands] = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]

    for command in commands(document):
        for name, arguments in re.findall(r"(?:^|[\s/])headroom ([a-z][a-z-]*)(.*)", command):
            assert name in subcommands.choices, command
            options = set(re.findall(r"(?<= )--[a-z-]+", arguments))
            assert options <= subcommands.choices[name]._option_string_actions.keys(), command


@each_document
def test_services_of_compose_commands_exist(document: str) -> None:
    for command in commands(document):
        found = re.search(
            r"docker compose (?:-f (\S+) )?(?:exec|run|logs|restart|kill)"
            r"(?: -T| --rm| --signal \w+| -e \S+)* (\w+)",
            command,
        )
        if found:
            file, service = found[1] or "docker-compose.yml", found[2]
            assert service in yaml.safe_load(read(file))["services"], command


@each_document
def test_paths_exist(document: str) -> None:
    if document == "CHANGELOG.md":  # it names former paths
        return
    top = {path.name for path in PROJECT_ROOT.iterdir()}
    names = {path.name for path in (*code_files(), *PROJECT_ROOT.iterdir(), *DOCS.rglob("*"))}
    names.add("service.py")  # optional in a domain
    created = {path for path, _ in files_of_walk_through()} if document == WALK_THROUGH else set()
    for span in spans(document):
        is_path = re.fullmatch(r"\.?[\w*-][\w.*-]*(/[\w.*-]+)*/?", span) and not span.startswith(CREATED_PATHS)
        if not is_path or span in created:
            continue
        if "/" in span and (span.partition("/")[0] in top or Path(span).suffix in {".py", ".sql", ".sh", ".yml"}):
            bases = (PROJECT_ROOT, (PROJECT_ROOT / document).parent)
            assert any([*base.glob(span.rstrip("/"))] for base in bases), f"{document} names {span}"
        elif re.fullmatch(r"[\w.-]+\.(py|md|yml|sql|sh|ini|conf|toml)", span):
            assert span in names, f"{document} names {span}"


@each_document
def test_environment_variables_exist(document: str) -> None:
    named = {name for command in commands(document) for name in VARIABLE.findall(command)}
    known = {name.upper() for name in Settings.model_fields} | NO_SETTING

    assert {name for name in named - known if name.removesuffix("_FILE") not in known} <= variables_of_code()


@each_document
def test_python_blocks_compile(document: str) -> None:
    for block in blocks(document, "python"):
        compile(dedent(block), document, "exec")


def test_steps_of_expand_and_contract_are_those_of_the_history() -> None:
    """A block after a line with the path of a file has lines of that file only."""
    block = re.compile(r"^`([\w/.]+\.py)`\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = block.findall(read("docs/expand-and-contract.md"))
    assert len(blocks) == 6
    for path, text in blocks:
        lines, known = (set(map(str.strip, each.splitlines())) for each in (text, read(path)))
        assert lines <= known, path


def test_readme_is_short() -> None:
    assert len(read("README.md").split()) <= MAX_README_WORDS


def test_settings_page_has_the_generated_table() -> None:
    assert settings_table() in read("docs/settings.md"), "run `make docs`"


def test_metrics_page_has_the_generated_table() -> None:
    assert metrics_table() in read("docs/metrics.md"), "run `make docs`"


@each_metric_page
def test_metric_names_exist(document: str) -> None:
    roles = set(re.findall(r"headroom_\w+", POSTGRES_ROLES.read_text(encoding="utf-8")))
    known = {metric.name for metric in metric_specs()} | roles
    named = {
        metric
        for span in spans(document)
        for metric in re.findall(r"\b[a-z]+_[a-z_]+\b", span)
        if metric.startswith(METRIC_PREFIXES) and ":" not in span
    }

    assert {metric.removesuffix("_bucket") for metric in named if metric not in known} <= known


@each_metric_page
def test_metric_page_names_only_variables_that_are_settings(document: str) -> None:
    named = {name for span in spans(document) for name in VARIABLE.findall(span)}

    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_runbooks_have_one_section_per_alert() -> None:
    sections = re.findall(r"^## (\w+)\n\n(Critical|Warning)\.", read("docs/runbooks.md"), re.MULTILINE)
    alerts = [
        (alert["alert"], alert["labels"]["severity"].capitalize())
        for alert in rules("alerts.yml") + rules("production.yml")
        if alert["labels"]["severity"] != "none"  # not a problem
    ]

    assert sorted(sections) == sorted(alerts)


def test_images_are_used() -> None:
    text = "".join(read(document) for document in DOCUMENTS)

    for image in (DOCS / "images").iterdir():
        assert f"images/{image.name}" in text


def test_index_lists_every_document() -> None:
    for path in (*DOCS.glob("*.md"), *PROJECT_ROOT.glob("*.md")):
        if path.name not in {"README.md", "CHANGELOG.md", "SECURITY.md"}:
            assert path.name in read("docs/README.md")


def test_index_lists_every_decision_in_order() -> None:
    listed = re.findall(r"^\| \[.+?\]\((\d{4}-[a-z-]+\.md)\)", read("docs/decisions/README.md"), re.MULTILINE)

    assert listed == sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))


@pytest.mark.parametrize("name", [path.name for path in sorted(DECISIONS.glob("[0-9]*.md"))])
def test_decision_has_the_common_sections(name: str) -> None:
    text = read(f"docs/decisions/{name}")

    assert text.startswith(f"# {name[:4]}: ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == DECISION_SECTIONS


def test_documents_that_the_code_names_exist() -> None:
    named = set(re.findall(r"\bdocs/[\w/-]+\.md\b", code()))

    assert named
    assert [name for name in sorted(named) if not (PROJECT_ROOT / name).exists()] == []


def test_example_environment_has_only_settings_and_compose_ports() -> None:
    """A paragraph is about docker-compose.yml, unless it names the other file."""
    for paragraph in read(".env.example").split("\n\n")[1:]:
        compose = read("compose.prod.yml" if "compose.prod.yml" in paragraph else "docker-compose.yml")
        named = re.findall(r"^# ([A-Z_]+)=", paragraph, re.MULTILINE)

        assert named
        for name in named:
            assert name.lower() in Settings.model_fields or f"${{{name}:-" in compose


def test_compose_defaults_of_the_pool_are_the_settings_defaults() -> None:
    for name in ("WEB_CONCURRENCY", "DB_POOL_SIZE", "DB_MAX_OVERFLOW"):
        assert f"${{{name}:-{Settings.model_fields[name.lower()].default}}}" in read("docker-compose.yml")


def files_of_walk_through() -> list[tuple[str, str]]:
    """Return the files that docs/adding-a-domain.md writes, and their content."""
    pattern = r"^[^`\n]*`([\w/]+\.py)`:?\n\n```python\n(.*?)^```$"
    return re.findall(pattern, read(WALK_THROUGH), re.MULTILINE | re.DOTALL)


def changes_of_walk_through() -> list[tuple[str, str]]:
    """Return the files that docs/adding-a-domain.md changes, and the changes as diffs without line numbers."""
    pattern = r"`((?:app|tests)/[\w/]+\.py)`[^\n]*:\n\n```diff\n(.*?)^```$"
    return re.findall(pattern, read(WALK_THROUGH), re.MULTILINE | re.DOTALL)


def apply(diff: str, text: str) -> str:
    lines, position = text.splitlines(), -1
    for change in diff.splitlines():
        kind, line = change[0], change[1:]
        if kind == "+":
            position += 1
            lines.insert(position, line)
        elif kind == "-":
            position = lines.index(line) - 1
            del lines[position + 1]
        else:
            position = lines.index(line)
    return "\n".join(lines) + "\n"


def is_template() -> bool:
    """Return True if the tree has the domains and models of the template, and no others."""
    domains = {path.parent.name for path in (PROJECT_ROOT / "app/domains").glob("*/router.py")}
    return domains == {"auth", "users", "posts"} and set(models.__all__) == {"Post", "User"}


# In the template itself, this test always runs: a document that does not fit the tree fails it.
@pytest.mark.skipif(not is_template(), reason="the document starts from the template's domains")
def test_walk_through_yields_what_make_domain_writes(tmp_path: Path) -> None:
    """Follow docs/adding-a-domain.md. tests/integration/ops/test_domain.py runs the tests of such a domain."""
    root = copy_tree(tmp_path, ("app", "migrations", "tests/support", "pyproject.toml"))
    expected = dict(files_of_walk_through())
    for name, diff in changes_of_walk_through():
        expected[name] = apply(diff, (root / name).read_text())

    *written, revision = write_domain(root, Names("tags"))

    [migration] = re.findall(r"^```python\n(def upgrade.*?)^```$", read(WALK_THROUGH), re.MULTILINE | re.DOTALL)
    assert migration in revision.read_text()
    assert {str(path.relative_to(root)) for path in written} == expected.keys()
    for path in written:
        name, text = str(path.relative_to(root)), path.read_text()
        if name in dict(changes_of_walk_through()):  # the document adds its lines in other places
            assert sorted(text.splitlines()) == sorted(expected[name].splitlines()), name
        else:
            assert text == expected[name], name
