"""The comparison of a database's schema with the revisions of a release, without a database."""

from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from app.database.schema_version import (
    ADDITIVE,
    CONTRACTING,
    AppliedRevision,
    DatabaseSchema,
    State,
    compare,
    oldest_after_upgrade,
    revisions,
)


@pytest.fixture
def release(tmp_path: Path) -> ScriptDirectory:
    """Return a release with the revisions a, b and c. Revision b is contracting."""
    versions = tmp_path / "versions"
    versions.mkdir()
    for revision, before, kind in (("a", None, ADDITIVE), ("b", "a", CONTRACTING), ("c", "b", ADDITIVE)):
        (versions / f"{revision}.py").write_text(
            f"revision = {revision!r}\ndown_revision = {before!r}\nkind = {kind!r}\n"
        )
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    return ScriptDirectory.from_config(config)


def schema(
    revisions: str, *, head: str | None = None, contracting: str = "b", oldest: dict[str, str] | None = None
) -> DatabaseSchema:
    """Return a database with applied revisions of one letter each, at the last one or at `head`."""
    history = tuple(
        AppliedRevision(
            each, CONTRACTING if each in contracting else ADDITIVE, "2.0", "checksum", (oldest or {}).get(each)
        )
        for each in revisions
    )
    return DatabaseSchema(frozenset([head or revisions[-1]]), history)


CASES = {
    "never migrated": (DatabaseSchema(), State.OLDER, "abc", "", None),
    "older": (schema("ab"), State.OLDER, "c", "", "b"),
    "older without history": (DatabaseSchema(frozenset("a")), State.OLDER, "bc", "", "a"),
    "current": (schema("abc"), State.CURRENT, "", "", "b"),
    "current without history": (DatabaseSchema(frozenset("c")), State.CURRENT, "", "", "b"),
    "newer": (schema("abcde"), State.NEWER, "", "de", "b"),
    "newer and contracting": (schema("abcde", contracting="d"), State.INCOMPATIBLE, "", "de", "d"),
    "newer, and the release before may run": (
        schema("abcde", contracting="bde", oldest={"d": "c", "e": "c"}),
        State.NEWER,
        "",
        "de",
        "c",
    ),
    "newer, and a later release may run": (
        schema("abcdef", contracting="bef", oldest={"e": "d", "f": "c"}),
        State.INCOMPATIBLE,
        "",
        "def",
        "d",
    ),
    "newer without history": (DatabaseSchema(frozenset("d")), State.UNKNOWN, "", "d", None),
    "newer than its history": (schema("abc", head="d"), State.UNKNOWN, "", "d", None),
    "another branch": (schema("abx"), State.DIVERGED, "c", "x", "b"),
    "another branch that contracts": (schema("abx", contracting="x"), State.DIVERGED, "c", "x", "x"),
}


@pytest.mark.parametrize("case", CASES)
def test_comparison_of_schema_and_release(release: ScriptDirectory, case: str) -> None:
    database, state, pending, ahead, oldest = CASES[case]
    result = compare(database, release)

    assert result.state is state
    assert (result.pending, result.ahead, result.oldest) == (tuple(pending), tuple(ahead), oldest)
    assert result.may_run == (state in (State.CURRENT, State.NEWER))
    assert bool(result.remedy) != result.may_run


def test_remedy_names_the_last_revision_that_this_release_can_run_on(release: ScriptDirectory) -> None:
    remedy = compare(schema("abcdef", contracting="e"), release).remedy

    assert "revision e is contracting" in remedy
    assert "run `alembic downgrade d` with release 2.0" in remedy


def test_remedy_for_two_contracting_revisions_names_both_ends(release: ScriptDirectory) -> None:
    remedy = compare(schema("abcdef", contracting="df"), release).remedy

    assert "Start a release that has revision f" in remedy
    assert "run `alembic downgrade c`" in remedy


def test_remedy_for_another_branch_names_the_common_revision(release: ScriptDirectory) -> None:
    assert "Run `alembic downgrade b` with the code that has revision x" in compare(schema("abx"), release).remedy


def test_oldest_code_after_an_upgrade_is_that_of_the_release(release: ScriptDirectory) -> None:
    assert (revisions(release), oldest_after_upgrade(release)) == (["a", "b", "c"], "b")
