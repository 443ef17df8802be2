"""`make adopt`: the names that it refuses, and the checks of a tree with another name, with and without the example."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from app.paths import PROJECT_ROOT
from ops.adopt import auth, edits
from ops.adopt.__main__ import MAX_LENGTH, ORIGIN, Refused, adopt, check_name, renamed
from ops.adopt.edits import Edit, OutOfDate
from ops.adopt.example import FIRST_REVISION
from tests.integration.test_migrations import schema
from tests.support.postgres import Server, connect
from tests.support.tree import run_in

# The longest name: lines that fit it fit a shorter one. It starts with a vowel, so articles change as well, and comes
# after the names of the other roles and services in a sorted list, where the old name comes before them.
NAME = "uppershipper"
# Those that compare files with one another, have a name in them, or use the word for free connections.
TESTS = (
    "tests/unit/budget",
    "tests/unit/cli/test_main.py",
    "tests/unit/exporter",
    "tests/unit/observability/test_catalogue.py",
    "tests/unit/ops/test_alerts.py",
    "tests/unit/ops/test_dashboard.py",
    "tests/unit/test_compose_files.py",
    "tests/unit/test_docs.py",
    "tests/unit/test_settings.py",
)
# Those that a part of the example in a file that stays would break. `make check-adopted` runs all of them.
TESTS_WITHOUT_EXAMPLE = (
    "tests/unit/cli/test_main.py",
    "tests/unit/migrations",
    "tests/unit/ops/test_domain.py",
    "tests/unit/test_docs.py",
    "tests/unit/test_operations.py",
    "tests/unit/test_registry.py",
    "tests/unit/web/test_openapi.py",
    "tests/integration/domains/test_users.py::test_sign_up_returns_the_user_and_its_location",
    "tests/integration/exporter/collectors/test_migrations.py",
    "tests/integration/test_migrations.py::test_models_and_migrations_have_the_same_schema",
    "tests/integration/test_migrations.py::test_revision_can_be_applied_reverted_and_applied_again",
)
TESTS_WITHOUT_AUTH = (
    "tests/unit/cli/test_main.py",
    "tests/unit/domains",
    "tests/unit/ops/test_domain.py",
    "tests/unit/test_docs.py",
    "tests/unit/test_operations.py",
    "tests/unit/test_settings.py",
    "tests/unit/web/test_openapi.py",
    "tests/integration/domains/test_notes.py",
    "tests/integration/test_fixtures.py",
    "tests/integration/test_migrations.py::test_models_and_migrations_have_the_same_schema",
    "tests/integration/test_migrations.py::test_revision_can_be_applied_reverted_and_applied_again",
)
OF_THE_EXAMPLE = r"\b(posts|Posts?|post_id)\b|\bPost[A-Z]"
# Sign-in of a role at a server, or of a person at Grafana, is another one.
OF_AUTH = (
    r"/auth/token|(?i:\bcreate[-_]admin)|\bSignedIn\b|\bSignUp\b|\bsign_up\b|SIGN_IN_|ACCESS_TOKEN_SECONDS|\bPrincipal\b"
    r"|app[./](domains[./](auth|users)|web[./]auth|identity)\b|support[./]people|import User\b|(?<!of)/users\b"
    r"|\bsign_ins?_(attempts|limit)|[Ff]ailed sign-ins|INTO users\b|--users\b|test_(authorisation|users)\b"
)
# Measurements and history.
ABOUT_THE_EXAMPLE = re.compile(r"CHANGELOG\.md|docs/(adopting|faults|performance)\.md|docs/(decisions|images)/")
# Files in which the word means free connections.
ABOUT_THE_BUDGET = re.compile(
    r"app/(budget|exporter)/|app/cli/samples\.py|app/observability/catalogue\.py|docs/(connections|metrics|runbooks)\.md"
    r"|ops/(grafana|prometheus)/|ops/restart\.py|ops/kubernetes/\w+/templates/_budget\.tpl"
    r"|tests/(unit|integration)/(budget|exporter|ops)/|tests/stack/test_(page|prometheus)\.py"
)
# Spellings that only the name has.
OF_THE_NAME = re.compile(r"headroom[:/@]\w|headroom-(?!label)|headroom_(?!low)|[/@]headroom|HEADROOM_|HeadroomE")


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def make(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run make with the packages of this environment instead of an own one."""
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", f"VENV={sys.prefix}", "READY=", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a repository with the files of this working tree, committed."""
    root = tmp_path / "clone"
    for name in git(PROJECT_ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]:
        source, target = PROJECT_ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "template")
    return root


def test_adopted_tree_passes_its_checks(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the budget and the origin have the old name. The tests run with the package metadata of the new name."""
    done = make(clone, "adopt", f"name={NAME}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"headroom is {NAME} now" in done.stdout

    again = make(clone, "adopt", "name=other")
    assert again.returncode != 0
    assert "this project has its name already" in again.stderr

    assert "make adopt" not in (clone / "README.md").read_text()
    git(clone, "add", "--all")
    assert_renamed(clone)
    run_in(clone, "ruff", "format", "--check", ".")
    run_tests(clone, tmp_path, *TESTS)


def assert_renamed(root: Path) -> None:
    assert [*root.rglob("*headroom*")] == []
    lines = [line.split(":", 1) for line in git(root, "grep", "--cached", "-Ii", "headroom").splitlines()]
    left = {(file, text) for file, text in lines if file not in ORIGIN}
    assert {file for file, text in left if not ABOUT_THE_BUDGET.match(file)} == {"README.md"}
    assert {(file, text) for file, text in left if OF_THE_NAME.search(text)} == set()


def run_tests(root: Path, directory: Path, *arguments: str) -> None:
    """Run tests of an adopted tree with package metadata of its new name."""
    metadata = directory / f"site/{NAME}-0.1.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1.0\n")
    options = ("-q", "-n0", "-p", "no:cacheprovider", f"--override-ini=pythonpath=. {directory}/site")
    run_in(root, "pytest", *options, *arguments)


def check_tree_without(
    part: str, clone: Path, directory: Path, *, patterns: tuple[str, ...], tests: Sequence[str]
) -> None:
    """Adopt without `part`. No file that stays imports or names it, and every test can be collected."""
    done = make(clone, "adopt", f"name={NAME}", f"{part}=no")
    assert done.returncode == 0, done.stdout + done.stderr

    git(clone, "add", "--all")
    assert_renamed(clone)
    for pattern in patterns:
        found = git(clone, "grep", "--cached", "-InP", pattern).splitlines()
        assert [line for line in found if not ABOUT_THE_EXAMPLE.match(line)] == []
    run_in(clone, "ruff", "check", ".")
    run_in(clone, "ruff", "format", "--check", ".")
    run_in(clone, "lint-imports")
    run_in(clone, "mypy")
    run_tests(clone, directory, "--collect-only")
    run_tests(clone, directory, *tests)


def test_tree_adopted_without_example_passes_its_checks(clone: Path, tmp_path: Path) -> None:
    check_tree_without("example", clone, tmp_path, patterns=(OF_THE_EXAMPLE,), tests=TESTS_WITHOUT_EXAMPLE)


def test_tree_adopted_without_users_passes_its_checks(clone: Path, tmp_path: Path) -> None:
    check_tree_without("auth", clone, tmp_path, patterns=(OF_THE_EXAMPLE, OF_AUTH), tests=TESTS_WITHOUT_AUTH)


def test_locked_packages_without_users_have_origins_that_are_locked(clone: Path) -> None:
    adopt(clone, NAME, has_auth=False)

    for file in (clone / "requirements").glob("*.txt"):
        text = file.read_text()
        locked = set(re.findall(r"^([a-z][\w.-]*)==", text, flags=re.MULTILINE))
        origins = set(re.findall(r"^    # (?:via|  ) ([a-z][\w.-]*)$", text, flags=re.MULTILINE))
        assert locked, file.name
        assert origins - {NAME} <= locked, file.name
    of_the_service = (clone / "requirements/app.txt").read_text()
    assert not [name for name in auth.PACKAGES if f"\n{name}==" in of_the_service]


def test_first_revision_has_the_schema_of_the_history(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without posts. A change of the tables of users also belongs into the template of the first revision."""
    (tmp_path / "first.py").write_text((PROJECT_ROOT / FIRST_REVISION[0]).read_text())
    squashed = tmp_path / "pyproject.toml"
    squashed.write_text(
        f"[tool.alembic]\nscript_location = '{PROJECT_ROOT}/migrations'\nversion_locations = ['{tmp_path}']\n"
    )
    schemas = []
    for configuration in (PROJECT_ROOT / "pyproject.toml", squashed):
        with postgres.database() as url:
            monkeypatch.setenv("MIGRATION_DATABASE_URL", url.render_as_string(hide_password=False))
            command.upgrade(Config(toml_file=configuration), "head")
            with connect(url) as connection:
                connection.execute("DROP TABLE IF EXISTS posts")
            schemas.append(schema(url))

    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (edits.replace("a, ", ""), "[a, b]\n", "[b]\n"),
        (edits.substitute(r"^b.*\n"), "a\nbb\nc\n", "a\nc\n"),
        (edits.lines("| `B`"), "| `A` | 1 |\n| `B` | 2 |\n", "| `A` | 1 |\n"),
        (edits.functions("b"), "def a(): ...\n\n\n@x\ndef b(): ...\n\n\nc = 1\n", "def a(): ...\n\n\nc = 1\n"),
        (
            edits.section("## B"),
            "- [A](#a)\n- [B](#b)\n\n## A\n\n1\n\n## B\n\n### C\n2\n\n## D\n",
            "- [A](#a)\n\n## A\n\n1\n\n## D\n",
        ),
        (
            edits.targets("b"),
            ".PHONY: a b c\na: ## a\n\t@1\n\n# b\nb: a\n\t@2\n\nc:\n",
            ".PHONY: a c\na: ## a\n\t@1\n\nc:\n",
        ),
    ],
    ids=["replace", "substitute", "lines", "functions", "section", "targets"],
)
def test_edit_of_the_example_removes_its_part_or_is_out_of_date(edit: Edit, before: str, after: str) -> None:
    assert edit(before) == after
    with pytest.raises(OutOfDate):
        edit(after)


def test_edit_that_is_out_of_date_changes_no_file(clone: Path) -> None:
    registry = clone / "app/registry.py"
    registry.write_text(registry.read_text().replace("users, posts)", "users, posts, tags)"))
    git(clone, "commit", "--quiet", "--all", "--message", "tags")

    with pytest.raises(OutOfDate, match=r"app/registry\.py does not have 'users, posts\)'"):
        adopt(clone, NAME, has_example=False)

    assert git(clone, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "parts",
    [{}, {"has_example": False}, {"has_auth": False}],
    ids=["everything", "no example", "no users"],
)
def test_later_version_merges_without_conflict(clone: Path, tmp_path: Path, parts: dict[str, bool]) -> None:
    """Follow docs/adopting.md: the merge has what the template changed, and keeps what the project changed."""
    project, upgrade = tmp_path / "project", tmp_path / "upgrade"
    git(tmp_path, "clone", "--quiet", "--origin", "upstream", "clone", "project")
    adopt(project, "orbit", **parts)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "adopt")
    git(project, "branch", "template")
    registry = project / "app/registry.py"
    registry.write_text(registry.read_text() + "\n# mine\n")
    git(project, "commit", "--quiet", "--all", "--message", "mine")

    posts = clone / "app/domains/posts/service.py"
    posts.write_text(posts.read_text() + "\n# later\n")
    (clone / "ops/new.txt").write_text("Headroom has the role headroom_new.\n")
    values = clone / "ops/kubernetes/headroom/values.yaml"
    values.write_text(values.read_text() + "# headroom:new\n")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "later")

    git(project, "fetch", "--quiet", "upstream")
    git(project, "worktree", "add", "--quiet", "--detach", str(upgrade), "FETCH_HEAD")
    adopt(upgrade, "orbit", **parts)
    git(upgrade, "add", "--all")
    tree = git(upgrade, "write-tree").strip()
    later = git(project, "commit-tree", tree, "-p", "template", "-m", "later").strip()
    git(project, "branch", "--force", "template", later)
    git(project, "merge", "--quiet", "template")

    changed = git(project, "diff", "--name-only", "HEAD^", "HEAD").split()
    of_the_example = set() if parts else {"app/domains/posts/service.py"}
    assert set(changed) == {"ops/new.txt", "ops/kubernetes/orbit/values.yaml"} | of_the_example
    assert (project / "ops/new.txt").read_text() == "Orbit has the role orbit_new.\n"
    assert registry.read_text().endswith("# mine\n")


def test_tree_with_changes_is_refused_and_stays(clone: Path) -> None:
    (clone / "notes.txt").write_text("mine")

    with pytest.raises(Refused, match="the working tree has changes"):
        adopt(clone, NAME)

    assert git(clone, "status", "--porcelain") == "?? notes.txt\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "must be 2 to 12 lower-case letters"),
        ("Orbit", "must be 2 to 12 lower-case letters"),
        ("my-shop", "must be 2 to 12 lower-case letters"),
        ("my_shop", "must be 2 to 12 lower-case letters"),
        ("2fast", "must be 2 to 12 lower-case letters"),
        ("a" * (MAX_LENGTH + 1), "must be 2 to 12 lower-case letters"),
        ("order", "uses the word for something else"),
        ("class", "uses the word for something else"),
        ("postgres", "uses the word for something else"),
        ("headroom", "uses the word for something else"),
        ("fastapi", "a Python package"),
        ("logging", "a Python package"),
    ],
)
def test_name_that_is_not_valid_everywhere_is_refused(name: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check_name(name, {"fastapi"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class HeadroomError, HEADROOM_APP_PASSWORD", "class OrbitError, ORBIT_APP_PASSWORD"),
        ("headroom_app, headroom:api, headroom_worker_starts_total", "orbit_app, orbit:api, orbit_worker_starts_total"),
        ("a `headroom` command", "an `orbit` command"),
        ("min(db_budget_headroom)", "min(db_budget_headroom)"),
        ("alert: HeadroomLow # docs/runbooks.md#headroomlow", "alert: HeadroomLow # docs/runbooks.md#headroomlow"),
        ("limit.headroom < 0, node.labels.headroom.data", "limit.headroom < 0, node.labels.orbit.data"),
        ("budget.on_read_server[0].headroom == 77", "budget.on_read_server[0].headroom == 77"),
    ],
)
def test_only_the_name_of_the_project_is_renamed(text: str, expected: str) -> None:
    assert renamed(text, "orbit") == expected
