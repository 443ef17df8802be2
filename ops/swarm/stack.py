"""Turn a model, as `docker compose config --format json` prints it, into a stack that Swarm accepts.

Secrets and files of the project become objects of the swarm: machines other than this one need no checkout. Objects
cannot change, so the name of an object contains a digest of its content. Another content is another object, and the
services that use it are replaced.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ops.swarm.errors import SwarmError

Model = dict[str, Any]

# Compose uses them, Swarm ignores or rejects them. Programs wait for what they depend on; Swarm restarts by
# deploy.restart_policy; no-new-privileges is a setting of the Docker daemon (docs/swarm.md).
DROPPED = frozenset({"build", "container_name", "depends_on", "profiles", "pull_policy", "restart", "security_opt"})
# Swarm would ignore them without a word.
UNSUPPORTED = frozenset(
    "cgroup cgroup_parent cpus devices extends ipc links mem_limit memswap_limit network_mode pid pids_limit "
    "privileged shm_size userns_mode volumes_from".split()
)
LOOPBACK = ("127.", "::1", "localhost")
MAX_OBJECT_BYTES = 500_000
MAX_NAME = 64
# Arguments of builds that only label the image.
LABELS = frozenset({"VERSION", "REVISION", "SOURCE", "CREATED"})
REPLACE = "headroom.replace"
"""The label of services that a deploy replaces only on request."""

Kind = Literal["config", "secret"]


class Object(NamedTuple):
    """A config or a secret of the swarm. Its name determines its content."""

    kind: Kind
    name: str
    content: bytes


@dataclass(frozen=True)
class Stack:
    """A stack: what `docker stack deploy` gets, and the objects that it refers to.

    `built` are the services whose images the project builds.
    """

    name: str
    document: Model
    objects: tuple[Object, ...] = field(repr=False, default=())
    built: frozenset[str] = frozenset()

    @property
    def services(self) -> dict[str, Model]:
        """Return the services by name."""
        services: dict[str, Model] = self.document["services"]
        return services

    def only(self, names: Collection[str]) -> Model:
        """Return the document with these services alone."""
        return self.document | {"services": {name: self.services[name] for name in self.services if name in names}}

    def on_request(self) -> set[str]:
        """Return the services that a deploy replaces only on request: clients notice it."""
        labels = {name: service.get("deploy", {}).get("labels", {}) for name, service in self.services.items()}
        return {name for name, of_service in labels.items() if of_service.get(REPLACE) == "on-request"}

    def keeping(self, names: Collection[str], before: "Stack") -> "Stack":
        """Return this stack with these services as they were before."""
        kept = {name: before.services[name] for name in names}
        document = self.document | {"services": self.services | kept}
        for kind in ("configs", "secrets", "volumes", "networks"):
            document[kind] = before.document.get(kind, {}) | self.document.get(kind, {})
        return replace(self, document=_without_unused(document))

    def mounted(self, service: str, target: str) -> bytes | None:
        """Return the content of a secret of a service; None if it has none, or if its content is not known here."""
        secrets = self.services[service].get("secrets", [])
        name = next((entry["source"] for entry in secrets if entry.get("target") == target), None)
        return next((each.content for each in self.objects if each.name == name), None)

    @property
    def has_registry(self) -> bool:
        """Return True if the images come from a registry that their names contain."""
        return any(re.match(r"(localhost|[^/]*[.:][^/]*)/", image) for image in self.images())

    def images(self) -> list[str]:
        """Return the images of all services, each once."""
        return sorted({service["image"] for service in self.services.values()})

    def references(self) -> set[str]:
        """Return the names of the objects that the stack refers to."""
        return {entry["name"] for kind in ("configs", "secrets") for entry in self.document.get(kind, {}).values()}


def render(model: Model, root: Path) -> Stack:
    """Return the stack of a model. Files below `root` become configs. Raise SwarmError for what Swarm cannot do.

    In the document, secrets and configs have the names of their objects: two releases can be merged.
    """
    stack = str(model["name"])
    configs = _Objects(stack, "config")
    secrets = _Objects(stack, "secret")
    for objects, entries in ((configs, model.get("configs", {})), (secrets, model.get("secrets", {}))):
        for key, entry in entries.items():
            objects.add_entry(key, entry)
    services = {}
    for name, service in sorted(model["services"].items()):
        try:
            services[name] = _service(service, root, configs, secrets)
        except SwarmError as error:
            raise SwarmError(f"service {name}: {error}") from None
    document = _without_unused(
        {
            "services": services,
            "networks": {name: _network(network) for name, network in sorted(model.get("networks", {}).items())},
            "volumes": model.get("volumes", {}),
            "configs": configs.entries,
            "secrets": secrets.entries,
        }
    )
    created = (*configs.objects.values(), *secrets.objects.values())
    used = document["configs"].keys() | document["secrets"].keys()
    built = frozenset(name for name, service in model["services"].items() if service.get("build"))
    return Stack(stack, document, tuple(each for each in created if each.name in used), built)


def _without_unused(document: Model) -> Model:
    """Return the document without secrets and configs that no service uses."""
    used = {
        kind: {entry["source"] for service in document["services"].values() for entry in service.get(kind, [])}
        for kind in ("configs", "secrets")
    }
    return document | {
        kind: {name: entry for name, entry in document[kind].items() if name in names} for kind, names in used.items()
    }


def content_tag(build: Model) -> str:
    """Return a tag for an image that is the same as long as its folder and its arguments are."""
    folder = Path(build["context"])
    arguments = sorted((name, value) for name, value in build.get("args", {}).items() if name not in LABELS)
    digest = hashlib.sha256(repr(arguments).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_mode & 0o100}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class _Objects:
    """The objects of one kind: the entries of the document, and what must exist in the swarm."""

    def __init__(self, stack: str, kind: Kind) -> None:
        self._stack = stack
        self._kind: Kind = kind
        self._names: dict[str, str] = {}
        self.entries: dict[str, Model] = {}
        self.objects: dict[str, Object] = {}

    def add_entry(self, key: str, entry: Model) -> None:
        """Add an entry of the model: a file, a content, or an object that exists in the swarm already."""
        if entry.get("external"):
            self._names[key] = name = entry.get("name", key)
            self.entries[name] = {"external": True, "name": name}
        elif "content" in entry:
            self._names[key] = self.add(key, str(entry["content"]).encode())
        elif "file" in entry:
            self._names[key] = self.add(key, _read(Path(entry["file"]), self._kind))
        else:
            raise SwarmError(f"{self._kind} {key}: must have a file; Swarm cannot read the environment")

    def add(self, label: str, content: bytes, target: Path | None = None) -> str:
        """Add an object with this content. Return its name.

        A file with two targets becomes two objects. Docker sorts the configs of a service by name: two with one name
        would be in a random order, and each deploy would replace the service.
        """
        if len(content) > MAX_OBJECT_BYTES:
            raise SwarmError(f"{self._kind} {label}: {len(content)} bytes, but Swarm allows {MAX_OBJECT_BYTES}")
        digest = _digest(self._kind, self._stack, content, target)
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{self._stack}_{label}")
        name = f"{stem[: MAX_NAME - len(digest) - 1]}_{digest}"
        self.entries[name] = {"external": True, "name": name}
        self.objects[name] = Object(self._kind, name, content)
        return name

    def add_file(self, path: Path, target: Path) -> str:
        """Add a file of the project. Return the name of its object."""
        return self.add(path.name, _read(path, self._kind), target)

    def references(self, entries: Collection[Model]) -> list[Model]:
        """Return the entries of a service, with the names of objects."""
        return [
            {key: value for key, value in entry.items() if value is not None} | {"source": self._names[entry["source"]]}
            for entry in entries
        ]


def _digest(kind: Kind, stack: str, content: bytes, target: Path | None = None) -> str:
    """Return a digest for the name of an object.

    Names of secrets appear in logs. Their digest is expensive to compute, so that a weak password cannot be guessed
    from it.
    """
    if kind == "secret":
        digest = hashlib.scrypt(content, salt=stack.encode(), n=2**14, r=8, p=1, dklen=8)
    else:
        digest = hashlib.sha256(str(target).encode() + b"\0" + content).digest()
    return base64.b32encode(digest)[:10].decode().lower()


def _read(path: Path, kind: Kind) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        step = "run make secrets" if kind == "secret" else "check the volumes of the service"
        raise SwarmError(f"{kind} {path}: {error.strerror}; {step}") from None
    # Swarm has no empty objects. What reads a secret or a file of ours ignores a line break at its end.
    return content or b"\n"


def _service(service: Model, root: Path, configs: _Objects, secrets: _Objects) -> Model:
    service = {key: value for key, value in service.items() if value is not None and key not in DROPPED}
    unsupported = sorted(UNSUPPORTED & service.keys())
    if unsupported:
        raise SwarmError(f"Swarm does not support {', '.join(unsupported)}")
    # Docker's default, which Swarm adds to a service: without it, every service would seem to change.
    service.setdefault("stop_grace_period", "10s")
    service["deploy"] = _deploy(service.get("deploy", {}))
    if "networks" in service:
        service["networks"] = {name: network or {} for name, network in service["networks"].items()}
    if "ports" in service:
        service["ports"] = [_port(port) for port in service["ports"] if not _is_loopback(port)]
    if "secrets" in service:
        service["secrets"] = secrets.references(service["secrets"])
    volumes, files = [], configs.references(service.pop("configs", []))
    for volume in service.pop("volumes", []):
        if volume["type"] == "bind" and Path(volume["source"]).is_relative_to(root):
            files += _files(volume, configs)
        else:
            volumes.append(_volume(volume))
    # Swarm ignores the key tmpfs. It knows no owner of a mount: with its mode 1777, each user can write.
    volumes += [{"type": "tmpfs", "target": mount.partition(":")[0]} for mount in service.pop("tmpfs", [])]
    return service | {key: value for key, value in (("volumes", volumes), ("configs", files)) if value}


def _deploy(deploy: Model) -> Model:
    # No virtual addresses. The proxy and Prometheus need the address of each task. IPVS, which virtual addresses need,
    # would cut connections to the database that are idle for 15 minutes.
    deploy = {"endpoint_mode": "dnsrr"} | {key: value for key, value in deploy.items() if value not in ({}, None)}
    limits = deploy.get("resources", {}).get("limits", {})
    if "cpus" in limits:
        resources = deploy["resources"] | {"limits": limits | {"cpus": str(limits["cpus"])}}
        return deploy | {"resources": resources}
    return deploy


def _is_loopback(port: Mapping[str, Any]) -> bool:
    """Return True if the port is for programs on the same machine: Swarm would publish it to the world."""
    return str(port.get("host_ip", "")).startswith(LOOPBACK)


def _port(port: Model) -> Model:
    host = port.get("host_ip", "0.0.0.0")  # noqa: S104 - compared, not bound
    if host != "0.0.0.0":  # noqa: S104
        raise SwarmError(f"port {port.get('published')}: Swarm publishes on every address of a machine, not on {host}")
    if port.get("mode") != "host":
        raise SwarmError(
            f"port {port.get('published')}: must have mode: host; Swarm's routing mesh hides the client's address"
        )
    return {
        "target": int(port["target"]),
        "published": int(port["published"]),
        "protocol": port.get("protocol", "tcp"),
        "mode": "host",
    }


def _files(volume: Model, configs: _Objects) -> Iterator[Model]:
    """Return the configs that stand for a file or a folder of the project."""
    source, target = Path(volume["source"]), Path(volume["target"])
    if not volume.get("read_only"):
        raise SwarmError(f"{source}: must be mounted read-only; a config cannot be written")
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    else:
        paths = [source]
    for path in paths:
        executable = path.stat().st_mode & 0o100 if path.exists() else 0
        place = target / path.relative_to(source) if path != source else target
        yield {"source": configs.add_file(path, place), "target": str(place), "mode": 0o555 if executable else 0o444}


def _volume(volume: Model) -> Model:
    volume = {key: value for key, value in volume.items() if value not in ({}, None)}
    if volume["type"] == "tmpfs":
        options = volume.get("tmpfs", {})
        return volume | ({"tmpfs": {"size": int(options["size"])}} if "size" in options else {})
    if volume["type"] == "bind":
        return {key: value for key, value in volume.items() if key != "bind"}  # Swarm never creates a folder
    return volume


def _network(network: Model) -> Model:
    if network.get("external"):
        return network
    network = {key: value for key, value in network.items() if value} | {"driver": "overlay"}
    options = {key: value for key, value in network.pop("driver_opts", {}).items() if value}
    return network | ({"driver_opts": options} if options else {})
