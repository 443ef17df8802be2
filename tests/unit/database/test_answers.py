"""What is known of a connection whose answer is missing."""

import select
import socket
from types import SimpleNamespace

import pytest

from app.database.answers import _closed_by_peer


def test_end_of_stream_is_seen_where_the_system_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = SimpleNamespace(pgconn=SimpleNamespace(socket=ours.fileno()), closed=False)
        assert not _closed_by_peer(connection)

        theirs.shutdown(socket.SHUT_WR)
        assert _closed_by_peer(connection) == hasattr(select, "POLLRDHUP")

        monkeypatch.delattr(select, "POLLRDHUP", raising=False)  # macOS
        assert not _closed_by_peer(connection)
