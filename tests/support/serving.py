"""Run the API under Gunicorn, and the exporter, as processes of the test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.ports import free_port
from tests.support.stacks import EXPORTER_DEADLINE
from tests.support.waiting import check_running, eventually

SECRET_KEY = "for tests only, for tests only, for tests only"


@contextmanager
def holding_api(url: URL, directory: Path, **settings: str) -> Iterator[str]:
    """Serve tests/support/holding.py. Yield its address."""
    with gunicorn("tests.support.holding:create()", url, directory, **settings) as served:
        yield served.address


class Served(NamedTuple):
    """An API that is ready. `pid` is the process id of Gunicorn's master."""

    port: int
    pid: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def gunicorn(
    application: str,
    url: URL,
    directory: Path,
    checkout: Path = PROJECT_ROOT,
    /,
    *,
    options: Sequence[str] = (),
    ready_path: str = "/readyz",
    **settings: str,
) -> Iterator[Served]:
    """Serve an application of this project. Its metrics are in `directory`/metrics-<port>.

    Another `checkout` is served with its own code and its own .venv. `options` are further ones of Gunicorn.
    """
    port = free_port()
    python = sys.executable if checkout == PROJECT_ROOT else str(checkout / ".venv/bin/python")
    environment = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "SECRET_KEY": SECRET_KEY,
        "METRICS_DIR": str(directory / f"metrics-{port}"),
        "API_PORT": str(port),
        "LOG_LEVEL": "error",
        "PYTHONPATH": str(checkout),
    }
    config = str(checkout / "ops/gunicorn/gunicorn.conf.py")
    command = [python, "-m", "gunicorn", "-c", config, *options, application]

    def ready() -> bool:
        return httpx.get(f"http://127.0.0.1:{port}{ready_path}").status_code == 200

    with running(command, directory, environment | settings, ready) as pid:
        yield Served(port, pid)


@contextmanager
def exporter_of(api: str, url: URL, directory: Path) -> Iterator[str]:
    """Run an exporter for the API at the address `api`. Yield the exporter's address."""
    port = free_port()
    environment = {
        "EXPORTER_DATABASE_URL": url.render_as_string(hide_password=False),
        "METRICS_DIR": str(directory / f"metrics-{httpx.URL(api).port}"),
        "EXPORTER_PORT": str(port),
        "EXPORTER_DEADLINE": EXPORTER_DEADLINE,
    }
    exporter = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        return httpx.get(f"{exporter}/healthz").status_code == 200

    with running([sys.executable, "-m", "app.cli.main", "exporter"], directory, environment, ready):
        yield exporter


@contextmanager
def running(
    command: Sequence[str], directory: Path, environment: dict[str, str], ready: Callable[[], bool]
) -> Iterator[int]:
    """Run a process and yield its id when it is ready. Its output goes to a file in `directory`."""
    with (directory / f"{free_port()}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
        )

        def running_and_ready() -> bool:
            check_running(process, Path(log.name))
            return ready()

        try:
            eventually(running_and_ready, within=60)
            yield process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)
