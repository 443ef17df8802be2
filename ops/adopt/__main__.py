"""Rename a fresh clone of the template, and take its example out if asked. Then remove this program from it.

Only the standard library is used, because the packages are installed under the new name afterwards.
"""

import argparse
import builtins
import keyword
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ops.adopt import auth, example
from ops.adopt.edits import OutOfDate, take_out

OLD = "headroom"
# Lines with longer names would not fit. tests/integration/ops/test_adopt.py adopts the longest one.
MAX_LENGTH = 12
# PostgreSQL's key words that no unquoted database may have, and names that the files give to other things.
TAKEN = frozenset(
    "all analyse analyze any array as asc asymmetric authorization both binary case cast check collate collation"
    " column concurrently constraint create cross current default deferrable desc distinct do else end except false"
    " fetch for foreign freeze from full grant group having ilike in initially inner intersect into is isnull join"
    " lateral leading left like limit localtime localtimestamp natural not notnull null offset on only or order outer"
    " overlaps placing primary public references returning right select similar some symmetric table tablesample then"
    " to trailing true union unique user using variadic verbose when where window with"
    " alertmanager alembic api app backup bare baseline benchmarks budget ceiling db docs exporter fastify grafana"
    " gunicorn haproxy headroom http metrics migrate migrations monitoring ops pgbouncer pgserver postgres postgresql"
    " notes posts prod prometheus proxy python root seed template0 template1 test tests textbook users".split()
)
# The headroom of the connection budget. It keeps its name, as do the metrics `db_budget_*` and the alerts.
BUDGET = re.compile(
    r"""
    db_budget_headroom | BUDGET_HEADROOM | LOW_HEADROOM | (?i:headroom_?low)
    | (?<=[\w\]])\.headroom\b(?!\.\w)          # an attribute; headroom.data and the like are labels
    | def\ headroom\((?:self)?\)
    | "headroom":\ (?!headroom) | (?:server|document)\[["']headroom["']\]      # a key in JSON
    | \bheadroom:\ float | (?<=labels\):\ )headroom\b | \bheadroom=-?\d | \(headroom\ for\ _,\ headroom\b
    | \bheadroom\ \{smallest | `headroom`\ at\ the\ top
    | ^\ \ headroom\ +\d | "\ \ headroom"                                        # a row of the table
    | \$\("headroom"\) | "headroom-label" | id="headroom" | text\(\w+,\ "headroom"\)  # the live page
    | ^\ {4,}(?:"title":\ )?"Headroom",$ | "Headroom":\ headroom\b               # a panel and a row of the dashboard
    | [Tt]he\ headroom\ (?:of\ (?:\{\{|server)|is) | \bnegative\ headroom\b
    | \bgraceful\ headroom\b                                                     # a word of the sample posts
    """,
    re.VERBOSE | re.MULTILINE,
)
NAME = re.compile(rf"(?P<article>\b[Aa] `?)?(?P<name>{OLD})", re.IGNORECASE)
# What tells where the project comes from.
ORIGIN = frozenset({"CHANGELOG.md", "LICENSE", "docs/adopting.md", "docs/decisions/0041-adopting.md"})
# Of no use to a project that has its name.
REMOVED = ("ops/adopt", "tests/integration/ops/test_adopt.py")


class Refused(Exception):
    """The project cannot be renamed. Nothing has been changed."""


def check_name(name: str, packages: set[str]) -> None:
    """Refuse a name that is not valid as it is in each place: distribution, SQL, DNS, Python, file."""
    if not re.fullmatch(rf"[a-z][a-z0-9]{{1,{MAX_LENGTH - 1}}}", name):
        raise Refused(
            f"name={name}: must be 2 to {MAX_LENGTH} lower-case letters and digits, the first one a letter, for example"
            " orbit: it becomes a Python distribution, PostgreSQL roles and a host name"
        )
    if name in TAKEN or keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name):
        raise Refused(
            f"name={name}: PostgreSQL, Python or this project uses the word for something else; choose another"
        )
    if name in sys.stdlib_module_names or name in packages:
        raise Refused(f"name={name}: a Python package that the project uses has this name; choose another")


def renamed(text: str, name: str) -> str:
    """Return the text with the new name in the place of the old one, in lower case, capitals or as a title."""
    kept = {position for match in BUDGET.finditer(text) for position in range(*match.span())}
    spellings = {OLD: name, OLD.upper(): name.upper(), OLD.capitalize(): name.capitalize()}

    def replace(old: re.Match[str]) -> str:
        if old.start("name") in kept:
            return old[0]
        article = old["article"] or ""
        if name[0] in "aeiou":
            article = article.replace(" ", "n ")
        return article + spellings[old["name"]]

    return NAME.sub(replace, text)


def with_sorted_origins(text: str) -> str:
    """Sort the lists of packages that need a locked one, as uv does."""
    return re.sub(
        r"(?:^    #   .+\n)+",
        lambda block: "".join(sorted(block[0].splitlines(keepends=True))),
        text,
        flags=re.MULTILINE,
    )


def adopt(root: Path, name: str, *, has_example: bool = True, has_auth: bool = True) -> tuple[int, int, int]:
    """Rename the project in the files that git knows. Return the numbers of changed, moved and removed files.

    Without users and sign-in there is no example, since users write it.
    """
    packages = {
        line.partition("==")[0]
        for file in (root / "requirements").glob("*.txt")
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    check_name(name, packages)
    if _git(root, "status", "--porcelain"):
        raise Refused("the working tree has changes: commit them, or start from a fresh clone")
    version = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    parts = [*([] if has_example and has_auth else [example.part(root)]), *([] if has_auth else [auth.part(root)])]
    added = take_out(root, *parts) if parts else []
    for removed in REMOVED:
        path = root / removed
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    changed = moved = gone = 0
    for file in _git(root, "ls-files", "-z").split("\0")[:-1] + added:
        path = root / file
        if not path.is_symlink() and not path.exists():
            gone += 1
            continue
        if file in ORIGIN:
            continue
        target = root / file.replace(OLD, name)
        if target != path:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            _remove_empty(path.parent, root)
            moved += 1
        changed += _rename_in(target, name)
    readme = root / "README.md"
    text = re.sub(r"^`make adopt .*\n\n", "", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
    origin = f"Started from Headroom {version[1] if version else ''}: [adopting.md](docs/adopting.md)."
    readme.write_text(f"{text}\n{origin}\n", encoding="utf-8")
    return changed, moved, gone


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to the first one that is not empty."""
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _rename_in(path: Path, name: str) -> bool:
    """Rename the project in a file, or in the target of a link. Return True if that has changed it."""
    if path.is_symlink():
        old = str(path.readlink())
        new = old.replace(OLD, name)
        if new != old:
            path.unlink()
            path.symlink_to(new)
        return new != old
    content = path.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:  # a picture
        return False
    new = renamed(text, name)
    if path.parent.name == "requirements":
        new = with_sorted_origins(new)
    if new != text:
        path.write_bytes(new.encode())
    return new != text


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)  # noqa: S607
    if run.returncode:
        raise Refused(f"git {arguments[0]} failed: {run.stderr.strip()}")
    return run.stdout


def main() -> None:
    """Rename the project in the current directory, and print what was changed."""
    parser = argparse.ArgumentParser(prog="make adopt", description=__doc__)
    parser.add_argument("name", help="lower-case letters and digits")
    parser.add_argument("--example", choices=["yes", "no"], default="yes", help="keep the posts (default: yes)")
    parser.add_argument(
        "--auth", choices=["yes", "no"], default="yes", help="keep users and sign-in; without them, no posts either"
    )
    options = parser.parse_args()
    start = time.monotonic()
    try:
        changed, moved, removed = adopt(
            Path.cwd(), options.name, has_example=options.example == "yes", has_auth=options.auth == "yes"
        )
    except (Refused, OutOfDate) as error:
        sys.exit(f"make adopt: {error}")
    print(
        f"{OLD} is {options.name} now: {changed} files changed, {moved} moved, {removed} removed,"
        f" in {time.monotonic() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
