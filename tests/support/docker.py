"""Whether containers can be had, and what to do where they cannot."""

import os
import shutil
import subprocess
from functools import cache

import pytest

# We stop what we start; Ryuk, which stops it when the test process is killed, is one more image to pull.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")


@cache
def engine_answers() -> bool:
    """Whether a Docker Engine answers. With REQUIRE_DOCKER=1 a missing one is an error, not a reason to skip."""
    answers = (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )
    if not answers and os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.exit("REQUIRE_DOCKER=1, and no Docker Engine answers", returncode=1)
    return answers


def require_engine() -> None:
    """Skip the calling test where there are no containers."""
    if not engine_answers():
        pytest.skip("needs a Docker Engine")
