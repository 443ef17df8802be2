"""`make adopt`: the names that it refuses, and the checks of a tree that has another name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from ops.adopt.__main__ import MAX_LENGTH, ORIGIN, Refused, adopt, check_name, renamed
from tests.support.tree import run_in

# The longest name: lines that fit it fit a shorter one. It starts with a vowel, so articles change as well.
NAME = "intershipper"
# The tests that compare files with one another, and those that have a name in them.
TESTS = (
    "tests/unit/test_settings.py",
    "tests/unit/test_docs.py",
    "tests/unit/test_compose_files.py",
    "tests/unit/budget",
    "tests/unit/cli/test_main.py",
    "tests/unit/exporter",
    "tests/unit/observability/test_catalogue.py",
    "tests/unit/ops",
    "--ignore=tests/unit/ops/kubernetes/test_chart_budget.py",  # random numbers, no names
)
# Files in which the word means free connections.
ABOUT_THE_BUDGET = re.compile(
    r"app/(budget|exporter)/|app/cli/seed\.py|app/observability/catalogue\.py|docs/(connections|metrics|runbooks)\.md"
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
    assert [*clone.rglob("*headroom*")] == []
    lines = [line.split(":", 1) for line in git(clone, "grep", "--cached", "-Ii", "headroom").splitlines()]
    left = {(file, text) for file, text in lines if file not in ORIGIN}
    assert {file for file, text in left if not ABOUT_THE_BUDGET.match(file)} == {"README.md"}
    assert {(file, text) for file, text in left if OF_THE_NAME.search(text)} == set()

    metadata = tmp_path / f"site/{NAME}-0.1.0.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1.0\n")
    tests = [f"--override-ini=pythonpath=. {tmp_path}/site", *TESTS]
    run_in(clone, "ruff", "format", "--check", ".")
    run_in(clone, "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests)


def test_later_version_merges_without_conflict(clone: Path, tmp_path: Path) -> None:
    """Follow docs/adopting.md: the merge has what the template changed, and keeps what the project changed."""
    project, upgrade = tmp_path / "project", tmp_path / "upgrade"
    git(tmp_path, "clone", "--quiet", "--origin", "upstream", "clone", "project")
    adopt(project, "acme")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "adopt")
    git(project, "branch", "template")
    registry = project / "app/registry.py"
    registry.write_text(registry.read_text() + "\n# mine\n")
    git(project, "commit", "--quiet", "--all", "--message", "mine")

    (clone / "ops/new.txt").write_text("Headroom has the role headroom_new.\n")
    values = clone / "ops/kubernetes/headroom/values.yaml"
    values.write_text(values.read_text() + "# headroom:new\n")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "later")

    git(project, "fetch", "--quiet", "upstream")
    git(project, "worktree", "add", "--quiet", "--detach", str(upgrade), "FETCH_HEAD")
    adopt(upgrade, "acme")
    git(upgrade, "add", "--all")
    tree = git(upgrade, "write-tree").strip()
    later = git(project, "commit-tree", tree, "-p", "template", "-m", "later").strip()
    git(project, "branch", "--force", "template", later)
    git(project, "merge", "--quiet", "template")

    changed = git(project, "diff", "--name-only", "HEAD^", "HEAD").split()
    assert set(changed) == {"ops/new.txt", "ops/kubernetes/acme/values.yaml"}
    assert (project / "ops/new.txt").read_text() == "Acme has the role acme_new.\n"
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
        ("Acme", "must be 2 to 12 lower-case letters"),
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
        ("class HeadroomError, HEADROOM_APP_PASSWORD", "class AcmeError, ACME_APP_PASSWORD"),
        ("headroom_app, headroom:api, headroom_worker_starts_total", "acme_app, acme:api, acme_worker_starts_total"),
        ("a `headroom` command", "an `acme` command"),
        ("min(db_budget_headroom)", "min(db_budget_headroom)"),
        ("alert: HeadroomLow # docs/runbooks.md#headroomlow", "alert: HeadroomLow # docs/runbooks.md#headroomlow"),
        ("limit.headroom < 0, node.labels.headroom.data", "limit.headroom < 0, node.labels.acme.data"),
    ],
)
def test_only_the_name_of_the_project_is_renamed(text: str, expected: str) -> None:
    assert renamed(text, "acme") == expected
