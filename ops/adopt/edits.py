"""Take parts out of the template: files that go as a whole, and edits of files that stay.

Each edit names text that must be there. So a file that has changed without its edit stops the program, and
tests/integration/ops/test_adopt.py.
"""

import ast
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Edit = Callable[[str], str]


class OutOfDate(Exception):
    """An edit does not find its text."""


def replace(old: str, new: str = "") -> Edit:
    """Replace a text, wherever it stands."""

    def edit(text: str) -> str:
        if old not in text:
            raise OutOfDate(repr(old))
        return text.replace(old, new)

    return edit


def substitute(pattern: str, new: str | Callable[[re.Match[str]], str] = "") -> Edit:
    """Replace each match of a regular expression."""

    def edit(text: str) -> str:
        changed, count = re.subn(pattern, new, text, flags=re.MULTILINE)
        if not count:
            raise OutOfDate(pattern)
        return changed

    return edit


def lines(*starts: str) -> Edit:
    """Remove the lines that begin with these texts, which may be indented."""

    def edit(text: str) -> str:
        for start in starts:
            text = substitute(rf"^ *{re.escape(start)}.*\n")(text)
        return text

    return edit


def functions(*names: str) -> Edit:
    """Remove functions and classes of a Python module, with their decorators."""

    def edit(text: str) -> str:
        for name in names:
            found = [node for node in ast.parse(text).body if getattr(node, "name", None) == name]
            if not found:
                raise OutOfDate(name)
            [node] = found
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            assert node.end_lineno
            rows = text.splitlines(keepends=True)
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            text = "".join(rows[:first]).rstrip() + "\n\n\n" + "".join(rows[node.end_lineno :]).lstrip()
        return text.rstrip() + "\n"

    return edit


def section(heading: str) -> Edit:
    """Remove a section of a document, with its line in the table of contents."""

    def edit(text: str) -> str:
        level = heading.partition(" ")[0]
        changed = substitute(rf"^{re.escape(heading)}\n(?:(?!#{{1,{len(level)}}} ).*\n)*")(text)
        anchor = re.sub(r"[^\w\- ]", "", heading.removeprefix(level).strip().lower()).replace(" ", "-")
        return re.sub(rf"^- \[.*\]\(#{anchor}\).*\n", "", changed, flags=re.MULTILINE).rstrip() + "\n"

    return edit


def targets(*names: str) -> Edit:
    """Remove targets of the Makefile, with the comments above them."""

    def edit(text: str) -> str:
        for name in names:
            text = substitute(rf"^(?:# .*\n)*{name}:.*\n(?:\t.*\n)+\n")(text)
            text = substitute(rf"(?<=[ \t]){name}(?: |(?=\n))")(text)  # in .PHONY
        return text

    return edit


class Part(NamedTuple):
    """A part of the template that can be taken out.

    `module` is named in messages. `files` are patterns of files and folders that go. `edits` are applied to files that
    stay. `added` are the texts of files that take the place of those that go. `targets` of the Makefile that go are
    those of the template in the documents.
    """

    module: str
    files: tuple[str, ...]
    edits: Mapping[str, tuple[Edit, ...]]
    added: Mapping[str, str]
    targets: tuple[str, ...] = ()


def take_out(root: Path, *parts: Part) -> list[str]:
    """Take the parts out of the tree, the first one first. Return the names of added files.

    Raise OutOfDate, naming the entry, before anything is changed.
    """
    gone: set[Path] = set()
    changed: dict[Path, str] = {}
    for part in parts:
        for pattern in part.files:
            found = {path for path in root.glob(pattern) if path not in gone}
            found |= {path for path in changed if path.match(str(root / pattern))}
            if not found:
                raise OutOfDate(f"FILES of {part.module}: there is no {pattern}")
            gone |= found
            changed = {path: text for path, text in changed.items() if not found & {path, *path.parents}}
        for name, edits in part.edits.items():
            path = root / name
            text = changed[path] if path in changed else path.read_text(encoding="utf-8")
            for edit in edits:
                try:
                    text = edit(text)
                except OutOfDate as error:
                    raise OutOfDate(f"EDITS of {part.module}: {name} does not have {error}") from None
            changed[path] = text
        changed |= {root / name: text for name, text in part.added.items()}
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    added = [str(path.relative_to(root)) for path in changed if not path.exists()]
    for path, text in changed.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _describe_targets(root, [name for part in parts for name in part.targets])
    return added


def _describe_targets(root: Path, names: Sequence[str]) -> None:
    """Write "the template's" before each removed target of the Makefile that the documents name."""
    command = re.compile(rf"`make ((?:{'|'.join(names)})(?: [^`]*)?)`")

    def describe(match: re.Match[str]) -> str:
        before = match.string[: match.start()]
        begins_sentence = before.endswith(("\n\n", "- ")) or before.rstrip().endswith((".", "|"))
        return f"{'The' if begins_sentence else 'the'} template's `{match[1]}`"

    for path in (root / "CHANGELOG.md", *(root / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (described := command.sub(describe, text)) != text:
            path.write_text(described, encoding="utf-8")
