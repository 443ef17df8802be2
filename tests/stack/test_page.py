"""The live page in a browser: its content in each state, its layout at each width, and its accessibility.

PAGE_SCREENSHOTS names a directory for screenshots.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from time import time
from typing import Any

import httpx
import pytest
import uvicorn
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.exporter.app import page_routes
from app.exporter.status.conditions import CONDITIONS
from tests.support.browser import axe_core, chromium, violations
from tests.support.stacks import Stack
from tests.support.waiting import eventually

DESKTOP, PHONE = (1280, 1700), (360, 1900)
# The states of the fake exporter, and the conditions that fire in each.
FIRING: dict[str, list[str]] = {
    "idle": [],
    "half load": [],
    "exhausted": ["PoolSaturated", "PoolTimeouts", "PoolRejections"],
    "over budget": ["OverBudget"],
}


def document(state: str) -> dict[str, Any]:
    """Return the exporter's document for a stack of two replicas with four workers each in this state."""
    used, idle, overflow, pending = {
        "idle": (0, 8, 0, 0),
        "half load": (30, 10, 6, 0),
        "exhausted": (60, 0, 20, 240),
        "over budget": (3, 5, 0, 0),
    }[state]
    demand, supply, reserved = (156 if state == "over budget" else 64), 92, 8
    other = 2
    now = time()
    numbers = {
        "used": used - overflow,
        "overflow": overflow,
        "idle": idle,
        "other": other,
        "not_open": demand - used - idle - other,
        "free": max(0, supply - demand),
        "reserved": reserved,
    }
    workers = [
        {
            "replica": replica,
            "worker": str(worker),
            "used": used // 8,
            "idle": idle // 8,
            "overflow": overflow // 8,
            "max": 15,
            "size": 5,
            "pending": pending // 8,
            "in_flight": (used + pending) // 8,
            "memory_bytes": 79_000_000 + worker * 1_000_000,
            "started": now - 5000,
        }
        for replica in ("5f2c1e9a8b7d", "web-2")
        for worker in range(1, 5)
    ]
    points = range(300)
    wave = [round(used * (0.6 + 0.4 * (point % 37) / 37)) for point in points]
    return {
        "time": now,
        "interval": 2.0,
        "version": "0.1.0",
        "collectors": [{"name": name, "success": True, "seconds": 0.004} for name in ("replicas", "server", "budget")],
        "limits": [
            {
                "name": "server connections",
                "ok": supply >= demand,
                "demand": demand,
                "supply": supply,
                "headroom": supply - demand,
                "observed": used + idle + other,
                "total": supply + reserved,
                "segments": [{"key": key, "connections": number} for key, number in numbers.items()],
                "terms": [{"name": "api", "connections": 60}, {"name": "max_connections", "connections": 100}],
                "formula": "api = (API_REPLICAS 2 + API_SURGE 0) * WEB_CONCURRENCY 4 * (DB_POOL_SIZE 5 + ...)",
            }
        ],
        "remarks": [],
        "pools": {"used": used, "idle": idle, "overflow": overflow, "pending": pending, "max": 60, "size": 40},
        "server": {"up": True, "connections": used + idle + other, "api": used + idle, "disagreement": 0},
        "workers": workers,
        "durations": [
            {"key": "wait", "p50": 0.00021, "p99": 1.4 if pending else 0.0008, "per_second": 210.5},
            {"key": "use", "p50": 0.004, "p99": 0.05, "per_second": 210.5},
            {"key": "coalesce", "p50": 0.0005, "p99": 0.004, "per_second": 96.0},
            {"key": "create", "p50": None, "p99": None, "per_second": None},
            {"key": "ping", "p50": 0.0004, "p99": 0.002, "per_second": 0.4},
        ],
        "lanes": [
            {"name": "critical", "running": 0, "waiting": 0, "limit": 60, "shed_per_second": 0.0},
            {"name": "normal", "running": used, "waiting": pending, "limit": 60, "shed_per_second": 0.0},
            {"name": "expensive", "running": 1, "waiting": 3, "limit": 1.0, "shed_per_second": 0.4},
        ],
        "moved_statements": 4,
        "coalescing": {
            "reads_per_second": 1204.0,
            "statements_per_second": 96.0,
            "writes_per_second": 210.0,
            "write_statements_per_second": 30.0,
        },
        "history": {
            "time": [now - 600 + 2 * point for point in points],
            "used": wave,
            "open": [number + idle for number in wave],
            "pending": [pending * (point > 200) for point in points],
            "checkouts_per_second": [None, *(7.0 * number for number in wave[1:])],
            "http_per_second": [None, *(7.0 * number for number in wave[1:])],
            "wait_p99": [None, *(0.001 + 0.02 * (point % 19) for point in points[1:])],
        },
        "conditions": [
            {
                "name": condition.name,
                "summary": condition.summary,
                "severity": condition.severity,
                "state": "firing" if condition.name in FIRING[state] else "ok",
                "value": "12 in 5 minutes" if condition.name in FIRING[state] else "0 in 5 minutes",
                "next_step": condition.next_step,
            }
            for condition in CONDITIONS
        ],
    }


class FakeExporter:
    """Serves the exporter's page with the documents of a test."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = document("idle")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        app = Starlette(routes=[*page_routes(), Route("/live.json", self._live)])
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = Thread(target=self.server.run)

    async def _live(self, request: Request) -> Response:
        return JSONResponse(self.document)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@pytest.fixture(scope="module")
def exporter() -> Iterator[FakeExporter]:
    exporter = FakeExporter()
    exporter.thread.start()
    eventually(lambda: exporter.server.started, within=60)
    yield exporter
    exporter.server.should_exit = True
    exporter.thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_core(tmp_path_factory.mktemp("npm"))


@pytest.fixture
def page(browser: Chrome, exporter: FakeExporter) -> Iterator[Chrome]:
    """Open the page in desktop size and in light colours. Afterwards its console must be empty."""
    exporter.document = document("idle")
    emulate(browser, DESKTOP, "light")
    open_page(browser, exporter.url)
    eventually(lambda: text(browser, "status") == "live", within=60)
    yield browser
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def open_page(browser: Chrome, url: str) -> None:
    """Open the page with an empty console. First stop the previous page, which may poll an exporter that is gone."""
    browser.get("about:blank")
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    browser.get(url)


def emulate(browser: Chrome, size: tuple[int, int], scheme: str) -> None:
    """Set the size of the window and the preferred colour scheme."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def text(browser: Chrome, element_id: str) -> str:
    return browser.find_element(By.ID, element_id).text


def texts(browser: Chrome, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def show(browser: Chrome, exporter: FakeExporter, state: str) -> None:
    """Change the exporter's document, and wait until the page shows it."""
    exporter.document = document(state)
    used = exporter.document["pools"]["used"]
    summary = f"{used + exporter.document['pools']['idle']} of 60 connections open"
    demand = f"Demand {exporter.document['limits'][0]['demand']} of"
    eventually(lambda: summary in text(browser, "workers-summary") and demand in text(browser, "limits"), within=60)


def screenshot(browser: Chrome, name: str) -> None:
    if directory := os.environ.get("PAGE_SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(directory) / f"{name.replace(' ', '-')}.png"))


@pytest.mark.parametrize("state", FIRING)
def test_page_shows_each_state_accessibly_at_each_size(
    page: Chrome, exporter: FakeExporter, axe: str, state: str
) -> None:
    show(page, exporter, state)

    shown = exporter.document
    assert shown is not None
    assert text(page, "headroom") == {"over budget": "\N{MINUS SIGN}64"}.get(state, "28")
    assert ("over budget" in text(page, "headroom-label")) == (state == "over budget")
    assert f"Open now: {shown['limits'][0]['observed']} of" in text(page, "hero-detail")
    assert len(texts(page, "#workers tr")) == 8
    firing = texts(page, "#conditions [data-state=firing] .label")
    assert sorted(firing) == sorted(FIRING[state]) == sorted(text(page, "hero-alert").split(" · ") if firing else [])
    assert ("OVER BUDGET" in page.title) == (state == "over budget")
    for size, scheme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")):
        emulate(page, size, scheme)
        screenshot(page, f"{state} {size[0]} {scheme}")
        assert violations(page, axe) == []
        content, window = page.execute_script(
            "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
        )
        assert content <= window, "the page scrolls sideways"


def test_bar_segments_are_proportional_to_their_numbers(page: Chrome, exporter: FakeExporter) -> None:
    show(page, exporter, "half load")

    def widths() -> dict[str, float]:
        bars = page.find_elements(By.CSS_SELECTOR, ".limit .bar > span")
        return {str(bar.get_attribute("class")): bar.size["width"] for bar in bars}

    assert exporter.document is not None
    numbers = {segment["key"]: segment["connections"] for segment in exporter.document["limits"][0]["segments"]}
    total = sum(numbers.values())
    bar_width = page.find_element(By.CSS_SELECTOR, ".limit .bar").size["width"]
    eventually(
        lambda: all(abs(width / bar_width - numbers[key] / total) < 0.01 for key, width in widths().items()), within=30
    )


def test_page_is_stale_until_new_data_arrive(page: Chrome, exporter: FakeExporter, axe: str) -> None:
    frozen = document("half load")
    exporter.document = frozen

    eventually(lambda: text(page, "status").startswith("stale: last update"), within=60)
    assert page.title.startswith("STALE")
    assert page.find_element(By.TAG_NAME, "html").get_attribute("data-stale") is not None
    screenshot(page, "stale")
    assert violations(page, axe) == []

    exporter.document = document("half load")
    eventually(lambda: text(page, "status") == "live", within=60)
    assert not page.title.startswith("STALE")


def test_focus_and_open_details_survive_an_update(page: Chrome, exporter: FakeExporter) -> None:
    summary = page.find_element(By.TAG_NAME, "summary")
    summary.click()
    show(page, exporter, "half load")

    assert page.switch_to.active_element == summary
    assert "API_REPLICAS 2" in page.find_element(By.CSS_SELECTOR, "details code").text


def test_links_and_tables_are_reachable_by_keyboard(page: Chrome) -> None:
    reached = []
    for _ in range(8):
        page.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "key": "Tab", "windowsVirtualKeyCode": 9})
        element = page.switch_to.active_element
        reached.append(element.get_attribute("class") or element.tag_name)

    assert reached[0] == "skip-link"
    assert {"a", "summary", "scroll"} <= set(reached)


def test_page_without_workers_shows_what_to_check(page: Chrome, exporter: FakeExporter) -> None:
    empty = document("idle") | {"workers": [], "remarks": ["the server was not queried: connection refused"]}
    exporter.document = empty

    eventually(lambda: "No worker reports metrics" in text(page, "workers-summary"), within=60)
    assert texts(page, "#remarks li") == ["the server was not queried: connection refused"]


def test_page_shows_how_many_requests_share_statements(page: Chrome, exporter: FakeExporter) -> None:
    both = "1,204 reads per second in 96 shared statements, 12.5 each. 210 rows to insert per second in 30 shared"
    eventually(lambda: text(page, "coalescing") == f"{both} statements, 7.0 each.", within=60)

    exporter.document = document("idle") | {"coalescing": dict.fromkeys(document("idle")["coalescing"])}
    eventually(lambda: text(page, "coalescing") == "No reads and no writes shared a statement.", within=60)


def test_page_renders_the_document_of_a_running_stack(browser: Chrome, stack: Stack) -> None:
    open_page(browser, f"{stack.exporter}/")

    eventually(lambda: text(browser, "status") == "live" and len(texts(browser, "#workers tr")) == 4, within=60)
    assert "of 60 connections open. The server side counts" in text(browser, "workers-summary")
    assert int(text(browser, "headroom")) > 0
    everywhere = [condition for condition in CONDITIONS if not condition.optional]
    assert len(texts(browser, "#conditions li")) == len(everywhere)
    assert len(texts(browser, "#durations tr")) == 5
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_fake_documents_have_the_fields_of_the_real_one(stack: Stack) -> None:
    real = httpx.get(f"{stack.exporter}/live.json").json()

    assert _shape(document("idle")) == _shape(real)


def _shape(value: Any) -> Any:
    """Return the names of the fields at every depth. A list has the fields of its first item."""
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_shape(value[0])]
    return None
