"""The lock against two operations at once.

It is a container with a fixed name on the Docker Engine, so it holds for every machine that deploys to it. The
container ends when its standard input does: with this program, in whichever way that ends. It is never left behind.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from ops.deploy.errors import DeployFailed
from ops.deploy.stack import Stack
from ops.deploy.timeline import operator

_BY = "headroom.deploy.by"
_ACQUIRED = "acquired\n"


@contextmanager
def locked(stack: Stack, operation: str) -> Iterator[None]:
    """Hold the lock of the stack's project. Raise DeployFailed, naming the holder, if it is held."""
    name = f"{stack.project}-deploy-lock"
    image = stack.model["services"]["proxy"]["image"]
    limits = ["--network", "none", "--read-only", "--cap-drop", "ALL", "--memory", "32m"]
    label = f"{_BY}={operation} by {operator()}"
    run = ["docker", "run", "--rm", "--interactive", "--name", name, "--label", label, *limits, "--entrypoint", "cat"]
    with subprocess.Popen(
        [*run, image],
        cwd=stack.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(_ACQUIRED)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer != _ACQUIRED:
            reason = process.stderr.read().strip()
            raise DeployFailed(_holder(stack, name) if "is already in use" in reason else f"lock {name}: {reason}")
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


def _holder(stack: Stack, name: str) -> str:
    template = f'{{{{index .Config.Labels "{_BY}"}}}}, since {{{{.Created}}}}'
    try:
        holder = stack.docker("inspect", "--format", template, name).strip()
    except DeployFailed:
        holder = "another operation, which has just ended"
    return f"the stack {stack.project} is being changed ({holder}): wait until it has ended"
