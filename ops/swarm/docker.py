"""What Docker knows about the swarm, and changes in it. Every call is a command of Docker's CLI."""

import base64
import json
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ops.swarm.errors import SwarmError
from ops.swarm.stack import Kind, Model, Object

NAMESPACE = "com.docker.stack.namespace"
"""The label with the name of a stack. Docker sets it too, on services and networks."""


class Run(Protocol):
    """Runs a program."""

    def __call__(
        self, command: list[str], *, input: bytes | None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end. Return its status and what it printed."""
        ...


def run(
    command: list[str], *, input: bytes | None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, with an empty standard input by default."""
    # In a session of its own: Ctrl-C stops this program, not the command in the middle of its work.
    return subprocess.run(
        command, input=input or b"", capture_output=True, check=False, env=environment, start_new_session=True
    )


@dataclass(frozen=True)
class Node:
    """A machine of the swarm."""

    name: str
    address: str
    labels: Mapping[str, str]
    is_usable: bool


@dataclass(frozen=True)
class Service:
    """A service: its update, and how many of its tasks run. `update` is None if its tasks did not have to change."""

    name: str
    running: int
    desired: int
    update: str | None = None
    message: str = ""
    changed: bool = False

    @property
    def is_complete(self) -> bool:
        """Return True if every task runs."""
        return self.running >= self.desired


@dataclass(frozen=True)
class Task:
    """A task of a service: a container on a machine."""

    name: str
    node: str
    state: str
    error: str


@dataclass
class Docker:
    """Docker's CLI in the folder of the project, and the swarm that it reaches."""

    stack: str
    root: Path
    run: Run = field(default=run)

    def __call__(self, *arguments: str, stdin: bytes | None = None) -> str:
        """Run a command of Docker. Return its output. Raise SwarmError if it fails."""
        finished = self.run(["docker", *arguments], input=stdin)
        if finished.returncode:
            lines = finished.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise SwarmError(f"docker {' '.join(arguments[:3])}: {lines[-1]}", "\n".join(lines[:-1]))
        return finished.stdout.decode(errors="replace")

    def pipe(self, source: list[str], target: list[str]) -> None:
        """Run two programs; the second one reads what the first one writes. Raise SwarmError if one fails."""
        with subprocess.Popen(source, stdout=subprocess.PIPE) as writer:
            finished = subprocess.run(target, stdin=writer.stdout, capture_output=True, check=False)
        if writer.returncode or finished.returncode:
            raise SwarmError(f"{' '.join(target[:4])}: {finished.stderr.decode(errors='replace').strip()}")

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the rows that a listing command prints."""
        return [json.loads(line) for line in self(*arguments, "--format", "json").splitlines() if line]

    def require_manager(self) -> None:
        """Raise SwarmError if Docker does not reach a manager of a swarm."""
        swarm = json.loads(self("info", "--format", "{{json .Swarm}}"))
        if swarm.get("LocalNodeState") != "active":
            raise SwarmError("the Docker Engine is in no swarm: docker swarm init, or select another Docker context")
        if not swarm.get("ControlAvailable"):
            raise SwarmError("the Docker Engine is not a manager of its swarm: run this on a manager")

    def nodes(self) -> list[Node]:
        """Return the machines of the swarm."""
        ids = self("node", "ls", "--quiet").split()
        nodes = []
        for node in json.loads(self("node", "inspect", *ids)):
            manager = node.get("ManagerStatus", {}).get("Addr", "").rpartition(":")[0]
            nodes.append(
                Node(
                    name=node["Description"]["Hostname"],
                    # A manager that has created the swarm can have 0.0.0.0 as its status.
                    address=manager or node["Status"].get("Addr", ""),
                    labels=node["Spec"].get("Labels", {}),
                    is_usable=node["Status"]["State"] == "ready" and node["Spec"]["Availability"] == "active",
                )
            )
        return nodes

    def services(self) -> dict[str, Service]:
        """Return the services of the stack, by their name in the stack."""
        listed = self.rows("service", "ls", "--filter", f"label={NAMESPACE}={self.stack}")
        if not listed:
            return {}
        replicas = {row["Name"]: row["Replicas"] for row in listed}
        found = {}
        for service in json.loads(self("service", "inspect", *replicas)):
            spec, status = service["Spec"], service.get("UpdateStatus") or {}
            before = service.get("PreviousSpec")
            running, _, desired = replicas[spec["Name"]].partition(" ")[0].partition("/")
            name = spec["Name"].removeprefix(f"{self.stack}_")
            found[name] = Service(
                name,
                running=int(running),
                desired=int(desired),
                update=status.get("State"),
                message=status.get("Message", ""),
                changed=before is not None and _compact(before["TaskTemplate"]) != _compact(spec["TaskTemplate"]),
            )
        return found

    def tasks(self, service: str) -> list[Task]:
        """Return the tasks of a service, the newest first in each slot."""
        rows = self.rows("service", "ps", "--no-trunc", f"{self.stack}_{service}")
        return [Task(row["Name"], row["Node"], row["CurrentState"].partition(" ")[0], row["Error"]) for row in rows]

    def logs(self, service: str, lines: int = 20) -> str:
        """Return the last lines of a service's log, or nothing if there is none."""
        command = ["docker", "service", "logs", "--raw", "--tail", str(lines), f"{self.stack}_{service}"]
        finished = self.run(command, input=None)
        return (finished.stdout + finished.stderr).decode(errors="replace").strip()

    def deploy(self, document: Model, *options: str) -> None:
        """Create or update the services of a document. Services that it does not have stay as they are."""
        text = json.dumps(document).encode()
        self("stack", "deploy", "--detach=true", *options, "--compose-file", "-", self.stack, stdin=text)

    def remove(self, services: Iterable[str]) -> None:
        """Remove services, if any."""
        names = [f"{self.stack}_{name}" for name in services]
        if names:
            self("service", "rm", *names)

    def names(self, kind: Kind) -> set[str]:
        """Return the names of the stack's secrets or configs."""
        return {row["Name"] for row in self.rows(kind, "ls", "--filter", f"label={NAMESPACE}={self.stack}")}

    def create(self, each: Object) -> None:
        """Create a secret or a config."""
        self(each.kind, "create", "--label", f"{NAMESPACE}={self.stack}", each.name, "-", stdin=each.content)

    def read_config(self, name: str) -> bytes:
        """Return the content of a config."""
        [found] = json.loads(self("config", "inspect", name))
        return base64.b64decode(found["Spec"]["Data"])

    def remove_unused(self, kind: Kind, names: Collection[str]) -> None:
        """Remove secrets or configs. Those that a service uses stay: Swarm refuses to remove them."""
        for name in sorted(names):
            self.run(["docker", kind, "rm", name], input=None)


def _compact(value: Any) -> Any:
    """Return the value without empty parts, which Swarm adds to a specification."""
    if isinstance(value, dict):
        parts = {key: _compact(part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part not in (None, {}, [])}
    return [_compact(part) for part in value] if isinstance(value, list) else value
