"""What `make bench` compares: this project, another checkout of it, and the rivals, each under Gunicorn."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
from sqlalchemy import URL

from app.paths import PROJECT_ROOT
from tests.support.ports import free_port
from tests.support.serving import SECRET_KEY, Served, gunicorn, running

RIVALS = PROJECT_ROOT / "benchmarks/rivals"
HEADROOM, BASELINE = "headroom", "baseline"


class Variant(NamedTuple):
    """A server to measure. `serve(url, directory, workers=4)` runs it; with `pooled`, behind PgBouncer."""

    name: str
    driver: str
    serve: Callable[..., AbstractContextManager[Served]]
    pooled: bool = False


@contextmanager
def rival(application: str, url: URL, directory: Path, workers: int = 4, **environment: str) -> Iterator[Served]:
    """Serve an application of `benchmarks/rivals`."""
    port = free_port()
    config = str(RIVALS / "gunicorn_conf.py")
    bind = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
    command = [sys.executable, "-m", "gunicorn", "-c", config, *bind, f"benchmarks.rivals.{application}:app"]
    variables = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "SECRET_KEY": SECRET_KEY,
        "PYTHONPATH": str(PROJECT_ROOT),
    }

    def ready() -> bool:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200

    with running(command, directory, variables | environment, ready) as pid:
        yield Served(port, pid)


@contextmanager
def fastify(url: URL, directory: Path, workers: int = 4) -> Iterator[Served]:
    """Serve Fastify with postgres.js. npm installs what the lock file says. Exit without Node.js."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        sys.exit("the variant fastify needs node and npm: install Node.js 20 or newer, or leave it out with --variants")
    installed = directory / "fastify"
    if not installed.exists():
        shutil.copytree(RIVALS / "fastify", installed)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=installed, check=True, capture_output=True)
    port = free_port()
    variables = {
        "DATABASE_URL": url.set(drivername="postgres").render_as_string(hide_password=False),
        "SECRET_KEY": SECRET_KEY,
        "PORT": str(port),
        "WORKERS": str(workers),
    }

    def ready() -> bool:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200

    with running([node, str(installed / "server.mjs")], directory, variables, ready) as pid:
        yield Served(port, pid)


@contextmanager
def headroom(
    url: URL, directory: Path, workers: int = 4, checkout: Path = PROJECT_ROOT, **settings: str
) -> Iterator[Served]:
    """Serve the API as it is deployed, with a log line per request."""
    settings = {"LOG_LEVEL": "info", "LOG_FORMAT": "json", "WEB_CONCURRENCY": str(workers)} | settings
    with gunicorn("app.main:create_app()", url, directory, checkout, **settings) as served:
        yield served


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(HEADROOM, "asyncpg", headroom),
        # Comparable with the rivals, which do not log requests.
        Variant("headroom, LOG_LEVEL=warning", "asyncpg", partial(headroom, LOG_LEVEL="warning")),
        Variant("textbook", "asyncpg", partial(rival, "textbook")),
        Variant("bare", "asyncpg", partial(rival, "bare")),
        Variant("ceiling", "asyncpg", partial(rival, "bare", RESET="0")),
        # Reads share statements, so a worker needs few connections.
        Variant(
            "headroom, 2 connections",
            "asyncpg",
            partial(headroom, LOG_LEVEL="warning", DB_POOL_SIZE="2", DB_MAX_OVERFLOW="0"),
        ),
        Variant("fastify", "asyncpg", fastify),
        Variant("headroom, psycopg, PgBouncer", "psycopg", partial(headroom, DB_POOLER="pgbouncer"), pooled=True),
    )
}
DEFAULT = (HEADROOM, "headroom, LOG_LEVEL=warning", "textbook", "bare", "ceiling", "fastify")


def baseline(checkout: Path) -> Variant:
    """Return another checkout of this project as a variant. Exit if it cannot run on this checkout's database."""
    checkout = checkout.resolve()
    python = checkout / ".venv/bin/python"
    if not python.exists():
        sys.exit(f"--baseline {checkout}: there is no {python}. Run `make .venv/.ready` there.")
    theirs, ours = _schema_heads(python, checkout), _schema_heads(Path(sys.executable), PROJECT_ROOT)
    if theirs != ours:
        sys.exit(f"--baseline {checkout}: its newest migration is {theirs}, this checkout's is {ours}.")
    return Variant(BASELINE, "asyncpg", partial(headroom, checkout=checkout))


def _schema_heads(python: Path, checkout: Path) -> str:
    """Return the newest revision of a checkout's migrations."""
    command = [str(python), "-m", "alembic", "heads"]
    finished = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"`alembic heads` failed in {checkout}:\n{finished.stderr}")
    return finished.stdout.strip()
