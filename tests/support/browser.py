"""Debian's Chromium, and axe-core from npm; where they are missing, a skip, or with REQUIRE_BROWSER=1 a failure."""

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
# Root needs the first. The others keep Chromium from looking for its maker's hosts.
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
    """The paths of Chromium, its driver and npm."""
    found = [shutil.which(program) for program in ("chromium", "chromedriver", "npm")]
    paths = tuple(path for path in found if path is not None)
    if len(paths) < len(found):
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
    """The source of axe-core, as the lock file has it; npm checks its hash."""
    npm = require_browser()[2]
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NPM_PACKAGES / name, directory)
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=directory, check=True, capture_output=True
    )
    return (directory / "node_modules/axe-core/axe.min.js").read_text()


def violations(chrome: Chrome, axe: str) -> list[str]:
    """What axe-core objects to on the page as it is, a line each."""
    chrome.execute_script(axe)
    found: dict[str, Any] = chrome.execute_async_script(_RUN_AXE)
    return [
        f"{each['id']}: {[node['target'] for node in each['nodes']]} {each.get('help', '')}"
        for each in found["violations"]
    ]
