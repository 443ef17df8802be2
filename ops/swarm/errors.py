"""Errors of an operation on the swarm."""


class SwarmError(Exception):
    """The operation cannot go on. The message is for the operator; `details` are lines of a log."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
