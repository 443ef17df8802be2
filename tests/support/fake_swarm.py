"""A swarm in memory, behind the commands of Docker's CLI that ops/swarm runs."""

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STACK = "headroom"


@dataclass
class FakeService:
    """A service. `updates` are the states that its update takes, one for each look at it."""

    spec: dict[str, Any]
    previous: dict[str, Any] | None = None
    updates: list[str] = field(default_factory=list)
    update: str | None = None


@dataclass
class FakeSwarm:
    """Machines, objects and services. `broken` images are rolled back; `unhealthy` services never run.

    `deployed` has the names of the services of each `docker stack deploy`.
    """

    nodes: dict[str, dict[str, str]] = field(default_factory=lambda: {"node1": {"headroom.data": "true"}, "node2": {}})
    drained: set[str] = field(default_factory=set)
    state: dict[str, Any] = field(default_factory=lambda: {"LocalNodeState": "active", "ControlAvailable": True})
    migration: str = "Complete"
    broken: set[str] = field(default_factory=set)
    unhealthy: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    configs: dict[str, bytes] = field(default_factory=dict)
    secrets: dict[str, bytes] = field(default_factory=dict)
    services: dict[str, FakeService] = field(default_factory=dict)
    deployed: list[set[str]] = field(default_factory=list)
    options: list[list[str]] = field(default_factory=list)

    def run(
        self, command: list[str], *, input: bytes | None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command of Docker."""
        assert command[0] == "docker"
        try:
            output = self._run(command[1:], input or b"")
        except LookupError as error:
            return subprocess.CompletedProcess(command, 1, b"", str(error).encode())
        return subprocess.CompletedProcess(command, 0, output.encode(), b"")

    def image(self, service: str) -> str:
        """Return the image of a service."""
        return str(self.services[service].spec["TaskTemplate"]["Image"])

    def _run(self, arguments: list[str], stdin: bytes) -> str:
        match arguments:
            case ["info", *_]:
                return json.dumps(self.state)
            case ["node", "ls", *_]:
                return "\n".join(self.nodes)
            case ["node", "inspect", *_]:
                return json.dumps([self._node(name, labels) for name, labels in self.nodes.items()])
            case ["stack", "deploy", *options]:
                self._deploy(json.loads(stdin)["services"], options)
                return ""
            case ["service", "ls", *_]:
                return _rows({"Name": f"{STACK}_{name}", "Replicas": self._replicas(name)} for name in self.services)
            case ["service", "inspect", *names]:
                return json.dumps([self._inspect(name.removeprefix(f"{STACK}_")) for name in names])
            case ["service", "ps", *_, name, "--format", "json"]:
                return _rows(self._tasks(name.removeprefix(f"{STACK}_")))
            case ["service", "logs", *_]:
                return '{"message":"connection budget: 34 of 92 server connections, 58 left"}\n'
            case ["service", "rm", *names]:
                for name in names:
                    del self.services[name.removeprefix(f"{STACK}_")]
                return ""
            case ["config" | "secret" as kind, *rest]:
                return self._object(self.configs if kind == "config" else self.secrets, rest, stdin)
        raise AssertionError(arguments)

    def _object(self, objects: dict[str, bytes], arguments: list[str], stdin: bytes) -> str:
        match arguments:
            case ["ls", *_]:
                return _rows({"Name": name} for name in objects)
            case ["create", "--label", _, name, "-"]:
                if name in objects:
                    raise LookupError(f"{name} already exists")
                objects[name] = stdin
            case ["inspect", name]:
                return json.dumps([{"Spec": {"Data": base64.b64encode(objects[name]).decode()}}])
            case ["rm", name]:
                if name in self.used:
                    raise LookupError(f"{name} is in use")
                del objects[name]
        return ""

    def _node(self, name: str, labels: dict[str, str]) -> dict[str, Any]:
        return {
            "Description": {"Hostname": name},
            "Status": {"State": "ready", "Addr": "0.0.0.0"},
            "ManagerStatus": {"Addr": "10.0.0.1:2377"},
            "Spec": {"Labels": labels, "Availability": "drain" if name in self.drained else "active"},
        }

    def _deploy(self, services: dict[str, Any], options: list[str]) -> None:
        self.deployed.append(set(services))
        self.options.append(options)
        for name, service in services.items():
            spec = {"Name": f"{STACK}_{name}", "TaskTemplate": {"Image": service["image"], "Replicas": service}}
            old = self.services.get(name)
            if old is None:
                self.services[name] = FakeService(spec)
            elif old.spec == spec:
                self.services[name] = FakeService(spec, previous=spec)
            elif service["image"] in self.broken:
                self.services[name] = FakeService(
                    old.spec, previous=spec, updates=["updating", "rollback_started", "rollback_completed"]
                )
            else:
                self.services[name] = FakeService(spec, previous=old.spec, updates=["updating", "completed"])

    def _replicas(self, name: str) -> str:
        if name == "migrate":
            return "0/1 (1/1 completed)"
        return "1/2" if name in self.unhealthy else "2/2"

    def _inspect(self, name: str) -> dict[str, Any]:
        service = self.services[name]
        if service.updates:
            service.update = service.updates.pop(0)
        found: dict[str, Any] = {"Spec": service.spec}
        if service.previous:
            found["PreviousSpec"] = service.previous
        if service.update:
            found["UpdateStatus"] = {"State": service.update, "Message": f"update of {name}"}
        return found

    def _tasks(self, name: str) -> list[dict[str, str]]:
        state = self.migration if name == "migrate" else "Running"
        error = "task: non-zero exit (1)" if state == "Failed" or name in self.unhealthy else ""
        return [{"Name": f"{name}.1", "Node": "node1", "CurrentState": f"{state} 2 seconds ago", "Error": error}]


def _rows(rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)
