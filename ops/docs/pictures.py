"""Take the screenshots in docs/images: `make pictures`.

Runs `headroom up` on free ports with a temporary data directory, adds data and a little load. Then opens the live
page in headless Chromium.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import sleep

import uvloop
from selenium.webdriver import Chrome

from app.paths import PROJECT_ROOT
from tests.support.browser import chromium
from tests.support.load import load
from tests.support.stacks import LocalStack
from tests.support.waiting import eventually

IMAGES = PROJECT_ROOT / "docs/images"
DESKTOP_WIDTH, TOP_WIDTH, PHONE_WIDTH = 1280, 900, 390
# Long enough for the charts of the page to show a shape.
LOAD_SECONDS = 75


@contextmanager
def background_load(api: str) -> Iterator[None]:
    """Send requests in bursts until the block ends."""
    stop = Event()
    urls = [f"{api}{path}" for path in ("/posts?cursor=", "/users/1", "/posts/1", "/posts?q=cache")]

    def run() -> None:
        clients = 4
        while not stop.is_set():
            uvloop.run(load(urls, clients=clients, seconds=3, pause=0.02))
            clients = clients % 20 + 4

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run)
        try:
            yield
        finally:
            stop.set()
            running.result()


def take(chrome: Chrome, width: int, file: Path, *, above: str | None = None) -> None:
    """Save the page at this width: all of it, or what is above the element with this id."""
    size = {"width": width, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": 800})
    sleep(2)  # the page refreshes every second
    whole = "return document.documentElement.scrollHeight"
    part = "return Math.floor(document.getElementById(arguments[0]).getBoundingClientRect().top)"
    height = chrome.execute_script(part if above else whole, above)
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size | {"height": height})
    sleep(2)
    chrome.save_screenshot(str(file))
    print(f"{file.relative_to(PROJECT_ROOT)}: {width} x {height}, {file.stat().st_size // 1000} kB")


def main() -> None:
    """Write live-page.png, live-page-top.png and live-page-phone.png."""
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="headroom-pictures-") as directory,
        LocalStack(Path(directory), API_REPLICA="api-1").running() as stack,
    ):
        stack.seed(users=1_000, posts=5_000)
        with background_load(stack.api), chromium() as chrome:
            chrome.get(stack.exporter)
            eventually(lambda: chrome.find_element("id", "status").text not in ("", "connecting"), within=30)
            sleep(LOAD_SECONDS)
            take(chrome, DESKTOP_WIDTH, IMAGES / "live-page.png")
            take(chrome, TOP_WIDTH, IMAGES / "live-page-top.png", above="conditions-title")
            take(chrome, PHONE_WIDTH, IMAGES / "live-page-phone.png")


if __name__ == "__main__":
    main()
