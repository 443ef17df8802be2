"""WebSockets under Gunicorn. tests/stack/test_compose.py does the same in the image, which has other packages."""

import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import URL
from websockets import ConnectionClosed
from websockets.sync.client import connect as connect_websocket

from tests.support.postgres import connect
from tests.support.serving import Served, gunicorn

APPLICATION = "tests.support.websocket_app:create()"


def url(served: Served) -> str:
    return f"ws://127.0.0.1:{served.port}/tables"


def test_websocket_with_a_read_session_reads_what_is_committed(database_url: URL, tmp_path: Path) -> None:
    with (
        gunicorn(APPLICATION, database_url, tmp_path, WEB_CONCURRENCY="1") as served,
        connect_websocket(url(served)) as websocket,
        connect(database_url) as connection,
    ):
        assert websocket.response is not None
        assert websocket.response.headers["X-Request-ID"]
        websocket.send("before")
        assert websocket.recv(timeout=60) == "before: 0"
        connection.execute("CREATE TABLE test_added ()")
        websocket.send("after")
        assert websocket.recv(timeout=60) == "after: 1"


def test_open_websocket_is_closed_with_1012_when_the_server_stops(database_url: URL, tmp_path: Path) -> None:
    """The code says that the service restarts: the client may connect again."""
    with (
        gunicorn(APPLICATION, database_url, tmp_path, WEB_CONCURRENCY="1") as served,
        connect_websocket(url(served)) as websocket,
    ):
        websocket.send("open")
        assert websocket.recv(timeout=60) == "open: 0"
        os.kill(served.pid, signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=60)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
