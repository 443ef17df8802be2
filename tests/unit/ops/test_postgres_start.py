"""ops/postgres/start.sh, with programs in place of PostgreSQL and the image's entry point."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "ops/postgres/start.sh"


@dataclass(frozen=True)
class Image:
    programs: Path
    data: Path

    def start(self, user: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the script as the container of a Compose file does."""
        self.add("id", f"echo {user}")
        return subprocess.run(
            ["bash", SCRIPT, "postgres", "-c", "jit=off"],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "PGDATA": str(self.data)},
            capture_output=True,
            text=True,
            check=False,
        )

    def add(self, name: str, command: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (self.programs / name).chmod(0o755)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Return an image of PostgreSQL 18 whose entry point prints its arguments, and an empty volume."""
    programs, data = tmp_path / "bin", tmp_path / "data"
    programs.mkdir()
    data.mkdir()
    image = Image(programs, data)
    image.add(
        "postgres",
        """
        if [ "$1" = --version ]; then echo "postgres (PostgreSQL) 18.6 (Debian 18.6-3)"; else echo "server: $*"; fi""",
    )
    image.add("docker-entrypoint.sh", 'echo "entry point: $*"')
    image.add("docker-ensure-initdb.sh", 'echo "initialisation: $*"')
    return image


def test_start_of_a_volume_that_was_upgraded_is_refused(image: Image) -> None:
    """A deploy or a reboot could start it before the operator has set the new volume: its writes would be lost."""
    (image.data / "PG_VERSION").write_text("18\n")
    (image.data / "upgraded").write_text("19\n")

    refused = image.start()

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "this volume was copied to one of PostgreSQL 19; set POSTGRES_IMAGE and POSTGRES_VOLUME" in refused.stderr


@pytest.mark.parametrize("version", [None, "18"])
def test_start_of_an_empty_or_equal_volume_runs_the_entry_point(image: Image, version: str | None) -> None:
    if version:
        (image.data / "PG_VERSION").write_text(f"{version}\n")

    started = image.start()

    assert (started.returncode, started.stdout) == (0, "entry point: postgres -c jit=off\n")


@pytest.mark.parametrize(
    ("version", "output"),
    [
        (None, "initialisation: postgres -c jit=off\nserver: -c jit=off\n"),
        ("18", "server: -c jit=off\n"),
    ],
)
def test_start_in_production_runs_the_server_without_the_entry_point(
    image: Image, version: str | None, output: str
) -> None:
    """The entry point leaves the superuser's password in the environment."""
    if version:
        (image.data / "PG_VERSION").write_text(f"{version}\n")

    started = image.start(user=999)

    assert (started.returncode, started.stdout) == (0, output)


@pytest.mark.parametrize(
    ("version", "next_step"),
    [
        ("17", "run make upgrade-postgres, or set POSTGRES_IMAGE to an image of 17"),
        ("9", "run make upgrade-postgres, or set POSTGRES_IMAGE to an image of 9"),
        ("19", "set POSTGRES_IMAGE to an image of 19"),
    ],
)
def test_start_on_other_data_is_refused_with_one_line(image: Image, version: str, next_step: str) -> None:
    (image.data / "PG_VERSION").write_text(f"{version}\n")

    started = image.start()

    assert (started.returncode, started.stdout) == (1, "")
    [line] = started.stderr.splitlines()
    assert line.startswith(f"PostgreSQL 18 does not start: the volume has the data of PostgreSQL {version}; ")
    assert next_step in line
    assert [(path.name, path.read_text()) for path in image.data.iterdir()] == [("PG_VERSION", f"{version}\n")]


def test_start_on_an_unfinished_upgrade_is_refused(image: Image) -> None:
    (image.data / "upgrade.incomplete").mkdir()

    started = image.start()

    assert started.returncode == 1
    assert "did not finish; run make upgrade-postgres again" in started.stderr
