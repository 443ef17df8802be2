"""`make check-migrations`: the tests of an older commit on the schema of a newer one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from tests.support.migrations import head

TEST = "tests/integration/domains/test_users.py"
REVISION = """
import sqlalchemy as sa
from alembic import op
revision = "new"
down_revision = {head!r}
kind = {kind!r}
def upgrade():
    {upgrade}
def downgrade():
    pass
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a git repository with one commit: this tree."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("app", "migrations", "ops", "tests"):
        shutil.copytree(PROJECT_ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    shutil.copy(PROJECT_ROOT / "pyproject.toml", tree)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "old"]):
        subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", *arguments], cwd=tree, check=True
        )
    return tree


def check(tree: Path, upgrade: str | None = None, kind: str = "additive") -> subprocess.CompletedProcess[str]:
    """Add a revision to the tree, and run one test of the commit on its schema."""
    if upgrade:
        text = REVISION.format(head=head(), kind=kind, upgrade=upgrade)
        (tree / "migrations/versions/20990101_new_revision.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "tests.old_release.run", "--tree", tree, "--base", "HEAD", TEST],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_old_tests_pass_on_an_additive_schema(repository: Path) -> None:
    finished = check(repository, "op.add_column('users', sa.Column('nickname', sa.Text()))")

    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout


def test_old_tests_fail_on_a_schema_that_breaks_them(repository: Path) -> None:
    finished = check(repository, "op.drop_column('users', 'is_admin')")

    assert finished.returncode == 1
    assert "is_admin" in finished.stdout


def test_old_tests_are_not_run_beyond_a_contracting_revision(repository: Path) -> None:
    finished = check(repository, "op.drop_column('users', 'is_admin')", kind="contracting")

    assert finished.returncode == 0
    assert "revision new is contracting" in finished.stdout
    assert " passed" not in finished.stdout


def test_edited_revision_fails_the_check(repository: Path) -> None:
    [file] = (repository / "migrations/versions").glob("*_sign_in.py")
    file.write_text(file.read_text().replace("# ", "# again: "))
    assert check(repository).returncode == 0

    file.write_text(file.read_text().replace("sa.String(80)", "sa.String(81)"))
    finished = check(repository)
    assert finished.returncode == 1
    assert f"applied revisions were edited since HEAD: {file.name}" in finished.stdout
