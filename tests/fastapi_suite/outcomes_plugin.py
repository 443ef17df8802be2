"""pytest plugin: write every test's outcome to the file OUTCOMES, as JSON."""

import json
import os
from pathlib import Path

import pytest

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
