"""The API of `tests/load/holding.py` under Gunicorn, as it is deployed, on a database of a test server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import URL

from tests.support.stacks import ROOT, free_port
from tests.support.waiting import eventually


@contextmanager
def holding_api(url: URL, directory: Path, **settings: str) -> Iterator[str]:
    """Its address, while the block runs. Its metrics are in `directory`/metrics-<port>."""
    port = free_port()
    environment = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "SECRET_KEY": "for tests only, for tests only, for tests only",
        "METRICS_DIR": str(directory / f"metrics-{port}"),
        "API_PORT": str(port),
        "LOG_LEVEL": "error",
        "PYTHONPATH": str(ROOT),
    }
    gunicorn = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "ops/gunicorn/gunicorn.conf.py")]
    api = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        return httpx.get(f"{api}/readyz").status_code == 200

    with _running([*gunicorn, "tests.load.holding:create()"], directory, environment | settings, ready):
        yield api


@contextmanager
def exporter_of(api: str, url: URL, directory: Path) -> Iterator[str]:
    """The address of an exporter for the API of that address, while the block runs."""
    port = free_port()
    environment = {
        "EXPORTER_DATABASE_URL": url.render_as_string(hide_password=False),
        "METRICS_DIR": str(directory / f"metrics-{httpx.URL(api).port}"),
        "EXPORTER_PORT": str(port),
    }
    exporter = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        return httpx.get(f"{exporter}/healthz").status_code == 200

    with _running([sys.executable, "-m", "app.cli", "exporter"], directory, environment, ready):
        yield exporter


@contextmanager
def _running(
    command: Sequence[str], directory: Path, environment: dict[str, str], ready: Callable[[], bool]
) -> Iterator[None]:
    with (directory / f"{free_port()}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
        )

        def up() -> bool:
            assert process.poll() is None, Path(log.name).read_text()
            return ready()

        try:
            eventually(up, within=30)
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)
