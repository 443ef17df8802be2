"""pytest plugin: write every test's outcome to the file OUTCOMES, as JSON.

The suite gives the programs that it starts 15 s. A busy machine needs longer.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM_SECONDS = 200

_run = subprocess.run


def _run_patiently(*args: Any, **kwargs: Any) -> Any:
    if kwargs.get("timeout"):
        kwargs["timeout"] = max(kwargs["timeout"], PROGRAM_SECONDS)
    return _run(*args, **kwargs)


subprocess.run = _run_patiently

outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test: of its call, or of a failing set-up or tear-down."""
    if report.when == "call" or report.failed or report.skipped:
        outcome = "error" if report.failed and report.when != "call" else report.outcome
        if outcomes.get(report.nodeid) not in ("failed", "error"):
            outcomes[report.nodeid] = outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file, in the main process of pytest-xdist."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcomes))
