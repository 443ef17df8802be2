"""Errors of a deploy."""


class DeployFailed(Exception):
    """The operation cannot go on. The message is one line for the operator; `details` are lines of a log."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class CommandFailed(DeployFailed):
    """A command exited with another status than 0."""

    def __init__(self, command: str, status: int, output: str, errors: str) -> None:
        lines = (errors.strip() or output.strip()).splitlines()
        super().__init__(f"{command}: {lines[-1] if lines else f'exit status {status}'}", "\n".join(lines[-30:-1]))
        self.status = status
        self.output = output


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop."""
