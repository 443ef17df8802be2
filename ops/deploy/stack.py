"""A Compose project on the Docker Engine: its model, its containers and its images."""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ops.deploy import interrupts, proxy, releases
from ops.deploy.errors import CommandFailed, DeployFailed
from ops.deploy.releases import Model, Release

DEFAULT_FILE = "compose.prod.yml"
PROXY_ATTEMPTS = 5
_COMPOSE_LABEL = "com.docker.compose"
_NO_BUILD = "# the image of a release: the API's image, with labels\nFROM {image}\n"


@dataclass(frozen=True)
class Replica:
    """A container of the API. `release` is 0 for one that no deploy has started."""

    id: str
    name: str
    number: int
    release: int
    status: str
    restarts: int
    addresses: frozenset[str]

    @property
    def runs(self) -> bool:
        """Return True if it runs and has never been started again."""
        return self.status == "running" and self.restarts == 0


class Stack:
    """The Compose project of the folder `root`. Docker and Compose read the environment and `.env` themselves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = [] if is_set(root, "COMPOSE_FILE") else ["--file", DEFAULT_FILE]
        self.model: Model = json.loads(self._compose("config", "--format", "json"))
        self.project: str = self.model["name"]

    # --- commands

    def docker(self, *arguments: str, stdin: str | None = None) -> str:
        """Run `docker`. Return its standard output; raise CommandFailed."""
        # In a session of its own: Ctrl-C reaches this program only, which stops what the command has begun.
        process = subprocess.run(
            ["docker", *arguments],
            cwd=self.root,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
        if process.returncode != 0:
            raise CommandFailed(f"docker {arguments[0]}", process.returncode, process.stdout, process.stderr)
        return process.stdout

    def _compose(self, *arguments: str, stdin: str | None = None) -> str:
        return self.docker("compose", "--progress", "quiet", *self._files, *arguments, stdin=stdin)

    def _compose_release(self, release: Release, *arguments: str) -> str:
        """Run `docker compose` for the services as a release has them. Its image gets the name in the Compose file."""
        self._use(release)
        return self._compose_model(releases.merged(self.model, release.model), *arguments)

    def _compose_model(self, model: Model, *arguments: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "compose.json")
            file.write_text(json.dumps(model), encoding="utf-8")
            options = ("--project-name", self.project, "--project-directory", str(self.root), "--file", str(file))
            return self.docker("compose", "--progress", "quiet", *options, *arguments)

    def model_with_jobs(self) -> Model:
        """Return the Compose file with the services of the profile `setup`, and their secrets."""
        model: Model = json.loads(self._compose("--profile", "setup", "config", "--format", "json"))
        return model

    def run_job(self, service: str, *command: str, stdin: str) -> str:
        """Run a service of the profile `setup`. Return its standard output; raise CommandFailed."""
        return self._compose("run", "--rm", "--no-deps", "-T", service, *command, stdin=stdin)

    # --- containers

    def containers(self, service: str, *, stopped: bool = False) -> list[str]:
        """Return the ids of the service's running containers (or of all), without those of `docker compose run`."""
        filters = self._filters(service, is_oneoff=False)
        # Without `--all`, Docker lists those that start again and again, too.
        states = ["--all"] if stopped else ["--filter=status=running"]
        return self.docker("ps", "--quiet", "--no-trunc", *states, *filters).split()

    def _filters(self, service: str, *, is_oneoff: bool) -> list[str]:
        labels = {"project": self.project, "service": service, "oneoff": str(is_oneoff)}
        return [f"--filter=label={_COMPOSE_LABEL}.{name}={value}" for name, value in labels.items()]

    def container(self, service: str) -> str:
        """Return the id of the service's running container. Raise DeployFailed if there is none."""
        if found := self.containers(service):
            return found[0]
        raise DeployFailed(f"the service {service} does not run: docker compose logs {service}")

    def replicas(self) -> list[Replica]:
        """Return the containers of the API, the oldest first."""
        ids = self.containers("api", stopped=True)
        if not ids:
            return []
        try:
            inspected = json.loads(self.docker("inspect", *ids))
        except CommandFailed as error:  # one of them has just been removed
            inspected = json.loads(error.output or "[]")
        return sorted((_replica(each) for each in inspected), key=lambda replica: replica.number)

    def serving(self) -> set[str]:
        """Return the addresses of the replicas to which the proxy sends requests."""
        attempts = PROXY_ATTEMPTS
        while True:
            try:
                return proxy.serving(self.docker("exec", self.container("proxy"), "console", "show", "stat"))
            except DeployFailed:
                attempts -= 1
                if not attempts:
                    raise
            time.sleep(1)  # it may be restarting

    def health(self, container: str) -> str:
        """Return the health of a container; without a health check, its status; for a job that has ended, `done`."""
        template = "{{.State.Status}} {{.State.ExitCode}} {{with .State.Health}}{{.Status}}{{end}}"
        status, code, *health = self.docker("inspect", "--format", template, container).split()
        if status == "exited":
            return "done" if code == "0" else f"exited with status {code}"
        return health[0] if health and status == "running" else status

    def logs(self, container: str) -> str:
        """Return the last lines of a container's log."""
        with suppress(CommandFailed):
            command = ["docker", "logs", "--tail", "20", container]
            finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            return finished.stdout.strip()
        return ""

    def execute(self, container: str, *command: str, stdin: str | None = None) -> str:
        """Run a command in a container. Return its standard output; raise CommandFailed."""
        options = ["--interactive"] if stdin is not None else []
        return self.docker("exec", *options, container, *command, stdin=stdin)

    def start_replicas(self, release: Release, number: int) -> None:
        """Start this many replicas of a release, next to the ones that exist."""
        with interrupts.deferred():
            self._start(release, "api", replicas=len(self.replicas()) + number)

    def _start(self, release: Release, *services: str, replicas: int) -> None:
        """Start services that do not run, and replicas up to a number.

        Without --no-deps: Compose leaves the containers alone at a later `docker compose up`, because they are as it
        would create them itself. The migration job is a dependency; a deploy runs it apart.
        """
        numbers = {"api": replicas, "migrate": 0}
        needed = releases.with_dependencies(self.model, services)
        scales = [f"--scale={name}={number}" for name, number in numbers.items() if name in needed]
        self._compose_release(release, "up", "--detach", "--no-build", "--no-recreate", *scales, *services)

    def stop(self, replica: Replica) -> None:
        """Let a replica finish its requests, and remove it."""
        with interrupts.deferred():
            with suppress(CommandFailed):  # it may be gone already
                self.docker("stop", replica.id)
            self.docker("rm", "--force", replica.id)

    def run(self, release: Release, service: str, *command: str) -> str:
        """Run a command of a release in a container of its own. Return its standard output; raise CommandFailed.

        Stop the container if a signal ends the wait.
        """
        name = f"{self.project}-{service}-run-{uuid4().hex[:12]}"
        try:
            return self._compose_release(release, "run", "--rm", "--no-deps", "-T", "--name", name, service, *command)
        except KeyboardInterrupt:
            # Without its client, the container would go on: a migration, next to another deploy.
            self._end(name)
            raise

    @contextmanager
    def trial(self, release: Release) -> Iterator[str]:
        """Run a container of the API that no client reaches, and yield its name. Raise CommandFailed.

        The proxy does not find it: `docker compose run` gives it no alias of the service.
        """
        prefix = f"{self.project}-api-trial-"
        # A deploy that was killed leaves its container, which Compose neither shows nor removes.
        filters = self._filters("api", is_oneoff=True)
        for container in self.docker("ps", "--all", "--quiet", f"--filter=name={prefix}", *filters).split():
            self._end(container)
        name = f"{prefix}{uuid4().hex[:12]}"
        options = ("--detach", "--no-deps", "-T", "--env", "DRAIN_SECONDS=0", "--name", name)
        try:
            with interrupts.deferred():
                self._compose_release(release, "run", *options, "api")
            yield name
        finally:
            self._end(name)

    def _end(self, container: str) -> None:
        """Stop and remove a container, if it exists."""
        with interrupts.deferred():
            for command in (("stop", container), ("rm", "--force", container)):
                with suppress(CommandFailed):
                    self.docker(*command)

    def replace(self, release: Release, service: str) -> None:
        """Replace the one container of a service of a release. Raise CommandFailed."""
        with interrupts.deferred():
            for container in self.containers(service, stopped=True):
                self.docker("stop", container)
                self.docker("rm", container)
            self._start(release, service, replicas=len(self.replicas()))

    def project_of_before(self) -> str | None:
        """Return the project of an installation from before compose.prod.yml named its project; None without one.

        It has the name of its folder. COMPOSE_PROJECT_NAME, or a container of this project, says that another one is
        meant.
        """
        names = ("project", "service", "project.working_dir", "project.config_files")
        template = "\t".join(f'{{{{.Label "{_COMPOSE_LABEL}.{name}"}}}}' for name in names)
        lines = self.docker("ps", "--all", "--filter", f"label={_COMPOSE_LABEL}.project", "--format", template)
        containers = [line.split("\t") for line in lines.splitlines()]
        if is_set(self.root, "COMPOSE_PROJECT_NAME") or self.project in [project for project, *_ in containers]:
            return None
        for project, service, folder, files in containers:
            is_ours = service == "pgbouncer" and DEFAULT_FILE in [Path(file).name for file in files.split(",")]
            if is_ours and project == default_project(folder):
                return project
        return None

    def missing_services(self) -> list[str]:
        """Return the services without a running container, except those that a deploy starts itself."""
        own = {"api", "migrate"}
        return [name for name in self.model["services"] if name not in own and not self.containers(name)]

    def start_services(self, names: Sequence[str], release: Release) -> None:
        """Start services that do not run; the exporter with the image of a release."""
        self._start(release, *names, replicas=len(self.replicas()))

    def outdated_services(self) -> list[str]:
        """Return the running services whose definition has changed since they were started."""
        # With --no-deps, Compose starts a service as if it had no dependencies.
        alone = {name: each | {"depends_on": {}} for name, each in self.model["services"].items()}
        valid = [self._hashes(self.model), self._hashes(self.model | {"services": alone})]
        template = f'{{{{index .Config.Labels "{_COMPOSE_LABEL}.config-hash"}}}}'
        return [
            name
            for name in self.model["services"]
            if name not in releases.SERVICES
            for container in self.containers(name)
            if self.docker("inspect", "--format", template, container).strip() not in [each[name] for each in valid]
        ]

    def _hashes(self, model: Model) -> dict[str, str]:
        lines = self._compose_model(model, "config", "--hash", "*").splitlines()
        return dict(line.split() for line in lines)

    # --- images

    @property
    def image(self) -> str:
        """Return the API's image as the Compose file names it. A deploy lets this tag name the release's image."""
        return str(self.model["services"]["api"]["image"])

    def _use(self, release: Release) -> None:
        self.docker("tag", release.image, release.model["services"]["api"]["image"])

    def has_image(self, image: str) -> bool:
        """Return True if the engine has an image."""
        try:
            self.docker("image", "inspect", "--format", "{{.Id}}", image)
        except CommandFailed:
            return False
        return True

    def pull(self, image: str) -> None:
        """Get an image from its registry. Raise CommandFailed."""
        self.docker("pull", "--quiet", image)

    def build(self, version: str) -> str:
        """Build the API's image from the folder, and the missing images of other services. Return its tag."""
        tag = f"{self.image.rpartition(':')[0]}:{version}"
        service = self.model["services"]["api"]["build"]
        options = ["--file", str(Path(service["context"], service["dockerfile"]))]
        for name, value in service.get("args", {}).items():
            options += ["--build-arg", name if value is None else f"{name}={value}"]
        self.docker("build", "--quiet", *options, "--tag", tag, service["context"])
        others = [
            name
            for name, each in self.model["services"].items()
            if name not in releases.SERVICES and "build" in each and not self.has_image(each["image"])
        ]
        if others:
            self._compose("build", "--quiet", *others)
        return tag

    def label(self, release: Release, image: str) -> None:
        """Make the image of a release out of the API's image."""
        labels = [option for name, value in release.labels().items() for option in ("--label", f"{name}={value}")]
        build = ("build", "--quiet", *labels, "--tag", release.image, "-")
        self.docker(*build, stdin=_NO_BUILD.format(image=image))

    def releases(self) -> list[Release]:
        """Return the releases whose images are kept, the oldest first."""
        repository = releases.repository(self.project)
        tags = self.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository).split()
        found = [self._release(tag) for tag in tags if re.search(r":[0-9]+-", tag)]
        return sorted(found, key=lambda release: release.number)

    def _release(self, image: str) -> Release:
        labels = json.loads(self.docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
        return releases.from_labels(labels)

    def current(self) -> Release | None:
        """Return the release of the last operation that succeeded; None if there was none."""
        tag = f"{releases.repository(self.project)}:current"
        return self._release(tag) if self.has_image(tag) else None

    def set_current(self, release: Release) -> None:
        """Remember that a release serves."""
        self._use(release)
        self.docker("tag", release.image, f"{releases.repository(self.project)}:current")

    def remove_image(self, image: str) -> None:
        """Remove a tag, and the image if nothing else needs it."""
        with suppress(CommandFailed):  # a container may still use it
            self.docker("rmi", image)


def is_set(root: Path, variable: str) -> bool:
    """Return True if a variable of Compose is set, in the environment or in `.env`."""
    return bool(os.environ.get(variable)) or variable in env_file(root)


def env_file(root: Path) -> dict[str, str]:
    """Return the names and the values in `.env`, without variables replaced."""
    file = root / ".env"
    text = file.read_text("utf-8-sig", "replace") if file.is_file() else ""
    lines = re.findall(r"^\s*(?:export\s+)?(\w+)\s*[=:](.*)$", text, re.MULTILINE)
    return {name: value.strip().strip("\"'") for name, value in lines}


def names_in_compose_files(root: Path) -> set[str]:
    """Return the names of the variables that Compose files replace: they are all that reaches a container."""
    chosen = os.environ.get("COMPOSE_FILE") or env_file(root).get("COMPOSE_FILE", "")
    paths = {root / name for name in chosen.split(":")}
    paths |= {path for pattern in ("*compose*.yml", "*compose*.yaml") for path in root.glob(pattern)}
    return {name for path in paths if path.is_file() for name in re.findall(r"\$\{?(\w+)", path.read_text())}


def default_project(folder: str) -> str:
    """Return the name of a project whose Compose file has none: that of its folder, without what Compose leaves out."""
    return re.sub(r"[^a-z0-9_-]", "", Path(folder).name.lower()).lstrip("_-")


def _replica(inspected: dict[str, Any]) -> Replica:
    labels = inspected["Config"]["Labels"]
    networks = inspected["NetworkSettings"]["Networks"].values()
    return Replica(
        id=inspected["Id"],
        name=inspected["Name"].lstrip("/"),
        number=int(labels[f"{_COMPOSE_LABEL}.container-number"]),
        release=int(labels.get(releases.NUMBER, 0)),
        status=inspected["State"]["Status"],
        restarts=inspected["RestartCount"],
        addresses=frozenset(network["IPAddress"] for network in networks if network["IPAddress"]),
    )
