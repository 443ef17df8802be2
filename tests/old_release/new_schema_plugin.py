"""A pytest plugin for the suite of an older release: its `alembic upgrade head` runs the migrations of this tree."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest


def _upgrade(config: Any, revision: str, *_: Any, **__: Any) -> None:
    assert revision == "head", f"the older suite must not depend on single revisions: {revision}"
    tree = os.environ["HEADROOM_NEW_TREE"]
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", f"{tree}/pyproject.toml", "upgrade", os.environ["HEADROOM_NEW_HEAD"]],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": tree},
        check=True,
    )


@pytest.fixture(scope="session", autouse=True)
def _new_schema() -> Iterator[None]:
    with mock.patch("alembic.command.upgrade", _upgrade):
        yield
