"""Deploy a stack, step by step, and undo what failed."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from ops.deploy.timeline import Timeline
from ops.swarm import checks, releases
from ops.swarm.docker import Docker, Service
from ops.swarm.errors import SwarmError
from ops.swarm.releases import Release, locked
from ops.swarm.stack import Object, Stack

MIGRATE = "migrate"
# A first deploy starts these services later, because they would wait for the database.
AFTER_THE_DATABASE = (MIGRATE, "api")
# A changed service whose tasks need no update (a placement that they satisfy already) gets no status.
NO_UPDATE_SECONDS = 10.0
FAILED_UPDATES = ("paused", "rollback_completed", "rollback_paused")
ENDED_JOBS = ("Failed", "Rejected", "Shutdown", "Orphaned", "Remove")

# What every program of the API logs at its start.
_BUDGET = re.compile(r'connection budget: [^"]+')


@dataclass
class Deployment:
    """One deploy or rollback of a stack.

    `within` limits each wait, in seconds. `smoke` returns what is wrong with the proxies, or None; a deployment without
    it sends no request.
    """

    docker: Docker
    timeline: Timeline
    within: float
    smoke: Callable[[Stack], str | None] | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _rolled_back: set[str] = field(default_factory=set)

    def deploy(self, stack: Stack, *, data: bool, images: Callable[[], Iterable[str]] | None = None) -> Release:
        """Deploy a new version. Raise SwarmError after everything was undone.

        With `data`, replace PostgreSQL and PgBouncer too if they differ from the release before. `images` brings the
        images to the machines first, and returns what it has done for each.
        """
        version = checks.version_of(stack)
        self.docker.require_manager()
        checks.check_places(stack, self.docker.nodes())
        self.timeline.add("places", "every service has its machine")
        self.timeline.facts["version"] = version
        with locked(self.docker, f"deploy of {version}"):
            if images is not None:
                for done in images():
                    self.timeline.add("images", done)
            before = next(reversed(releases.read_all(self.docker)), None)
            if before is not None:
                stack = self._keep(stack, before, data=data)
            self._create(stack.objects)
            if before is None:
                self._first_services(stack)
            self._migrate(stack)
            return self._roll(stack, version, before, "deployed")

    def rollback(self, to: int | None, *, data: bool) -> Release:
        """Deploy a release again: `to`, or the last one of another version than the current one."""
        self.docker.require_manager()
        with locked(self.docker, "rollback"):
            recorded = releases.read_all(self.docker)
            target = _target(recorded, to)
            self.timeline.add("target", f"release {target.number}, {target.version}, of {target.time}")
            stack = self._keep(target.stack(self.docker.stack), recorded[-1], data=data)
            return self._roll(stack, target.version, recorded[-1], f"rolled back to release {target.number}")

    def _keep(self, stack: Stack, before: Release, *, data: bool) -> Stack:
        """Return the stack with the services that are not to be replaced as they are."""
        old = before.stack(self.docker.stack)
        names = sorted(stack.on_request() & old.services.keys())
        differ = [name for name in names if stack.services[name] != old.services[name]]
        if differ and data:
            self.timeline.add("data", f"{', '.join(differ)}: will be replaced, which clients notice")
        elif differ:
            self.timeline.add("data", f"{', '.join(differ)}: differ from this version and stay; data=yes replaces them")
        return stack if data else stack.keeping(names, old)

    def _create(self, objects: Iterable[Object]) -> None:
        known = self.docker.names("config") | self.docker.names("secret")
        new = [each for each in objects if each.name not in known]
        for each in new:
            self.docker.create(each)
        kinds = [each.kind for each in new]
        self.timeline.add("objects", f"{kinds.count('secret')} new secrets, {kinds.count('config')} new configs")

    def _first_services(self, stack: Stack) -> None:
        """Start everything that the migration job and the API need."""
        first = stack.services.keys() - set(AFTER_THE_DATABASE)
        self._apply(stack, first)
        self._wait(first)
        self.timeline.add("first start", ", ".join(sorted(first)))

    def _migrate(self, stack: Stack) -> None:
        """Run the migration job of the new version, and wait for its end. The replicas that run are not touched.

        Before it changes anything, the job checks the budget with the limits of the server and of PgBouncer.
        """
        if MIGRATE not in stack.services:
            return
        if MIGRATE in self.docker.services():
            self.docker.remove([MIGRATE])
        self._apply(stack, [MIGRATE])
        try:
            self._wait_for_migration()
        except KeyboardInterrupt:
            self.docker.remove([MIGRATE])
            raise
        found = _BUDGET.search(self.docker.logs(MIGRATE, lines=1000))
        self.timeline.add("migrate", f"the schema is up to date; {found[0]}" if found else "the schema is up to date")

    def _wait_for_migration(self) -> None:
        deadline = self.clock() + self.within
        while True:
            states = [task.state for task in self.docker.tasks(MIGRATE)]
            if "Complete" in states:
                return
            if any(state in ENDED_JOBS for state in states):
                errors = {task.error for task in self.docker.tasks(MIGRATE) if task.error}
                raise SwarmError(f"the migration failed: {', '.join(errors)}", self.docker.logs(MIGRATE))
            if self.clock() > deadline:
                logs = self.docker.logs(MIGRATE)
                self.docker.remove([MIGRATE])
                raise SwarmError(f"the migration did not end within {self.within:g} s; it was stopped", logs)
            self.sleep(1)

    def _roll(self, stack: Stack, version: str, before: Release | None, remark: str) -> Release:
        """Update all services, verify, and record. Undo it if that fails."""
        services = stack.services.keys() - {MIGRATE}
        try:
            self._apply(stack, services)
            self._wait(services)
            self.timeline.add("services", f"{len(services)} services run {version}")
            self._verify(stack)
        except (SwarmError, KeyboardInterrupt) as error:
            self.timeline.add("failed", str(error) or "interrupted")
            try:
                self._undo(before)
            except SwarmError as second:
                reason = str(error) or "interrupted"
                message = f"{reason}; and going back failed: {second}: run docker stack ps {self.docker.stack}"
                raise SwarmError(message, second.details) from error
            raise
        self._remove_others(stack)
        release = releases.record(self.docker, stack, version, remark)
        self.timeline.facts |= {"release": release.number, "version": version}
        self.timeline.add("release", f"{release.number}, {version}")
        return release

    def _remove_others(self, stack: Stack) -> None:
        """Remove the services that are not in the stack. The migration job stays, for its log."""
        others = sorted(self.docker.services().keys() - stack.services.keys() - {MIGRATE})
        self.docker.remove(others)
        if others:
            self.timeline.add("removed", ", ".join(others))

    def _undo(self, before: Release | None) -> None:
        if before is None:
            self.timeline.add("undo", "nothing to go back to: the services stay as they are")
            return
        stack = before.stack(self.docker.stack)
        services = stack.services.keys() - {MIGRATE}
        self._apply(stack, services)
        self._wait(services)
        self._remove_others(stack)
        self.timeline.add("undo", f"release {before.number} ({before.version}) runs again")

    def _apply(self, stack: Stack, names: Collection[str]) -> None:
        """Create or update these services. With a registry, Swarm looks up the digest of each image."""
        from_registry = ("--resolve-image", "always", "--with-registry-auth")
        self.docker.deploy(stack.only(names), *(from_registry if stack.has_registry else ("--resolve-image", "never")))

    def _wait(self, names: Iterable[str]) -> None:
        """Wait until the update of each service has ended, and every task runs. Raise SwarmError if one failed."""
        wanted = set(names)
        started = self.clock()
        self._rolled_back.clear()
        while True:
            services = self.docker.services()
            open_services = {name for name in wanted if not self._has_settled(services.get(name), started)}
            if not open_services:
                return
            if self.clock() - started > self.within:
                late = ", ".join(sorted(open_services))
                raise SwarmError(f"not finished within {self.within:g} s: {late}", self._errors(open_services))
            self.sleep(1)

    def _has_settled(self, service: Service | None, started: float) -> bool:
        if service is None:
            return False
        if service.update in FAILED_UPDATES:
            raise SwarmError(f"the update of {service.name} failed: {service.message}", self._errors([service.name]))
        if service.update == "rollback_started" and service.name not in self._rolled_back:
            self._rolled_back.add(service.name)
            self.timeline.add("rollback", f"Swarm undoes the update of {service.name}: {service.message}")
        if service.update in (None, "completed"):
            is_late = self.clock() - started > NO_UPDATE_SECONDS
            return service.is_complete and (service.update == "completed" or not service.changed or is_late)
        return False

    def _errors(self, names: Iterable[str]) -> str:
        """Return why tasks of these services do not run."""
        lines = []
        for name in sorted(names):
            errors = {(task.node, task.error) for task in self.docker.tasks(name) if task.error}
            lines += [f"{name} on {node or 'no machine'}: {error}" for node, error in sorted(errors)]
            lines += [self.docker.logs(name)] if errors else []
        return "\n".join(lines)

    def _verify(self, stack: Stack) -> None:
        if self.smoke is None:
            return
        deadline = self.clock() + min(self.within, 30)
        while (problem := self.smoke(stack)) is not None:
            if self.clock() > deadline:
                raise SwarmError(f"the request through the proxy failed: {problem}")
            self.sleep(1)
        self.timeline.add("request", "answered through the proxy")


def _target(recorded: list[Release], to: int | None) -> Release:
    if not recorded:
        raise SwarmError("no release is recorded: deploy first")
    if to is not None:
        found = [each for each in recorded if each.number == to]
        if not found:
            numbers = ", ".join(str(each.number) for each in recorded)
            raise SwarmError(f"release {to} is not recorded; there are: {numbers}")
        return found[0]
    earlier = [each for each in recorded if each.version != recorded[-1].version]
    if not earlier:
        raise SwarmError(f"no release of another version than {recorded[-1].version} is recorded")
    return earlier[-1]


def load(docker: Docker, stack: Stack, hosts: Iterable[str]) -> Iterator[str]:
    """Copy the images of a stack, as far as they differ, to machines. Yield what each machine has got."""
    images = {image: docker("image", "inspect", "--format", "{{.Id}}", image).strip() for image in stack.images()}
    for host in hosts:
        found = docker.run(["docker", "--host", host, "image", "inspect", "--format", "{{.Id}}", *images], input=None)
        missing = sorted(image for image, identity in images.items() if identity not in found.stdout.decode().split())
        if missing:
            docker.pipe(["docker", "save", *missing], ["docker", "--host", host, "load", "--quiet"])
        yield f"{host}: {', '.join(missing) or 'has all images'}"
