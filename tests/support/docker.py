"""Find a Docker engine, or skip the tests that need one."""

import os
import shutil
import subprocess
from functools import cache

import pytest

# The tests stop their containers themselves. Ryuk, which stops them after a crash, is another image to pull.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")


@cache
def engine_answers() -> bool:
    """Return True if a Docker engine responds."""
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


def check_required_engine() -> None:
    """With REQUIRE_DOCKER=1, end the test run if there is no Docker engine."""
    if os.environ.get("REQUIRE_DOCKER") == "1" and not engine_answers():
        pytest.exit(
            "REQUIRE_DOCKER=1 is set, but no Docker engine responds: start one, or unset the variable", returncode=1
        )


def require_engine() -> None:
    """Skip the calling test if there is no Docker engine."""
    if not engine_answers():
        pytest.skip("needs a Docker engine")
