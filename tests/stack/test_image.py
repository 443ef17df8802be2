"""The image's build cache."""

import os
import shutil
import subprocess
from pathlib import Path

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine


def test_code_change_rebuilds_without_installing_packages(tmp_path: Path) -> None:
    require_engine()
    context = tmp_path / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml"):
        shutil.copy(PROJECT_ROOT / name, context)
    for name in ("app", "migrations", "ops", "requirements"):
        shutil.copytree(PROJECT_ROOT / name, context / name)

    def build() -> str:
        command = ["docker", "build", "--progress=plain", "--tag=headroom-test-rebuild", str(context)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    try:
        build()
        with (context / "app" / "main.py").open("a") as code:
            code.write(f"\n# {os.urandom(4).hex()}\n")
        log = build()
    finally:
        subprocess.run(["docker", "image", "rm", "headroom-test-rebuild"], capture_output=True, check=False)

    assert f"{_step(log, '--require-hashes --only-binary')} CACHED" in log
    assert f"{_step(log, 'COPY app app')} CACHED" not in log


def _step(log: str, instruction: str) -> str:
    """Return BuildKit's number of the step, as in "#12"."""
    return next(line.split()[0] for line in log.splitlines() if line.startswith("#") and instruction in line)
