"""`make bench-deploy show=rotation` replaces every secret."""

from pathlib import Path

from benchmarks.deploy import SECRETS
from ops.deploy.rotation import Rotation
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import FakeStack


def test_benchmark_rotates_every_secret(tmp_path: Path) -> None:
    stack = FakeStack()
    stack.model["secrets"] = {}

    assert sorted(SECRETS) == sorted(Rotation(stack, Timeline("rotate", tmp_path)).kinds)
