"""Write a domain: its folder, its lines in the registry, its migration and its tests.

The domain is the one that docs/adding-a-domain.md builds, under another name. A test compares them.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import rev_id

from ops.domain.rendering import FILES, Names, Refused, add_operations, export, register


def write_domain(root: Path, names: Names) -> list[Path]:
    """Write the domain into the tree below `root`. Return the files that are new or changed. Raise Refused."""
    new = {root / names.fill(path): names.render(template) for path, template in FILES.items()}
    for path in new:
        if path.exists():
            raise Refused(f"{path.relative_to(root)} exists; choose another name, or delete the file")
    changes: dict[str, Callable[[str, Names], str]] = {
        "app/registry.py": register,
        "app/models.py": export,
        "tests/support/operations.py": add_operations,
    }
    # Everything is computed before anything is written.
    changed = {root / path: change((root / path).read_text("utf-8"), names) for path, change in changes.items()}
    scripts = ScriptDirectory.from_config(Config(toml_file=root / "pyproject.toml"))
    heads = scripts.get_heads()
    if len(heads) != 1:
        raise Refused(f"the migrations have {len(heads)} heads, not one; run `alembic merge heads`")
    for path, text in (new | changed).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    written = [*new, *changed]
    _ruff(root, written)
    revision = scripts.generate_revision(
        rev_id(),
        names.fill("add ${words}"),
        upgrades=names.render("upgrade").strip(),
        downgrades=names.render("downgrade").strip(),
    )
    assert revision is not None
    return [*written, Path(revision.path)]


def _ruff(root: Path, files: list[Path]) -> None:
    """Sort the imports and format."""
    for arguments in (["check", "--quiet", "--fix-only"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *arguments, *map(str, files)], cwd=root, check=True)


def main() -> int:
    """Write the domain and print what is next. Return 1 if it is refused."""
    parser = argparse.ArgumentParser(prog="make domain", description="Write a complete small domain.")
    parser.add_argument("name", help="the plural, which is the name of the folder and of the table: order_items")
    parser.add_argument("--singular", help="(default: derived from the name)")
    options = parser.parse_args()
    root = Path.cwd()
    try:
        names = Names(options.name, options.singular)
        written = write_domain(root, names)
    except Refused as refused:
        print(f"make domain: {refused}", file=sys.stderr)
        return 1
    for path in written:
        print(f"  {path.relative_to(root)}")
    print(
        names.fill(
            "\nNext: change the fields in models.py, schemas.py, repository.py, router.py, the revision and the tests;"
            " docs/adding-a-domain.md explains each file. Then start `make run`,"
            " which applies the revision, and try $path at /docs."
            " If `make dev` runs, it has applied the revision: run `make downgrade` before you change it."
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
