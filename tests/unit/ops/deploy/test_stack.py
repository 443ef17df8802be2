"""Commands of a Compose project that a signal ends."""

from pathlib import Path

import pytest

from ops.deploy.errors import CommandFailed, Interrupted
from ops.deploy.releases import Release
from ops.deploy.stack import Stack
from tests.support.fake_stack import model


class RecordingStack(Stack):
    """A stack whose command `docker compose run` ends with an error."""

    def __init__(self, error: BaseException) -> None:
        self.root = Path()
        self.project = "p"
        self.model = model()
        self.error = error
        self.commands: list[tuple[str, ...]] = []

    def docker(self, *arguments: str, stdin: str | None = None) -> str:
        if "run" in arguments:
            self.name = arguments[arguments.index("--name") + 1]
            raise self.error
        self.commands.append(arguments)
        if arguments[0] == "stop":
            raise CommandFailed("docker stop", 1, "", "no such container")
        return ""


@pytest.mark.parametrize("error", [Interrupted(), CommandFailed("docker compose", 1, "", "")])
def test_container_of_a_command_is_stopped_if_a_signal_ends_the_wait(error: BaseException) -> None:
    """A migration went on, and another deploy could start next to it."""
    stack = RecordingStack(error)

    with pytest.raises(type(error)):
        stack.run(Release("p", 1, "one", model()), "migrate")

    stopped = [command for command in stack.commands if stack.name in command]
    is_interrupted = isinstance(error, Interrupted)
    assert stopped == ([("stop", stack.name), ("rm", "--force", stack.name)] if is_interrupted else [])
