"""Compare the revisions with an older commit, and run the API tests of that commit on the schema of this tree.

Run `make check-migrations`, with `base=COMMIT` for another commit than the merge base with the main branch.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from app.database.schema_version import ADDITIVE, kind_of, oldest_of
from migrations.history import checksum

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "new_schema_plugin"
API_TESTS = ("tests/integration/domains", "tests/integration/web", "tests/integration/test_authorisation.py")


def git(tree: Path, *arguments: str) -> str:
    """Run git in the tree and return its output."""
    return subprocess.run(["git", "-C", tree, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def merge_base(tree: Path) -> str:
    """Return the merge base with the main branch; on the main branch, the commit before."""
    known = git(tree, "for-each-ref", "--format=%(refname)", "refs/remotes/origin/main", "refs/heads/main").split()
    head = git(tree, "rev-parse", "HEAD")
    for main in known:
        base = git(tree, "merge-base", "HEAD", main)
        if base != head:
            return base
    return git(tree, "rev-parse", "HEAD^1")


def extract(tree: Path, commit: str, directory: Path) -> None:
    """Write the files of the commit to the directory."""
    archive = subprocess.run(["git", "-C", tree, "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(directory, filter="data")


def edited(old: Path, new: Path) -> list[str]:
    """Return the revisions of the old tree that are missing or different in the new one."""
    return [
        file.name
        for file in sorted((old / "migrations/versions").glob("*.py"))
        if not (other := new / "migrations/versions" / file.name).exists()
        or checksum(other.read_text(encoding="utf-8")) != checksum(file.read_text(encoding="utf-8"))
    ]


def compatible_head(old: Path, new: Path) -> str | None:
    """Return the newest revision of the new tree on which the old code must run; None if it has no new one."""
    known = {script.revision for script in _scripts(old).walk_revisions()}
    newest = None
    scripts = _scripts(new)
    for script in reversed(list(scripts.walk_revisions())):
        if script.revision in known:
            continue
        if kind_of(script) != ADDITIVE and oldest_of(script, scripts) not in known:
            print(f"revision {script.revision} is contracting: the old code need not run on it")
            break
        newest = script.revision
    return newest


def _scripts(tree: Path) -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(toml_file=tree / "pyproject.toml"))


def main() -> int:
    """Return 0 if no applied revision was edited, and the old tests pass on the new schema."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="(default: this one)")
    parser.add_argument("--base", help="the commit of the old release (default: the merge base with the main branch)")
    parser.add_argument("tests", nargs="*", default=API_TESTS, help="the old tests to run (default: those of the API)")
    options = parser.parse_args()
    tree = options.tree.resolve()
    try:
        base = options.base or merge_base(tree)
    except subprocess.CalledProcessError as error:
        print(f"cannot find the commit to compare with: {error.stderr.strip()}; name it: base=COMMIT")
        return 1
    with tempfile.TemporaryDirectory() as directory:
        old = Path(directory) / "old"
        extract(tree, base, old)
        if changed := edited(old, tree):
            print(
                f"applied revisions were edited since {base[:12]}: {', '.join(changed)}; write a new revision instead"
            )
            return 1
        newest = compatible_head(old, tree)
        if newest is None:
            print(f"no new additive revision since {base[:12]}: the old code runs on its own schema")
            return 0
        tests = [test for test in options.tests if (old / test.partition("::")[0]).exists()]
        print(f"running the tests of {base[:12]} on revision {newest}: {' '.join(tests)}", flush=True)
        plugins = Path(__file__).parent
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", PLUGIN, *tests],
            cwd=old,
            env=os.environ
            | {
                "PYTHONPATH": f"{old}{os.pathsep}{plugins}",
                "HEADROOM_NEW_TREE": str(tree),
                "HEADROOM_NEW_HEAD": newest,
            },
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
