"""Releases: an image of the API with the settings that it was deployed with.

A release is an image too: the API's image plus labels. So the state is where the containers are, on the Docker Engine,
and every machine that deploys to it sees the same. Containers inherit the labels of their image.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# The label of a release's number, by which containers are told apart.
NUMBER = "headroom.release"
PROJECT = "headroom.release.project"
VERSION = "headroom.release.version"
BUILT = "headroom.release.built"
BEFORE = "headroom.release.before"
MODEL = "headroom.release.model"

Model = dict[str, Any]
"""A Compose file as `docker compose config --format json` shows it."""

# What a release keeps of the Compose file. The other services do not belong to it.
SERVICES = ("api", "exporter", "migrate")
_OTHERS = ("networks", "volumes", "secrets", "configs")


@dataclass(frozen=True)
class Release:
    """A release of a Compose project.

    `built` is the tag of the image that a deploy built for it; empty if it was built elsewhere. `before` is the number
    of the release that ran before.
    """

    project: str
    number: int
    version: str
    model: Model = field(repr=False)
    built: str = ""
    before: int = 0

    @property
    def image(self) -> str:
        """Return the tag of the release's image."""
        return f"{repository(self.project)}:{self.number}-{self.version}"

    @property
    def replicas(self) -> int:
        """Return the number of replicas of the API."""
        return int(self.model["services"]["api"].get("deploy", {}).get("replicas", 1))

    @property
    def smoke_path(self) -> str:
        """Return the path that a new replica must answer. A later release may have paths that this one does not."""
        return str(self.model.get("x-deploy", {}).get("smoke_path", "/readyz"))

    @property
    def surge(self) -> int:
        """Return how many replicas may be added during a deploy."""
        return int(self.model["services"]["api"]["environment"].get("API_SURGE") or 0)

    def labels(self) -> dict[str, str]:
        """Return the labels of the release's image."""
        return {
            NUMBER: str(self.number),
            PROJECT: self.project,
            VERSION: self.version,
            BUILT: self.built,
            BEFORE: str(self.before),
            MODEL: json.dumps(self.model, separators=(",", ":")),
        }

    def __str__(self) -> str:
        return f"release {self.number} ({self.version})"


def repository(project: str) -> str:
    """Return the repository of the images of a project's releases."""
    return f"{project}-release"


def from_labels(labels: Mapping[str, str]) -> Release:
    """Return the release that the labels of an image describe."""
    return Release(
        project=labels[PROJECT],
        number=int(labels[NUMBER]),
        version=labels[VERSION],
        model=json.loads(labels[MODEL]),
        built=labels[BUILT],
        before=int(labels[BEFORE]),
    )


def reduced(model: Model) -> Model:
    """Return the part of a Compose file that belongs to a release."""
    services = {name: model["services"][name] for name in SERVICES if name in model["services"]}
    own = {key: value for key, value in model.get("x-deploy", {}).items() if key == "smoke_path"}
    return {"services": services, "x-deploy": own} | {key: model[key] for key in _OTHERS if key in model}


def merged(model: Model, part: Model) -> Model:
    """Return a Compose file with the part of another one that belongs to a release."""
    others = {key: part.get(key, {}) | model.get(key, {}) for key in _OTHERS}
    return model | {"services": model["services"] | part["services"]} | others


def with_dependencies(model: Model, services: Iterable[str]) -> set[str]:
    """Return the services and all that they depend on."""
    found: set[str] = set()
    waiting = list(services)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += model["services"][name].get("depends_on", {})
    return found


def valid_version(text: str) -> str:
    """Return the text as it may stand in the tag of an image."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-60:].lstrip(".-") or "unknown"


def superfluous(releases: list[Release], current: Release | None, keep: int) -> list[Release]:
    """Return the releases that need not be kept: all but the newest ones, the current one and the one before it."""
    newest = sorted(releases, key=lambda release: release.number, reverse=True)[:keep]
    kept = {release.number for release in newest} | ({current.number, current.before} if current else set())
    return [release for release in releases if release.number not in kept]
