"""The comparison of a database's schema with the revisions of a release, without a database."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import make_url

from app.database import schema_version
from app.database.schema_version import (
    ADDITIVE,
    CONTRACTING,
    AppliedRevision,
    DatabaseSchema,
    State,
    check_schema,
    compare,
    oldest_after_upgrade,
    revisions,
    scripts,
)
from app.errors import DatabaseUnavailable, SchemaMismatch


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


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the database give these answers, one at each poll; an exception is raised."""

    def set_answers(*answers: DatabaseSchema | DatabaseUnavailable) -> None:
        left = list(answers)

        async def answer(_: object) -> DatabaseSchema:
            result = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(result, DatabaseUnavailable):
                raise result
            return result

        monkeypatch.setattr(schema_version, "database_schema", answer)

    return set_answers


OLD = DatabaseSchema()
CURRENT = DatabaseSchema(frozenset(scripts().get_heads()))
UNAVAILABLE = DatabaseUnavailable("no answer within 2 s")


async def check(seconds: float) -> None:
    await check_schema(make_url("postgresql://u@h/d"), deadline=monotonic() + seconds, application_name="headroom:test")


async def test_failed_poll_between_two_answers_does_not_end_the_check(answers: Callable[..., None]) -> None:
    """It once did: the API started on a schema without the columns of its release."""
    answers(OLD, UNAVAILABLE, OLD, UNAVAILABLE)
    with pytest.raises(SchemaMismatch):
        await check(0.5)

    answers(UNAVAILABLE, OLD, UNAVAILABLE, CURRENT)
    await check(60)


async def test_database_that_never_answers_ends_the_check_with_a_warning(
    answers: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    answers(UNAVAILABLE)

    await check(0)

    assert "was not checked, and the program starts anyway: no answer within 2 s" in caplog.text


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
