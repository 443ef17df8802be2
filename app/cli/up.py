"""`headroom up`: run the whole stack as local processes, with one log, until Ctrl-C.

PostgreSQL is embedded unless DATABASE_URL is set. Then come the migrations, the exporter and the API.
"""

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from types import FrameType

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from app.cli.embedded_postgres import embedded_postgres, log
from app.cli.leftovers import PROCESSES_FILE, end_leftovers, note_processes
from app.errors import BudgetExceeded, ConfigurationError, LocalStackFailed
from app.paths import PYPROJECT
from app.settings import Settings, load_settings

PROGRAMS = {
    "exporter": ["-m", "app.cli.main", "exporter"],
    "api": ["-m", "app.cli.main", "api"],
}
Program = subprocess.Popen[bytes]
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READY_WITHIN_SECONDS = 30.0
# Gunicorn needs DRAIN_SECONDS + GRACEFUL_TIMEOUT and a moment. What runs after that is killed.
STOP_MARGIN_SECONDS = 1.0


def up(programs: Mapping[str, list[str]] = PROGRAMS, *, ready_within: float = READY_WITHIN_SECONDS) -> None:
    """Run the stack until a stop signal arrives. Stop every process before returning.

    `programs` are arguments of Python by the name of the program. The API must be ready within `ready_within` seconds.
    Raise ConfigurationError, BudgetExceeded, LocalStackFailed.
    """
    settings = load_settings()
    if "log_format" not in settings.model_fields_set:
        os.environ["LOG_FORMAT"] = "console"
    if settings.api_port == settings.exporter_port:
        raise ConfigurationError(f"EXPORTER_PORT: must differ from API_PORT, got {settings.exporter_port} for both")
    end_leftovers(settings.data_dir / PROCESSES_FILE)
    for name, host, port in (
        ("api", settings.api_host, settings.api_port),
        ("exporter", settings.exporter_host, settings.exporter_port),
    ):
        if name in programs:
            _require_free(f"{name.upper()}_PORT", host, port)

    # Until the programs run, every stop signal acts like Ctrl-C.
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    if settings.secret_key is None:
        os.environ["SECRET_KEY"] = _local_secret_key(settings.data_dir)
    with suppress(KeyboardInterrupt), _database(settings):
        _migrate()
        _run_programs(settings, programs, ready_within)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the shutdown
    raise KeyboardInterrupt


def _require_free(variable: str, host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        # A negative number is an error of the name resolution, which `os.strerror()` does not know.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        step = f"; stop the program that listens there, or set {variable} to another port"
        step = step if error.errno == errno.EADDRINUSE else ""
        raise ConfigurationError(f"{variable}: cannot listen on {host}:{port}: {reason}{step}") from error


def _local_secret_key(data_dir: Path) -> str:
    """Return this machine's secret key. Create it once, so that what it has signed stays valid after a restart."""
    file = data_dir / "secret-key"
    key = file.read_text(encoding="utf-8") if file.exists() else ""
    if not key:  # also after a full disk, or a power failure
        key = secrets.token_hex(32)
        data_dir.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(key, encoding="utf-8")
    return key


@contextmanager
def _database(settings: Settings) -> Iterator[None]:
    """Run a database, if none is configured, and set the environment variables that name it."""
    if settings.database_url is None:
        if settings.migration_database_url is not None:
            raise ConfigurationError("MIGRATION_DATABASE_URL: is set without DATABASE_URL; set both or neither")
        with embedded_postgres(settings.data_dir.absolute()) as urls:
            # The files are for other programs that run meanwhile, such as `headroom seed` and `make migrate`.
            files = {
                "DATABASE_URL": (settings.local_database_url_file, urls.app),
                "MIGRATION_DATABASE_URL": (settings.local_migration_database_url_file, urls.owner),
                "EXPORTER_DATABASE_URL": (settings.local_monitor_database_url_file, urls.monitor),
            }
            for variable, (file, url) in files.items():
                os.environ[variable] = url.render_as_string(hide_password=False)
                file.write_text(os.environ[variable], encoding="utf-8")
            try:
                yield
            finally:
                for file, _ in files.values():
                    file.unlink(missing_ok=True)
    elif settings.database_url.get_backend_name() != "postgresql":
        raise ConfigurationError("DATABASE_URL: `headroom up` needs PostgreSQL; SQLite is for unit tests only")
    else:
        yield


def _migrate() -> None:
    log("migrating")
    try:
        command.upgrade(Config(toml_file=PYPROJECT), "head")
    except (CommandError, SQLAlchemyError) as error:
        if isinstance(error.__cause__, BudgetExceeded):
            raise error.__cause__ from None
        raise LocalStackFailed(f"the migration failed: {error}") from error


def _run_programs(settings: Settings, arguments: Mapping[str, list[str]], ready_within: float) -> None:
    """Run the programs until a stop signal. If one of them exits, stop the others and raise LocalStackFailed."""
    stopping = Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stopping.set())

    api = f"http://{settings.api_host}:{settings.api_port}"
    exporter = f"http://{settings.exporter_host}:{settings.exporter_port}"
    ready = False
    deadline = monotonic() + ready_within
    programs: dict[str, Program] = {}
    try:
        for name in arguments:
            programs[name] = _start(name, arguments[name])
            note_processes(settings.data_dir / PROCESSES_FILE, [program.pid for program in programs.values()])
        while not stopping.wait(timeout=0.1):
            for name, program in programs.items():
                if program.poll() is not None:
                    raise LocalStackFailed(f"the {name} exited unexpectedly with status {program.returncode}")
            if not ready and (ready := _is_ready(f"{api}/readyz")):
                pages = (
                    f"    pools     {exporter}/\n    metrics   {exporter}/metrics\n" if "exporter" in programs else ""
                )
                log(f"ready\n\n    API       {api}/docs\n{pages}")
            elif not ready and monotonic() > deadline:
                raise LocalStackFailed(f"{api}/readyz was not ready within {ready_within:g} s")
        log("stopping")
    finally:
        within = settings.drain_seconds + settings.graceful_timeout + STOP_MARGIN_SECONDS
        _stop(list(programs.values()), within)
        (settings.data_dir / PROCESSES_FILE).unlink(missing_ok=True)


def _start(name: str, arguments: list[str]) -> Program:
    program = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # In a session of its own, it does not receive the terminal's Ctrl-C, and its children are one process group.
        start_new_session=True,
    )
    Thread(target=_copy_output, args=(name, program), name=f"output of the {name}", daemon=True).start()
    return program


def _copy_output(name: str, program: Program) -> None:
    assert program.stdout is not None
    with program.stdout as lines:
        for line in lines:
            print(f"{name:<8} | {line.decode(errors='replace').rstrip()}", flush=True)


def _stop(programs: list[Program], within: float) -> None:
    """Terminate the programs. After `within` seconds, kill what is left of their process groups."""
    for program in programs:
        program.terminate()
    deadline = monotonic() + within
    for program in programs:
        with suppress(subprocess.TimeoutExpired):
            program.wait(timeout=max(0, deadline - monotonic()))
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except OSError:
        return False
