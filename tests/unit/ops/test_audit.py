"""ops/supply_chain/audit.py, with a program in place of pip-audit."""

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app.paths import PROJECT_ROOT

CLEAN = {"name": "a", "version": "1", "vulns": []}
VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3)"}


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", PROJECT_ROOT / "ops/supply_chain/audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PIP_AUDIT", tmp_path / "pip-audit")
    return module


def answer(audit: ModuleType, *packages: dict[str, Any], stderr: str = "") -> None:
    """Let pip-audit report these packages, or fail with a text."""
    report = shlex.quote(json.dumps({"dependencies": packages})) if packages else "''"
    audit.PIP_AUDIT.write_text(f"#!/bin/sh\nprintf %s {report}\nprintf %s {shlex.quote(stderr)} >&2\nexit 1\n")
    audit.PIP_AUDIT.chmod(0o755)


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([CLEAN, CLEAN], (0, "r.txt: 2 packages, no known vulnerability")),
        ([CLEAN, VULNERABLE], (1, "r.txt: b 2: CVE-2026-1 (fixed in 2.1)")),
        ([CLEAN, UNKNOWN], (1, "r.txt: c: not audited")),
        ([UNKNOWN, UNKNOWN], (0, "r.txt: skipped: the advisory service knows none of the 2 packages")),
    ],
)
def test_audit_reports_each_outcome(
    audit: ModuleType, packages: list[dict[str, Any]], expected: tuple[int, str]
) -> None:
    answer(audit, *packages)

    assert audit.audit("r.txt") == expected


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("Traceback\nrequests.exceptions.ConnectionError: Max retries exceeded", 0),
        ("ERROR:pip_audit._cli:invalid requirements", 1),
    ],
)
def test_audit_is_skipped_only_if_the_service_is_not_reached(audit: ModuleType, error: str, status: int) -> None:
    answer(audit, stderr=error)

    assert audit.audit("r.txt")[0] == status
    assert error.splitlines()[-1] in audit.audit("r.txt")[1]
