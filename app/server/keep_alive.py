"""How to end kept-alive connections without losing a request.

A connection is retired: its next response, or that of the request in progress, has the header `Connection: close`, and
uvicorn closes the connection after it. This module has what the workers know of uvicorn's HTTP protocol (httptools);
tests/unit/server/test_fair_server.py fails if a new version of uvicorn changes it.
"""

import fcntl
import struct
import termios
from typing import Any

from uvicorn.server import ServerState

_CLOSE_HEADER = (b"connection", b"close")


class ClosingState(ServerState):
    """Uvicorn's state for the retired connections of a server: every response has `Connection: close`."""

    def __init__(self, state: ServerState) -> None:
        super().__init__()
        self.connections = state.connections
        self.tasks = state.tasks
        self.copy_headers(state)

    def copy_headers(self, state: ServerState) -> None:
        """Take over the default headers. Uvicorn replaces them every second, because of `Date`."""
        self.default_headers = [*state.default_headers, _CLOSE_HEADER]


def is_http(connection: Any) -> bool:
    """Return True for an HTTP connection, False for a WebSocket."""
    return hasattr(connection, "cycle")


def retire(connection: Any, state: ClosingState) -> None:
    """Close an HTTP connection after the response in progress, or after the next one.

    A response whose headers were sent without `Connection: close` does not count: its client may already be sending the
    next request.
    """
    connection.server_state = state
    if connection.cycle is not None and not connection.cycle.response_started:
        connection.cycle.default_headers = state.default_headers


def restore(connection: Any, state: ServerState) -> None:
    """Keep an HTTP connection that was retired. A request that has begun since then still ends it."""
    connection.server_state = state


def last_request(connection: Any) -> object:
    """Return an object that stands for the last request of a connection; None before the first."""
    return connection.cycle


def is_idle(connection: Any) -> bool:
    """Return True if the last request, if any, has arrived and was answered, and no other one has begun."""
    # The parser replaces the connection's scope at the first byte of a request.
    cycle = connection.cycle
    if cycle is None:
        return connection.scope is None
    return cycle.response_complete and not cycle.more_body and cycle.scope is connection.scope


def close_if_unread_is_empty(connection: Any) -> bool:
    """Close a connection unless its socket has bytes to read: closing it then would reset it. Return True if closed."""
    descriptor = connection.transport.get_extra_info("socket").fileno()
    if descriptor == -1:
        return False
    (unread,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
    if unread:
        return False
    connection.transport.close()
    return True
