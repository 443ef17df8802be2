"""The releases of a stack, and the lock against two operations at once. Both are configs of the swarm.

So every machine that deploys sees the same, and a rollback works from another one than the deploy. A release has no
secrets: it refers to them by name.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from ops.deploy.timeline import operator
from ops.swarm.docker import Docker
from ops.swarm.errors import SwarmError
from ops.swarm.stack import Model, Object, Stack

# A rollback can go back this far. What older releases referred to is removed.
KEPT = 5


@dataclass(frozen=True)
class Release:
    """A stack that was deployed. `remark` says how, for example by a rollback."""

    number: int
    version: str
    time: str
    by: str
    remark: str
    document: Model = field(repr=False)

    def stack(self, name: str) -> Stack:
        """Return its stack. Its objects exist in the swarm."""
        return Stack(name, self.document)


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_all(docker: Docker) -> list[Release]:
    """Return the releases, the oldest first."""
    prefix = _name(docker, "")
    names = sorted(name for name in docker.names("config") if name.startswith(prefix))
    return sorted((Release(**json.loads(docker.read_config(name))) for name in names), key=lambda each: each.number)


def record(docker: Docker, stack: Stack, version: str, remark: str) -> Release:
    """Record that the stack is deployed. Remove older releases, and what only they refer to."""
    releases = read_all(docker)
    number = releases[-1].number + 1 if releases else 1
    release = Release(number, version, now(), operator(), remark, stack.document)
    docker.create(Object("config", _name(docker, f"{number:06}"), json.dumps(asdict(release)).encode()))
    kept = [*releases, release][-KEPT:]
    removed = {_name(docker, f"{each.number:06}") for each in releases if each not in kept}
    needed = set().union(*(each.stack(docker.stack).references() for each in kept))
    needed |= {_name(docker, f"{each.number:06}") for each in kept} | {_lock_name(docker)}
    docker.remove_unused("config", removed | (docker.names("config") - needed))
    docker.remove_unused("secret", docker.names("secret") - needed)
    return release


@contextmanager
def locked(docker: Docker, operation: str) -> Iterator[None]:
    """Hold the lock of the stack. Raise SwarmError, naming the holder, if it is held."""
    name = _lock_name(docker)
    try:
        docker.create(Object("config", name, f"{operation} by {operator()} since {now()}".encode()))
    except SwarmError as error:
        if name not in docker.names("config"):
            raise
        raise SwarmError(
            f"{docker.read_config(name).decode()} is not finished; if it has crashed: docker config rm {name}"
        ) from error
    try:
        yield
    finally:
        docker("config", "rm", name)


def _name(docker: Docker, number: str) -> str:
    return f"{docker.stack}_release_{number}"


def _lock_name(docker: Docker) -> str:
    return f"{docker.stack}_lock"
