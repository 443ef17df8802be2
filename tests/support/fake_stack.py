"""A stack without Docker: replicas that a rollout starts and stops, and the releases that a deploy makes."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ops.deploy.errors import CommandFailed
from ops.deploy.releases import Model, Release
from ops.deploy.stack import Replica, Stack

SCHEMA: dict[str, Any] = {
    "code": ["a"],
    "pending": [],
    "state": "same",
    "revisions": ["a"],
    "oldest_after_upgrade": "a",
}
BUDGET = {"checks": [{"demand": 1, "supply": 2, "name": "server connections"}]}


class SimulatedClock:
    """A clock that only `sleep()` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def model(*, replicas: int = 2, surge: int = 1, **environment: str) -> Model:
    """Return the part of a Compose file that a deploy reads."""
    own = {"API_SURGE": str(surge), **environment}
    api = {"image": "headroom:latest", "environment": own, "deploy": {"replicas": replicas}}
    services = {"api": api, "migrate": {"image": "headroom:latest"}, "proxy": {"image": "proxy"}}
    limits = {"ready_seconds": "30", "settle_seconds": "0", "keep": "2"}
    return {"name": "p", "services": services, "x-deploy": limits}


class FakeStack(Stack):
    """Records what a deploy does. `broken` are versions of which no replica becomes ready.

    `listed` is what `docker ps` prints about the containers of other projects.
    """

    def __init__(self, root: Path = Path(), *, replicas: int = 2, surge: int = 1) -> None:
        self.root = root
        self.project = "p"
        self.model = model(replicas=replicas, surge=surge)
        self.broken: set[str] = set()
        self.answers: dict[str, str | CommandFailed] = {}
        self.calls: list[str] = []
        self.requested: list[str] = []
        self.most = 0
        self.listed = ""
        self.health_of_trial = "healthy"
        self.containers_of_the_api: list[Replica] = []
        self._releases: dict[str, Release] = {}
        self._current: Release | None = None
        self._started = 0

    # --- replicas

    def start(self, release: Release, number: int = 1) -> None:
        """Add running replicas."""
        for _ in range(number):
            self._started += 1
            replica = Replica(
                id=f"id-{self._started}",
                name=f"p-api-{self._started}",
                number=self._started,
                release=release.number,
                status="running",
                restarts=0,
                addresses=frozenset({f"10.0.0.{self._started}"}),
            )
            self.containers_of_the_api.append(replica)
        self.most = max(self.most, len(self.containers_of_the_api))

    def releases_of_replicas(self) -> list[int]:
        return [replica.release for replica in self.containers_of_the_api]

    def replicas(self) -> list[Replica]:
        return list(self.containers_of_the_api)

    def serving(self) -> set[str]:
        broken = {release.number for release in self._releases.values() if release.version in self.broken}
        return {
            address
            for replica in self.containers_of_the_api
            if replica.runs and replica.release not in broken
            for address in replica.addresses
        }

    def start_replicas(self, release: Release, number: int) -> None:
        self.calls.append(f"start {release.version}")
        self.start(release, number)

    def stop(self, replica: Replica) -> None:
        self.calls.append(f"stop {replica.name}")
        self.containers_of_the_api.remove(replica)

    def logs(self, container: str) -> str:
        return f"the log of {container}"

    # --- commands

    def docker(self, *arguments: str, stdin: str | None = None) -> str:
        assert arguments[0] == "ps", f"not expected: docker {arguments}"
        return self.listed

    def model_with_jobs(self) -> Model:
        return self.model

    def run(self, release: Release, service: str, *command: str) -> str:
        return self._answer(" ".join((service, *command)))

    @contextmanager
    def trial(self, release: Release) -> Iterator[str]:
        self.calls.append(f"try {release.version}")
        try:
            yield "trial"
        finally:
            self.calls.append("end of the trial")

    def health(self, container: str) -> str:
        return self.health_of_trial

    def execute(self, container: str, *command: str, stdin: str | None = None) -> str:
        if command[0] == "python":
            self.requested.append(command[3])
            return self._answer("request of the trial" if container == "trial" else "request")
        return self._answer(f"old {' '.join(command)}")

    def _answer(self, command: str) -> str:
        self.calls.append(command)
        answer = self.answers.get(command, json.dumps(BUDGET if "budget" in command else SCHEMA))
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    def missing_services(self) -> list[str]:
        return []

    def outdated_services(self) -> list[str]:
        return []

    def replace(self, release: Release, service: str) -> None:
        self.calls.append(f"replace {service}")

    def start_services(self, names: Sequence[str], release: Release) -> None:
        raise AssertionError("not expected")

    # --- images

    def has_image(self, image: str) -> bool:
        return True

    def build(self, version: str) -> str:
        return f"headroom:{version}"

    def label(self, release: Release, image: str) -> None:
        self._releases[release.image] = release

    def releases(self) -> list[Release]:
        return sorted(self._releases.values(), key=lambda release: release.number)

    def current(self) -> Release | None:
        return self._current

    def set_current(self, release: Release) -> None:
        self._current = release

    def remove_image(self, image: str) -> None:
        self._releases.pop(image, None)
