"""The lock of a deploy, which is a container on the engine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from ops.deploy.errors import DeployFailed
from ops.deploy.lock import locked
from ops.deploy.stack import Stack
from tests.support.docker import require_engine
from tests.support.proxied import docker
from tests.support.waiting import eventually

HOLD = """
import sys
from tests.stack.test_deploy_lock import EngineOnly
from ops.deploy.lock import locked
with locked(EngineOnly(sys.argv[1]), "deploy"):
    print("locked", flush=True)
    sys.stdin.read()
"""


class EngineOnly(Stack):
    """A stack without containers."""

    def __init__(self, project: str) -> None:
        self.root = Path(PROJECT_ROOT)
        self.project = project
        self.model = {"services": {"proxy": {"image": "haproxy:3.0"}}}


@pytest.fixture
def stack() -> EngineOnly:
    require_engine()
    return EngineOnly(f"headroom-lock-{os.getpid()}")


def is_free(stack: EngineOnly) -> bool:
    return docker("ps", "--all", "--quiet", "--filter", f"name={stack.project}-deploy-lock") == ""


def test_second_operation_is_refused_with_the_holder(stack: EngineOnly, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_BY", "ann@laptop")
    with (
        locked(stack, "rollback"),
        pytest.raises(DeployFailed, match=r"is being changed \(rollback by ann@laptop, since 20.*\): wait"),
        locked(stack, "deploy"),
    ):
        pass
    assert is_free(stack)


def test_lock_of_a_killed_operation_is_free(stack: EngineOnly) -> None:
    command = [sys.executable, "-c", HOLD, stack.project]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        assert not is_free(stack)
        process.send_signal(signal.SIGKILL)
    eventually(lambda: is_free(stack), within=60)
