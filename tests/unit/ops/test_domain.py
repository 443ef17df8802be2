"""`make domain`: the names that it takes, and what it refuses. tests/integration/ops/test_domain.py runs its result."""

from pathlib import Path

import pytest

from ops.domain.__main__ import write_domain
from ops.domain.rendering import Names, Refused
from tests.support.tree import copy_tree


@pytest.mark.parametrize(
    ("plural", "entity"),
    [
        ("comments", "Comment"),
        ("order_items", "OrderItem"),
        ("categories", "Category"),
        ("addresses", "Address"),
        ("boxes", "Box"),
        ("branches", "Branch"),
        ("houses", "House"),
        ("movies", "Movy"),  # a guess; `singular=movie` corrects it
    ],
)
def test_entity_name_is_the_singular_of_the_table(plural: str, entity: str) -> None:
    assert Names(plural).values["Entity"] == entity


def test_singular_that_is_given_is_used() -> None:
    assert Names("people", "person").values["a_word"] == "a person"


@pytest.mark.parametrize(
    ("plural", "singular", "reason"),
    [
        ("Comments", None, "must be lower-case words"),
        ("comments-2", None, "must be lower-case words"),
        ("c" * 30 + "s", None, "at most 30 characters"),
        ("people", None, "add singular="),
        ("imports", None, "the generated code uses this name"),
        ("responses", None, "the generated code uses this name"),
    ],
)
def test_name_that_gives_no_valid_code_is_refused(plural: str, singular: str | None, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        Names(plural, singular)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("users",), "exists"),
        (("writers", "user"), "app/models.py has a model User"),
    ],
)
def test_name_that_is_taken_changes_no_file(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    root = copy_tree(tmp_path, ("app", "migrations", "tests/support/operations.py", "pyproject.toml"))
    before = contents(root)

    with pytest.raises(Refused, match=reason):
        write_domain(root, Names(*names))

    assert contents(root) == before


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
