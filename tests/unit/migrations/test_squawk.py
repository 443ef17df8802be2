"""squawk accepts the SQL of every revision, with the exceptions of .squawk.toml and of the revision."""

import pathlib

import pytest
from alembic.script import Script

from app.database.schema_version import scripts
from tests.support.migrations import Release
from tests.support.squawk import complaints

DROP = "op.drop_column('users', 'name')"


@pytest.mark.parametrize("script", list(scripts().walk_revisions()), ids=lambda script: script.revision)
def test_squawk_accepts_the_revision(script: Script) -> None:
    assert complaints(script) == []


@pytest.mark.parametrize(
    ("upgrade", "kind", "rule"),
    [
        ("op.create_index('ix', 'users', ['name'])", None, "require-concurrent-index-creation"),
        ("op.create_check_constraint('c', 'users', 'true')", "contracting", "constraint-missing-not-valid"),
        (DROP, None, "ban-drop-column"),
    ],
)
def test_squawk_names_a_dangerous_statement(tmp_path: pathlib.Path, upgrade: str, kind: str | None, rule: str) -> None:
    release = Release(tmp_path)
    release.add("dangerous", upgrade, kind=kind)

    assert any(rule in complaint for complaint in complaints(release.newest))


def test_squawk_accepts_documented_exceptions(tmp_path: pathlib.Path) -> None:
    release = Release(tmp_path)
    release.add("index", "op.create_index('ix', 'users', ['name'])")
    file = release.file("index")
    file.write_text(f"squawk_exceptions = {{'require-concurrent-index-creation': 'few rows'}}\n{file.read_text()}")
    assert complaints(release.newest) == []

    release.add("dropped", DROP, kind="contracting")
    assert complaints(release.newest) == []
