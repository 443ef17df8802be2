"""ops/postgres/standby.sh, with programs in place of PostgreSQL's."""

import subprocess
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "ops/postgres/standby.sh"
COPY = """
for argument; do case $argument in --pgdata=*) folder=${argument#--pgdata=} ;; esac; done
mkdir "$folder" && echo 17 >"$folder/PG_VERSION"
"""


class Image:
    """An image of PostgreSQL 17 and its volume. `calls` has what pg_basebackup was called with."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.data = folder / "bin", folder / "volume/standby"
        self.programs.mkdir()
        self.data.parent.mkdir()
        self._calls = folder / "calls"
        self.script = folder / "standby.sh"
        secret, passwords = folder / "password", folder / "passwords"
        secret.write_text("0123abcd\n")
        text = SCRIPT.read_text().replace("/run/secrets/replication_password", str(secret))
        self.script.write_text(text.replace("/tmp/replication.pgpass", str(passwords)))
        self.passwords = passwords
        self.add(
            "postgres", 'if [ "$1" = --version ]; then echo "postgres (PostgreSQL) 17.6"; else echo "server: $*"; fi'
        )
        self.add("pg_basebackup", f'echo "$*" >>{self._calls}\n{COPY}')

    def add(self, name: str, command: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (self.programs / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    def start(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.script, "postgres", "-c", "jit=off"],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "PGDATA": str(self.data)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def test_standby_with_an_empty_volume_copies_the_primary_once(image: Image) -> None:
    """The password is in a file that only the server reads, and in no argument."""
    first, second = image.start(), image.start()

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert len(image.calls) == 1
    assert (image.data / "standby.signal").exists()
    assert second.stdout.startswith("server: -c jit=off -c primary_conninfo=host=postgres port=5432")
    assert "-c restore_command=pgbackrest archive-get %f %p" in second.stdout
    assert image.passwords.read_text() == "*:*:*:headroom_replication:0123abcd\n"
    assert image.passwords.stat().st_mode & 0o777 == 0o600
    assert "0123abcd" not in second.stdout + image.calls[0]


def test_copy_that_did_not_end_is_deleted_and_made_again(image: Image) -> None:
    incomplete = image.data.with_name("standby.incomplete")
    incomplete.mkdir()
    (incomplete / "left").touch()

    assert image.start().returncode == 0
    assert not incomplete.exists()
    assert not (image.data / "left").exists()


def test_copy_is_repeated_until_the_primary_admits_it(image: Image) -> None:
    image.add("pg_basebackup", f"[ -e {image.data}.asked ] || {{ touch {image.data}.asked; exit 1; }}\n{COPY}")

    assert image.start().returncode == 0
    assert (image.data / "PG_VERSION").exists()


@pytest.mark.parametrize(
    ("version", "signal", "reason"),
    [
        ("16", True, "it has the data of PostgreSQL 16, and the server is 17"),
        ("17", False, "it was promoted: delete its volume, or it would be a second primary"),
    ],
)
def test_data_that_cannot_follow_the_primary_is_refused(image: Image, version: str, signal: bool, reason: str) -> None:
    image.data.mkdir()
    (image.data / "PG_VERSION").write_text(f"{version}\n")
    if signal:
        (image.data / "standby.signal").touch()

    refused = image.start()

    assert refused.returncode == 1
    assert reason in refused.stderr
    assert "docs/read-replicas.md#create-the-standby-again" in refused.stderr
    assert image.calls == []
