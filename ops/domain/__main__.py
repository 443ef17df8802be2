"""Write a domain: its folder, its lines in the registry, its migration and its tests.

The domain is the one that docs/adding-a-domain.md builds, under another name. A test compares them.
"""

import argparse
import ast
import keyword
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from string import Template

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import rev_id

TEMPLATES = Path(__file__).parent / "templates"
# Lines with longer names would not fit.
MAX_LENGTH = 30
# Names that the templates use themselves.
USED = frozenset(
    "admin ann answer client created cursors data database database_url db field location name op page params patch"
    " principal response row router session value".split()
)

FILES = {
    "app/domains/${table}/__init__.py": "init.py",
    "app/domains/${table}/errors.py": "errors.py",
    "app/domains/${table}/models.py": "models.py",
    "app/domains/${table}/schemas.py": "schemas.py",
    "app/domains/${table}/repository.py": "repository.py",
    "app/domains/${table}/router.py": "router.py",
    "tests/unit/domains/test_${table}.py": "unit_test.py",
    "tests/integration/domains/test_${table}.py": "integration_test.py",
}


class Refused(Exception):
    """The domain cannot be written. Nothing has been changed."""


class Names:
    """The spellings of a domain's name, as values for the templates."""

    def __init__(self, plural: str, singular: str | None = None) -> None:
        singular = singular or _singular(plural)
        for option, name in (("name", plural), ("singular", singular)):
            if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > MAX_LENGTH:
                raise Refused(
                    f"{option}={name}: must be lower-case words joined by _, at most {MAX_LENGTH} characters,"
                    " for example order_items"
                )
            if keyword.iskeyword(name) or name in USED:
                raise Refused(f"{option}={name}: the generated code uses this name for something else; choose another")
        if plural == singular:
            raise Refused(f"name={plural}: plural and singular must differ; add singular=, for example singular=person")
        word, words = singular.replace("_", " "), plural.replace("_", " ")
        article = "an" if word[0] in "aeiou" else "a"
        self.table = plural
        self.values = {
            "table": plural,
            "entity": singular,
            "Entity": "".join(part.capitalize() for part in singular.split("_")),
            "CONSTANT": plural.upper(),
            "word": word,
            "words": words,
            "Word": word.capitalize(),
            "Words": words.capitalize(),
            "a_word": f"{article} {word}",
            "A_word": f"{article.capitalize()} {word}",
            "path": "/" + plural.replace("_", "-"),
            "slug": singular.replace("_", "-"),
        }

    def fill(self, text: str) -> str:
        """Return the text with the spellings in place of the placeholders."""
        return Template(text).substitute(self.values)

    def render(self, template: str) -> str:
        """Return the content of a file."""
        return self.fill((TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8"))


def _singular(plural: str) -> str:
    for ending, replacement in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if plural.endswith(ending) and not plural.endswith("ss"):
            return plural.removesuffix(ending) + replacement
    return plural


def write_domain(root: Path, names: Names) -> list[Path]:
    """Write the domain into the tree below `root`. Return the files that are new or changed. Raise Refused."""
    new = {root / names.fill(path): names.render(template) for path, template in FILES.items()}
    for path in new:
        if path.exists():
            raise Refused(f"{path.relative_to(root)} exists; choose another name, or delete the file")
    changes: dict[str, Callable[[str, Names], str]] = {
        "app/registry.py": _register,
        "app/models.py": _export,
        "tests/support/operations.py": _add_operations,
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


def _register(text: str, names: Names) -> str:
    """Return app/registry.py with the model and the router."""
    if names.table in _names_of(text):
        raise Refused(f"name={names.table}: app/registry.py has this name already; choose another")
    lines = names.fill(
        "from app.domains.${table}.models import ${Entity} as ${Entity}\n"
        "from app.domains.${table}.router import router as ${table}\n"
    )
    text = _insert_before_end(text, "routers", f", {names.table}")
    return _after_imports(text, lines)


def _export(text: str, names: Names) -> str:
    """Return app/models.py with the model."""
    entity = names.values["Entity"]
    if entity in _names_of(text):
        raise Refused(f"name={names.table}: app/models.py has a model {entity} already; choose another name")
    text = _insert_before_end(text, "__all__", f', "{entity}"')
    return _after_imports(text, f"from app.registry import {entity}\n")


def _add_operations(text: str, names: Names) -> str:
    """Return tests/support/operations.py with the operations of the domain."""
    text = _insert_before_end(text, "PARAMETERS", names.render("parameters"))
    return _insert_before_end(text, "OPERATIONS", names.render("operations"))


def _names_of(text: str) -> set[str]:
    """Return the names that a module imports."""
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def _after_imports(text: str, lines: str) -> str:
    ends = [node.end_lineno or 0 for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    before = text.splitlines(keepends=True)
    return "".join([*before[: max(ends)], lines, *before[max(ends) :]])


def _insert_before_end(text: str, variable: str, addition: str) -> str:
    """Insert into the tuple, list or dictionary that the module assigns to the variable."""
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == variable:
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            assert node.value.end_lineno is not None
            assert node.value.end_col_offset is not None
            lines = text.splitlines(keepends=True)
            last = lines[node.value.end_lineno - 1].encode()  # the offsets are those of bytes
            end = node.value.end_col_offset - 1
            inside = "".join([*lines[: node.value.end_lineno - 1], last[:end].decode()]).rstrip()
            if inside.endswith((",", "(", "[")):
                addition = addition.removeprefix(",")
            lines[node.value.end_lineno - 1] = last[:end].decode() + addition + last[end:].decode()
            return "".join(lines)
    raise Refused(f"the variable {variable} was not found: follow docs/adding-a-domain.md by hand")


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
            " docs/adding-a-domain.md explains each file. Then run `make migrate`, and try $path at /docs."
            " If `make dev` runs, it has applied the revision: run `make downgrade` before you change it."
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
