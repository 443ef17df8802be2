"""Instrumentation packages report the same with fast routes as on plain FastAPI.

They are not among the project's requirements, as nothing of them runs in the product. CI installs, in an environment
of its own, requirements/app.txt and then:

    pytest sentry-sdk opentelemetry-sdk opentelemetry-instrumentation-fastapi
    prometheus-fastapi-instrumentator slowapi logfire[fastapi]

and runs `python -m pytest tests/instrumentation`. These packages patch FastAPI for the whole process. So every scenario
of `scenarios.py` runs in processes of its own: on plain FastAPI, and with fast routes that were installed before and
after the instrumentation.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WHEN = ("never", "first", "last")
LEAST_OPERATIONS = 15

# Scenario: whether its requests take the fast path.
SCENARIOS = {
    "sentry_url": True,
    "sentry_endpoint": True,
    "sentry_status_codes": True,
    "opentelemetry_app": True,
    "opentelemetry_global": True,
    "opentelemetry_hooks": True,
    "native_telemetry": True,
    "native_telemetry_data": True,
    "prometheus": True,
    "slowapi_decorator": True,
    "slowapi_middleware": True,
    "slowapi_asgi_middleware": True,
    # These replace functions that FastAPI calls for each request: FastAPI has to run every operation.
    "logfire": False,
    "logfire_extra_spans": False,
    "wrapt_handle": False,
    "wrapt_serialize_response": False,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_instrumentation_with_fast_routes_reports_as_plain_fastapi(name: str) -> None:
    with ThreadPoolExecutor() as pool:
        plain, first, last = pool.map(lambda when: _record(name, when), WHEN)
    assert plain["output"], "the instrumentation reported nothing"
    for when, fast in (("first", first), ("last", last)):
        for part in ("journal", "output"):
            different = [pair for pair in zip(plain[part], fast[part], strict=False) if pair[0] != pair[1]]
            assert (when, part, different) == (when, part, [])
            assert len(fast[part]) == len(plain[part])
    expected = plain["operations"] if SCENARIOS[name] else 0
    assert plain["operations"] >= LEAST_OPERATIONS
    assert (first["taken"], last["taken"]) == (expected, expected)


def _record(name: str, when: str) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.instrumentation.scenarios", name, when],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    recorded: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return recorded
