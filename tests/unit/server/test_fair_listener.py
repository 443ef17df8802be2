"""Which worker accepts a new connection. The server is real; the other workers are numbers in the shared counts."""

import asyncio
import errno
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from app.paths import PROJECT_ROOT
from app.replica import Replica
from app.server import fair_listener
from app.server.fair_listener import CountedConnections, FairListener, WorkerCount
from app.server.fair_server import FairServer
from tests.support.load import connect, get
from tests.unit.server.conftest import OTHER_SLOT, OWN_SLOT, serve_in_other_slot, wait_until


async def test_worker_count_is_visible_to_other_workers(
    server: FairServer, replica: Replica, sock: socket.socket
) -> None:
    connections = [await connect(sock.getsockname()[1]) for _ in range(3)]
    for connection in connections:
        assert (await connection.ask(get("/"))).status == 200
    assert replica.connections[OWN_SLOT] == 3

    connections.pop().close()
    await wait_until(lambda: replica.connections[OWN_SLOT] == 2)
    for connection in connections:
        connection.close()


async def test_worker_with_more_connections_defers_once_then_accepts(
    server: FairServer, replica: Replica, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    original = fair_listener.FairListener._pause_for

    def pause_for(self: Any, seconds: float, then: Any) -> None:
        pauses.append(seconds)
        original(self, seconds, then)

    monkeypatch.setattr(fair_listener.FairListener, "_pause_for", pause_for)
    first = await connect(sock.getsockname()[1])
    assert (await first.ask(get("/"))).status == 200
    assert not pauses

    serve_in_other_slot(server, replica, 0)  # a busy worker: it has fewer connections and accepts none
    second = await connect(sock.getsockname()[1])
    assert (await asyncio.wait_for(second.ask(get("/")), 30)).status == 200
    assert not pauses, "one connection more is no reason to wait"
    third = await connect(sock.getsockname()[1])
    assert (await asyncio.wait_for(third.ask(get("/")), 30)).status == 200
    assert pauses == [fair_listener.DEFER_SECONDS]

    replica.clear_slot(OTHER_SLOT)
    fourth = await connect(sock.getsockname()[1])
    assert (await fourth.ask(get("/"))).status == 200
    assert len(pauses) == 1, "a worker that does not listen is no reason to defer"
    for connection in (first, second, third, fourth):
        connection.close()


@pytest.mark.parametrize(
    ("own", "other", "iterations"),
    [(0, 0, 8), (15, 15, 8), (32, 32, 2), (0, 8, 1), (64, -1, 1), (64, 64, 1), (68, 64, 2), (99, 64, 8)],
)
async def test_worker_accepts_up_to_an_eighth_more_than_another_at_once(
    server: FairServer,
    replica: Replica,
    sock: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    own: int,
    other: int,
    iterations: int,
) -> None:
    accepted: list[int] = []
    if other >= 0:
        serve_in_other_slot(server, replica, other)
    original = fair_listener.FairListener._accept_more

    def accept_more(self: Any, _: int, fewest: int) -> None:
        replica.connections[OWN_SLOT] = own + 1
        original(self, own + 1, fewest if other >= 0 else own)
        accepted.append(replica.connections[OWN_SLOT] - own)

    monkeypatch.setattr(fair_listener.FairListener, "_accept_more", accept_more)
    # Connected without an await, so that the event loop finds all of them at once.
    clients = [socket.create_connection(sock.getsockname()) for _ in range(8)]

    await wait_until(lambda: sum(accepted) == 8)
    assert len(accepted) == iterations
    for client in clients:
        client.close()


async def test_stopped_worker_is_ignored_by_other_workers(
    server: FairServer, replica: Replica, sock: socket.socket
) -> None:
    connection = await connect(sock.getsockname()[1])
    assert (await connection.ask(get("/"))).status == 200
    other = WorkerCount(replica, OTHER_SLOT)
    other.start()
    other.update(9)
    assert other.compare() == (9, 1)

    server.should_exit = True
    await wait_until(lambda: sock.fileno() == -1)

    assert other.compare() == (9, 9)
    connection.close()


@pytest.mark.parametrize(("own", "other", "skipped"), [(1, 1, 0), (0, 1, 0), (1, 0, 0), (9, 8, 0), (18, 16, 1)])
async def test_worker_with_more_connections_skips_one_iteration(
    server: FairServer,
    replica: Replica,
    sock: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    *,
    own: int,
    other: int,
    skipped: int,
) -> None:
    iterations: list[int] = []
    original = fair_listener.FairListener._accept_more
    serve_in_other_slot(server, replica, other)
    replica.connections[OWN_SLOT] = own
    compare = WorkerCount.compare

    def counted(self: WorkerCount) -> tuple[int, int]:
        iterations.append(0)
        return compare(self)

    def accept_more(self: Any, own: int, fewest: int) -> None:
        iterations.append(1)
        original(self, own, fewest)

    monkeypatch.setattr(WorkerCount, "compare", counted)
    monkeypatch.setattr(fair_listener.FairListener, "_accept_more", accept_more)
    client = await connect(sock.getsockname()[1])
    await wait_until(lambda: 1 in iterations)

    assert iterations[: skipped + 2] == [0] * (skipped + 1) + [1]
    client.close()


async def test_closed_connection_ends_a_deferral(
    server: FairServer, replica: Replica, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise short connections would wait for a worker that has other work to do."""
    monkeypatch.setattr(fair_listener, "DEFER_SECONDS", 60)
    connections = [await connect(sock.getsockname()[1]) for _ in range(2)]
    for connection in connections:
        await connection.ask(get("/"))
    serve_in_other_slot(server, replica, 0)
    third = await connect(sock.getsockname()[1])
    response = third.ask(get("/"))
    await wait_until(lambda: server._listeners[0].resume in server._count.on_close)

    connections[0].close()

    assert (await asyncio.wait_for(response, 30)).status == 200
    for connection in (connections[1], third):
        connection.close()


async def test_listener_without_file_descriptors_resumes_after_a_pause(
    server: FairServer, sock: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class ExhaustedOnce:
        def _accept(self) -> Any:
            server._listeners[0]._socket = sock
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return sock.fileno()

    monkeypatch.setattr(fair_listener, "EXHAUSTED_PAUSE_SECONDS", 0.05)
    server._listeners[0]._socket = ExhaustedOnce()  # type: ignore[assignment]

    connection = await connect(sock.getsockname()[1])
    assert (await asyncio.wait_for(connection.ask(get("/")), 30)).status == 200
    assert "cannot accept connections: [Errno 24] Too many open files" in caplog.text
    connection.close()


async def test_closed_listener_without_file_descriptors_does_not_listen_again(
    server: FairServer, sock: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    class Exhausted:
        def _accept(self) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

    [listener] = server._listeners
    listener.close()
    listener._socket = Exhausted()  # type: ignore[assignment]

    with socket.create_connection(sock.getsockname()), caplog.at_level("ERROR"):
        listener.accept_all()
    listener._socket = sock

    assert "cannot accept connections" in caplog.text
    assert listener._pause is None


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_every_accepted_connection_is_closed_and_uncounted(
    make_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    """Of clients that get an answer, leave before the accept, send no TLS, or meet an error of the server."""
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", tmp_path], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "tls_certificate", tmp_path / "tls_key")
    replica = Replica()
    replica.add_slot(OWN_SLOT)
    count = WorkerCount(replica, OWN_SLOT)
    connections = CountedConnections(count)
    sock = socket.create_server(("127.0.0.1", 0))
    answered: list[bytes] = []

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            connections.add(self)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)
            self.transport.close()

        def connection_lost(self, _: object) -> None:
            connections.discard(self)

    def fails() -> asyncio.Protocol:
        raise RuntimeError("no protocol")

    def ask() -> None:
        with socket.create_connection(sock.getsockname(), timeout=20) as client:
            client.sendall(b"hello")
            with suppress(ConnectionResetError):
                answered.append(client.recv(5))

    def reset() -> None:
        with socket.create_connection(sock.getsockname()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def open_files() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    async def attack() -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {}
        make: Callable[[], asyncio.Protocol] = Answering
        errors: list[object] = []
        loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
        count.start()
        listener = FairListener(sock, lambda each: loop.connect_accepted_socket(make, each, **options), count)
        await asyncio.to_thread(ask)  # the event loop opens files of its own
        await wait_until(lambda: answered and not connections and not replica.connections[OWN_SLOT])
        before = open_files()
        for client, options, make in (  # noqa: B007 - the listener reads them
            (ask, {}, Answering),
            (reset, {}, Answering),
            (ask, {"ssl": tls}, Answering),
            (ask, {}, fails),
        ):
            for _ in range(5):
                await asyncio.to_thread(client)
            await wait_until(lambda: open_files() == before)
            await wait_until(lambda: not listener.finish())
            assert replica.connections[OWN_SLOT] == 0
        assert [str(error) for error in errors if isinstance(error, RuntimeError)] == ["no protocol"] * 5
        listener.close()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(attack())
    sock.close()
    assert answered[:6] == [b"hello"] * 6


async def test_failed_handshake_does_not_uncount_an_open_connection() -> None:
    """A connection that was closed meanwhile has set the count already."""
    replica = Replica()
    replica.add_slot(OWN_SLOT)
    count = WorkerCount(replica, OWN_SLOT)
    count.start()
    connections = CountedConnections(count)
    connections |= {"one", "two", "three"}
    count.update(len(connections))
    failed = asyncio.get_running_loop().create_future()

    async def open_(connection: socket.socket) -> None:
        with connection:
            await failed

    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as client:
        listener = FairListener(sock, open_, count)
        client.connect(sock.getsockname())
        await wait_until(listener.finish)
        connections.discard("one")
        failed.set_exception(ConnectionResetError())
        await wait_until(lambda: not listener.finish())
        listener.close()

    assert replica.connections[OWN_SLOT] == 2


async def test_failed_handshake_does_not_uncount_one_in_progress() -> None:
    replica = Replica()
    replica.add_slot(OWN_SLOT)
    count = WorkerCount(replica, OWN_SLOT)
    count.start()
    handshakes: list[asyncio.Future[None]] = []

    async def open_(connection: socket.socket) -> None:
        handshakes.append(asyncio.get_running_loop().create_future())
        with connection:
            await handshakes[-1]

    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as first, socket.socket() as second:
        listener = FairListener(sock, open_, count)
        for client in (first, second):
            client.connect(sock.getsockname())
        await wait_until(lambda: listener.finish() == 2)
        handshakes[0].set_exception(ConnectionResetError())

        assert listener.finish() == 1
        assert replica.connections[OWN_SLOT] == 1
        handshakes[1].set_result(None)
        assert listener.finish() == 0
        listener.close()
