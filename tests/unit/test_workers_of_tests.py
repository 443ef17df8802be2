"""Some tests run pytest in a copy of the project, in workers with locks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import workers


def test_pytest_that_a_test_starts_has_no_lock_in_common_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_directory", None)
    monkeypatch.setenv(workers.VARIABLE, str(tmp_path))

    workers.enter_run_directory()

    assert workers.run_directory() == tmp_path
    inherited = subprocess.run(
        [sys.executable, "-c", f"import os; print({workers.VARIABLE!r} in os.environ)"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert inherited.stdout == "False\n"


def test_this_process_hands_no_lock_on() -> None:
    assert workers.VARIABLE not in os.environ
