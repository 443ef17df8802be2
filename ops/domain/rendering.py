"""Names, templates and edits of a generated domain. Uses the standard library only, as `make adopt` does."""

import ast
import keyword
import re
from pathlib import Path
from string import Template

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


def register(text: str, names: Names) -> str:
    """Return app/registry.py with the model and the router."""
    if names.table in names_of(text):
        raise Refused(f"name={names.table}: app/registry.py has this name already; choose another")
    lines = names.fill(
        "from app.domains.${table}.models import ${Entity} as ${Entity}\n"
        "from app.domains.${table}.router import router as ${table}\n"
    )
    text = insert_before_end(text, "routers", f", {names.table}")
    return after_imports(text, lines)


def export(text: str, names: Names) -> str:
    """Return app/models.py with the model."""
    entity = names.values["Entity"]
    if entity in names_of(text):
        raise Refused(f"name={names.table}: app/models.py has a model {entity} already; choose another name")
    text = insert_before_end(text, "__all__", f', "{entity}"')
    return after_imports(text, f"from app.registry import {entity}\n")


def add_operations(text: str, names: Names) -> str:
    """Return tests/support/operations.py with the operations of the domain."""
    text = insert_before_end(text, "PARAMETERS", names.render("parameters"))
    return insert_before_end(text, "OPERATIONS", names.render("operations"))


def names_of(text: str) -> set[str]:
    """Return the names that a module imports."""
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def after_imports(text: str, lines: str) -> str:
    """Return the module with further lines after its imports."""
    ends = [node.end_lineno or 0 for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    before = text.splitlines(keepends=True)
    return "".join([*before[: max(ends)], lines, *before[max(ends) :]])


def insert_before_end(text: str, variable: str, addition: str) -> str:
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
            if inside.endswith((",", "(", "[", "{")):
                addition = addition.removeprefix(",")
            if inside.endswith("("):
                addition += ","  # a tuple of one
            lines[node.value.end_lineno - 1] = last[:end].decode() + addition + last[end:].decode()
            return "".join(lines)
    raise Refused(f"the variable {variable} was not found: follow docs/adding-a-domain.md by hand")
