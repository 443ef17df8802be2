"""The revisions that `make bench-ddl` applies under load."""

from pathlib import Path

from sqlalchemy import URL

from benchmarks.deploy import DDL, revision_files
from tests.support.migrations import Release, recorded


def test_revisions_of_the_benchmark_can_be_applied(owner: URL, tmp_path: Path) -> None:
    release = Release(tmp_path / "release")
    files = revision_files(DDL)
    for revision, text in files.items():
        release.file(revision).write_text(text)
    finished = release.run(owner)

    assert finished.returncode == 0, finished.stdout
    assert [revision for revision, _ in recorded(owner)][-len(files) :] == list(files)
