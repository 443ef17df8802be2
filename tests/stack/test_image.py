"""The image: its build cache, and the digests of its layers."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine


def copy_context(context: Path) -> Path:
    """Copy what the Dockerfile copies."""
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml"):
        shutil.copy(PROJECT_ROOT / name, context)
    for name in ("app", "migrations", "ops", "requirements"):
        shutil.copytree(PROJECT_ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    return context


def test_code_change_rebuilds_without_installing_packages(tmp_path: Path) -> None:
    require_engine()
    context = copy_context(tmp_path / "context")

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


def test_layers_depend_on_the_files_only(tmp_path: Path) -> None:
    """The second checkout has other times and modes, and nothing of the first build is used again."""
    require_engine()
    first, second = copy_context(tmp_path / "first"), copy_context(tmp_path / "second")
    # Another time in each run: BuildKit does not transfer a file whose size and time are those of an earlier context.
    earlier = time.time() - 1_000_000
    for path in (second, *second.rglob("*")):
        os.utime(path, (earlier, earlier))
        path.chmod(path.stat().st_mode & ~0o077)
    image = f"headroom-test-layers-{os.getpid()}"

    def layers(*options: str) -> list[str]:
        subprocess.run(["docker", "build", "--quiet", f"--tag={image}", *options], capture_output=True, check=True)
        shown = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True)
        found: list[str] = json.loads(shown.stdout)[0]["RootFS"]["Layers"]
        return found

    try:
        assert layers(str(first)) == layers("--no-cache", "--build-arg=VERSION=2", str(second))
    finally:
        subprocess.run(["docker", "image", "rm", image], capture_output=True, check=False)


def _step(log: str, instruction: str) -> str:
    """Return BuildKit's number of the step, as in "#12"."""
    return next(line.split()[0] for line in log.splitlines() if line.startswith("#") and instruction in line)
