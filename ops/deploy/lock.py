"""The lock against two operations at once.

It is a container with a fixed name on the Docker Engine, so it holds for every machine that deploys to it. The
container ends when its standard input does: with this program, in whichever way that ends. It is never left behind.

`python3 -m ops.deploy.lock OPERATION COMMAND [ARGUMENT...]` holds the lock while a command runs.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ops.deploy.errors import DeployFailed
from ops.deploy.remote import unpacked
from ops.deploy.stack import Stack
from ops.deploy.timeline import operator

_BY = "headroom.deploy.by"
_ACQUIRED = "acquired\n"


@contextmanager
def locked(stack: Stack, operation: str) -> Iterator[int]:
    """Hold the lock of the stack's project. Raise DeployFailed, naming the holder, if it is held.

    Yield a file descriptor. The lock is held as long as a process has it, this one or a child that inherits it.
    """
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
            with suppress(BrokenPipeError):  # of what is still in the buffer
                process.stdin.close()
        if answer != _ACQUIRED:
            reason = process.stderr.read().strip()
            raise DeployFailed(_holder(stack, name) if "is already in use" in reason else f"lock {name}: {reason}")
        try:
            yield process.stdin.fileno()
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


def main() -> int:
    """Run a command while the lock is held. Return its exit status, or 1 if the lock is held already."""
    operation, *command = sys.argv[1:]
    try:
        with unpacked(""), locked(Stack(Path.cwd()), operation) as lock:
            # The command inherits the lock: it is held until the command has ended, even if this program is killed.
            process = subprocess.Popen(command, pass_fds=[lock])
            # A terminal sends SIGINT and SIGHUP to the command too.
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, lambda *_: None)
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            status = process.wait()
            return status if status >= 0 else 128 - status
    except (DeployFailed, OSError) as error:
        print(f"{operation}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
