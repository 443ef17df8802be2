"""The relay of the fault harness: it fails as a network does."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import pytest

from benchmarks.fault.relay import Relay
from tests.support.ports import free_port

SECONDS = 5.0
# Long enough for data on this machine, if something forwards it.
SILENCE_SECONDS = 0.3


class Echo:
    """A server that puts its name in front of what it receives."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(1000):
                connection.sendall(self._name + data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo(b"1:")
    yield server
    server.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    with Relay(free_port(), echo.port) as relay:
        yield relay


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=SECONDS)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return client.recv(1000)


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_silent_relay_keeps_the_data_until_it_forwards_again(relay: Relay) -> None:
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"
        relay.silence()
        client.settimeout(SILENCE_SECONDS)
        with pytest.raises(TimeoutError):
            ask(client, b"b")
        with connect(relay) as late:
            late.settimeout(SILENCE_SECONDS)
            with pytest.raises(TimeoutError):
                ask(late, b"c")

            relay.forward()
            late.settimeout(SECONDS)
            assert late.recv(1000) == b"1:c"
        client.settimeout(SECONDS)
        assert client.recv(1000) == b"1:b"


def test_refusing_relay_closes_connections_and_accepts_none(relay: Relay) -> None:
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"
        relay.refuse()
        assert is_closed(client)
    with pytest.raises(ConnectionRefusedError):
        connect(relay)

    relay.listen()
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"


def test_cut_relay_closes_connections_and_accepts_new_ones(relay: Relay) -> None:
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"
        relay.cut()
        assert is_closed(client)
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"


@pytest.mark.parametrize("new_only", [True, False])
def test_switched_relay_leads_new_connections_to_the_other(relay: Relay, new_only: bool) -> None:
    other = Echo(b"2:")
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"
        relay.switch_new(other.port) if new_only else relay.switch(other.port)
        if new_only:
            assert ask(client, b"b") == b"1:b"
        else:
            assert is_closed(client)
        with connect(relay) as new:
            assert ask(new, b"a") == b"2:a"
    other.close()


def test_relay_without_a_server_closes_the_connection(relay: Relay, echo: Echo) -> None:
    relay.switch(free_port())
    with connect(relay) as client:
        assert is_closed(client)


def test_closed_connection_is_closed_on_the_other_side(relay: Relay) -> None:
    with connect(relay) as client:
        assert ask(client, b"a") == b"1:a"
        client.shutdown(socket.SHUT_WR)
        assert is_closed(client)
