"""The files that name versions of PostgreSQL and their volumes agree with each other."""

import re
from typing import Any

import pytest
import yaml

from app.paths import PROJECT_ROOT
from tests.support.postgres import DATA, DEFAULT_IMAGE, NEXT_IMAGE

FILES = ("docker-compose.yml", "compose.prod.yml")
JOB = PROJECT_ROOT / "ops/postgres/upgrade/compose.yml"


def service(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((PROJECT_ROOT / file).read_text())["services"]["postgres"])


def volumes(file: str) -> set[str]:
    return set(yaml.safe_load((PROJECT_ROOT / file).read_text())["volumes"])


@pytest.mark.parametrize("file", FILES)
def test_image_and_volume_of_the_server_are_selectable(file: str) -> None:
    postgres = service(file)
    image = postgres["build"]["args"]["POSTGRES_IMAGE"] if "build" in postgres else postgres["image"]

    assert image == f"${{POSTGRES_IMAGE:-{DEFAULT_IMAGE}}}"
    assert postgres["volumes"][0] == f"${{POSTGRES_VOLUME:-postgres}}:{DATA}"


@pytest.mark.parametrize("file", FILES)
def test_server_starts_with_the_check_of_its_volume(file: str) -> None:
    postgres = service(file)

    assert postgres["entrypoint"] == ["bash", "/etc/postgresql/start.sh"]
    assert "./ops/postgres/start.sh:/etc/postgresql/start.sh:ro" in postgres["volumes"]


def test_data_folder_does_not_depend_on_the_image() -> None:
    assert service("docker-compose.yml")["environment"]["PGDATA"] == DATA
    assert f"\nENV PGDATA={DATA}\n" in (PROJECT_ROOT / "ops/postgres/Dockerfile").read_text()


@pytest.mark.parametrize("file", FILES)
def test_upgrade_copies_between_volumes_of_the_file(file: str) -> None:
    mounts = dict(re.findall(r"\$\{UPGRADE_(FROM|TO)_VOLUME:-([\w-]+)\}:/", JOB.read_text()))

    assert mounts == {"FROM": "postgres", "TO": "postgres-18"}
    assert set(mounts.values()) <= volumes(file)


def test_upgrade_is_from_the_default_image_to_the_next() -> None:
    images = dict(re.findall(r"\$\{UPGRADE_(FROM|TO)_IMAGE:-([\w:.-]+)\}", JOB.read_text()))
    script = (PROJECT_ROOT / "ops/postgres/upgrade/run.sh").read_text()

    assert images == {"FROM": DEFAULT_IMAGE, "TO": NEXT_IMAGE}
    assert f"${{UPGRADE_TO_IMAGE:-{NEXT_IMAGE}}}" in script
    assert "${UPGRADE_TO_VOLUME:-postgres-18}" in script
