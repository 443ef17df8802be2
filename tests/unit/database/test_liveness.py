"""Checks of a connection on a pair of sockets instead of a server."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from app.database.liveness import SocketProbe, ping, shut_down

Sockets = tuple[socket.socket, socket.socket]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """The client's and the server's end of a connection."""
    client, server = socket.socketpair()
    with client, server:
        yield client, server


def asyncpg_connection(client: socket.socket, *, closing: bool = False) -> Any:
    transport = SimpleNamespace(get_extra_info=lambda _: client, is_closing=lambda: closing)
    return SimpleNamespace(is_closed=lambda: False, _transport=transport)


def psycopg_connection(client: socket.socket) -> Any:
    return SimpleNamespace(closed=False, pgconn=SimpleNamespace(socket=client.fileno()))


@pytest.mark.parametrize("connection", [asyncpg_connection, psycopg_connection])
def test_probe_reports_end_of_stream_but_not_silence(sockets: Sockets, connection: Any) -> None:
    client, server = sockets
    probe = SocketProbe(connection(client))
    assert not probe.closed_by_server()
    assert not probe.closed_by_server()

    server.close()
    assert probe.closed_by_server()


@pytest.mark.parametrize("connection", [asyncpg_connection, psycopg_connection])
def test_shut_down_ends_the_stream_in_both_directions(sockets: Sockets, connection: Any) -> None:
    client, server = sockets
    shut_down(connection(client))

    assert client.recv(1) == server.recv(1) == b""


def test_descriptor_of_a_closing_transport_is_not_touched(sockets: Sockets) -> None:
    """Another socket may have the number of the descriptor by now."""
    client, server = sockets
    closing = asyncpg_connection(client, closing=True)

    assert SocketProbe(closing).closed_by_server()
    shut_down(closing)
    server.sendall(b"x")
    assert client.recv(1) == b"x"


def dialect_with_ping(coroutine: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """Return a dialect whose ping awaits the coroutine."""
    return SimpleNamespace(
        driver="psycopg",
        get_driver_connection=lambda connection: connection,
        do_ping=lambda _: await_only(coroutine()),
    )


async def test_ping_answered_while_the_process_was_paused_succeeds(sockets: Sockets) -> None:
    """The answer and the deadline then arrive in the same event-loop iteration."""
    client, server = sockets

    async def receive_after_pause() -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(client, readable.set)
        server.sendall(b"x")
        time.sleep(0.02)  # noqa: ASYNC251 - pauses the process beyond the deadline
        await readable.wait()
        loop.remove_reader(client)

    dialect = dialect_with_ping(receive_after_pause)
    assert await greenlet_spawn(ping, dialect, psycopg_connection(client), within=0.01)


async def test_ping_answered_after_the_shutdown_fails(sockets: Sockets) -> None:
    client, server = sockets

    async def succeed_after_shutdown() -> None:
        received = await asyncio.get_running_loop().run_in_executor(None, server.recv, 1)
        assert received == b"", "the socket is shut down at the deadline"

    dialect = dialect_with_ping(succeed_after_shutdown)
    assert not await greenlet_spawn(ping, dialect, psycopg_connection(client), within=0)
