"""Which worker takes a new connection. The server is real, the other workers are numbers in the table of shares."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from uvicorn import Config

from app.server import fair_listener as listener
from app.server.fair_listener import FairServer, Share, Shares
from tests.support.load import connect, get
from tests.support.waiting import eventually_async

OURS, ANOTHERS = 1, 2


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def shares() -> Shares:
    shares = Shares()
    shares.enter(OURS)
    shares.enter(ANOTHERS)
    return shares


@pytest.fixture
def sock() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
async def server(shares: Shares, sock: socket.socket) -> AsyncIterator[FairServer]:
    config = Config(answer, lifespan="off", log_config=None, access_log=False)
    server = FairServer(config, Share(shares, OURS))
    serving = asyncio.create_task(server._serve([sock]))
    await eventually_async(lambda: _is(server.started), within=5)
    yield server
    server.should_exit = True
    await serving


async def _is(truth: bool) -> bool:
    return truth


async def test_the_others_see_how_many_connections_a_worker_has(
    server: FairServer, shares: Shares, sock: socket.socket
) -> None:
    connections = [await connect(sock.getsockname()[1]) for _ in range(3)]
    for connection in connections:
        assert (await connection.ask(get("/"))).status == 200
    assert shares.counts[OURS] == 3

    connections.pop().close()
    await eventually_async(lambda: _is(shares.counts[OURS] == 2), within=5)
    for connection in connections:
        connection.close()


async def test_a_worker_that_has_more_leaves_a_new_connection_to_another_for_a_moment_only(
    server: FairServer, shares: Shares, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped_aside: list[float] = []
    pause = listener._Listener._pause_for

    def pause_for(self: Any, seconds: float, then: Any) -> None:
        stepped_aside.append(seconds)
        pause(self, seconds, then)

    monkeypatch.setattr(listener._Listener, "_pause_for", pause_for)
    first = await connect(sock.getsockname()[1])
    assert (await first.ask(get("/"))).status == 200
    assert not stepped_aside

    shares.counts[ANOTHERS] = 0  # it has fewer, and is stuck: nobody else will take what comes
    second = await connect(sock.getsockname()[1])
    assert (await asyncio.wait_for(second.ask(get("/")), 5)).status == 200
    assert stepped_aside == [listener.STEP_ASIDE_SECONDS]

    shares.leave(ANOTHERS)
    third = await connect(sock.getsockname()[1])
    assert (await third.ask(get("/"))).status == 200
    assert len(stepped_aside) == 1, "who is not there is waited for by nobody"
    for connection in (first, second, third):
        connection.close()


@pytest.mark.parametrize(
    ("has", "another", "turns"),
    [(0, 0, 8), (15, 15, 8), (32, 32, 2), (0, 8, 1), (64, -1, 1), (64, 64, 1), (68, 64, 2), (99, 64, 8)],
)
async def test_a_worker_takes_at_a_time_what_brings_it_an_eighth_ahead_of_another(
    server: FairServer,
    shares: Shares,
    sock: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    has: int,
    another: int,
    turns: int,
) -> None:
    taken = []
    shares.counts[ANOTHERS] = another
    accept_some = listener._Listener._accept_some

    def counted(self: Any) -> None:
        shares.counts[OURS] = has
        before = len(self.opening)
        accept_some(self)
        taken.append(len(self.opening) - before)

    monkeypatch.setattr(listener._Listener, "_accept_some", counted)
    clients = [socket.create_connection(sock.getsockname()) for _ in range(8)]  # the loop does not run meanwhile

    await eventually_async(lambda: _is(sum(taken) == 8), within=5)
    assert len([number for number in taken if number]) == turns
    for client in clients:
        client.close()


async def test_a_worker_that_stops_is_one_of_those_that_listen_no_more(
    server: FairServer, shares: Shares, sock: socket.socket
) -> None:
    connection = await connect(sock.getsockname()[1])
    assert (await connection.ask(get("/"))).status == 200
    alone = Share(shares, ANOTHERS)
    alone.listen()
    alone.connections(9)
    assert alone.lead == 8

    server.should_exit = True
    await eventually_async(lambda: _is(sock.fileno() == -1), within=5)

    assert alone.lead == 0
    with pytest.raises(ConnectionError):
        await connection.ask(get("/"))


async def test_without_a_descriptor_it_waits_and_then_goes_on(
    server: FairServer, sock: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Exhausted:
        """Fails once."""

        def accept(self) -> Any:
            server._listeners[0]._socket = sock
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return sock.fileno()

    monkeypatch.setattr(listener, "PAUSE_SECONDS", 0.05)
    server._listeners[0]._socket = Exhausted()  # type: ignore[assignment]

    connection = await connect(sock.getsockname()[1])
    assert (await asyncio.wait_for(connection.ask(get("/")), 5)).status == 200
    assert "Too many open files" in caplog.text
    connection.close()
