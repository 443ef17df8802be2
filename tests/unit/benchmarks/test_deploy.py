"""`make bench-deploy show=rotation` replaces every secret of its stack."""

from pathlib import Path

from benchmarks.deploy import SECRETS
from ops.deploy.rotation import Rotation
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import FakeStack

# The stack of the benchmark has no standby. tests/stack/test_replica.py replaces its password.
OF_A_STANDBY = {"replication_password"}


def test_benchmark_rotates_every_secret(tmp_path: Path) -> None:
    stack = FakeStack()
    stack.model["secrets"] = {}

    assert {*SECRETS} == Rotation(stack, Timeline("rotate", tmp_path)).kinds.keys() - OF_A_STANDBY
