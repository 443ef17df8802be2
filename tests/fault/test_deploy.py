"""A deploy of compose.prod.yml under load. `make bench-deploy` has the whole of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from benchmarks.deploy import ADD_COLUMN, DeployStack, Traffic, build, docker, revision_files
from tests.support.stacks import IMAGE

pytestmark = pytest.mark.alone


@pytest.fixture
def next_image(images: None) -> Iterator[str]:
    """Build a release with one more revision, which adds a column."""
    tag = build(IMAGE, f"headroom-next:{os.getpid()}", revisions=revision_files({"": [ADD_COLUMN]}))
    yield tag
    docker("rmi", "--force", tag)


def test_migration_restart_and_replacement_lose_no_request(next_image: str, tmp_path: Path) -> None:
    """A replica of the release before restarts on the new schema, and serves next to one of the new release."""
    with DeployStack(tmp_path, IMAGE, workers=1).running() as stack:
        traffic = Traffic(stack)
        [before] = stack.sql("SELECT version_num FROM alembic_version")

        def deploy() -> None:
            stack.migrate(next_image)
            stack.restart_one()
            stack.roll(next_image, replicas=1)

        uvloop.run(traffic.run(10, deploy))
        assert stack.sql("SELECT version_num FROM alembic_version") != [before]
        failed = [each for each in traffic.exchanges if not each.succeeded]
        lost = traffic.lost()

    print(f"{len(traffic.exchanges)} requests")
    assert failed == []
    assert (traffic.wrong, lost) == (0, 0)
