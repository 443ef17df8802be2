"""The API of `tests/load/holding.py` under Gunicorn, as it is deployed, on a database of a test server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import URL

from tests.support.stacks import ROOT, free_port
from tests.support.waiting import eventually


@contextmanager
def holding_api(url: URL, directory: Path, **settings: str) -> Iterator[str]:
    """Its address, while the block runs."""
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
    with (directory / f"api-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [*gunicorn, "tests.load.holding:create()"],
            cwd=directory,
            env=os.environ | environment | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        api = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, Path(log.name).read_text()
            return httpx.get(f"{api}/readyz").status_code == 200

        try:
            eventually(ready, within=30)
            yield api
        finally:
            process.terminate()
            process.wait(timeout=20)
