"""Debian's Chromium and axe-core from npm. Tests are skipped without them, or fail with REQUIRE_BROWSER=1."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from app.paths import PROJECT_ROOT

NPM_PACKAGES = PROJECT_ROOT / "tests/stack/page"
# Chromium as root needs --no-sandbox. Most others stop its requests to Google.
SWITCHES = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


_RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run().then(done, (error) => done({violations: [{id: String(error), nodes: []}]}));
"""


@cache
def require_browser() -> tuple[str, str, str]:
    """Return the paths of Chromium, its driver and npm."""
    candidates = [shutil.which(program) for program in ("chromium", "chromedriver", "npm")]
    paths = tuple(path for path in candidates if path is not None)
    if len(paths) < len(candidates):
        reason = "needs chromium, chromedriver and npm (Debian: apt install chromium chromium-driver npm)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return paths  # type: ignore[return-value]


@contextmanager
def chromium() -> Iterator[Chrome]:
    browser, driver, _ = require_browser()
    options = ChromeOptions()
    options.binary_location = browser
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def axe_core(directory: Path) -> str:
    """Return the source of axe-core, installed as the lock file says. npm checks its hash."""
    npm = require_browser()[2]
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NPM_PACKAGES / name, directory)
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=directory, check=True, capture_output=True
    )
    return (directory / "node_modules/axe-core/axe.min.js").read_text()


def violations(chrome: Chrome, axe: str) -> list[str]:
    """Return the accessibility violations that axe-core finds on the page, one line each."""
    chrome.execute_script(axe)
    found: dict[str, Any] = chrome.execute_async_script(_RUN_AXE)
    return [
        f"{violation['id']}: {[node['target'] for node in violation['nodes']]} {violation.get('help', '')}"
        for violation in found["violations"]
    ]
