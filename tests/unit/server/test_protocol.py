"""What a client gets from the HTTP protocol of a worker, over a real connection."""

import asyncio
import inspect
import json
import re
import socket
import struct
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from fastapi import Body, FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.observability import http_metrics
from app.paths import PYPROJECT
from app.server import keep_alive, protocol
from app.server.protocol import ClientProtocol
from app.web.middleware import BodyLimitMiddleware
from app.web.problems import install_problem_handlers
from tests.support.uvicorn_thread import LIMITS, Serving, serving
from tests.support.waiting import eventually

MEGABYTE = 1_000_000
LOOPS = ("asyncio", "uvloop")


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Do what the path names. Most paths answer without reading the body."""
    assert scope["type"] == "http"
    action, _, argument = scope["path"][1:].partition("/")
    content = b"ok"
    status = 200
    if action == "status":
        status = int(argument)
    elif action == "sleep":
        await asyncio.sleep(float(argument))
    elif action == "block":
        time.sleep(float(argument))  # noqa: ASYNC251 - blocks the event loop on purpose
    elif action == "bytes":
        content = b"x" * int(argument)
    elif action == "headers":
        await read_body(receive)
        content = json.dumps([name.decode() for name, _ in scope["headers"]]).encode()
    elif action == "read":
        content = str(await read_body(receive)).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if action == "head-only":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await send({"type": "http.response.body", "body": content})


async def read_body(receive: Receive) -> int:
    """Return the size of the body, or -1 if the client disconnected."""
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        if not message["more_body"]:
            return size
    return -1


@pytest.fixture(autouse=True)
def fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SWEEP_SECONDS", 0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    """A server whose time limits are too long to be reached."""
    with serving(application) as server:
        yield server


class Client(socket.socket):
    """A connection whose reads have a deadline."""

    def __init__(self, port: int, **options: int) -> None:
        super().__init__()
        for name, value in options.items():
            self.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        self.settimeout(20)
        self.connect(("127.0.0.1", port))

    def send_in_two_parts(self, head: bytes, body: bytes) -> None:
        """Send a head, and its body after the server has read the head."""
        self.sendall(head[:-2] + b"Expect: 100-continue\r\n\r\n")
        assert self.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        self.sendall(body)

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the next response."""
        head = b""
        while b"\r\n\r\n" not in head:
            byte = self.recv(1)
            assert byte, f"closed by the server after {head!r}"
            head += byte
        lines = head.decode().split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        body = b""
        while missing := int(headers["content-length"]) - len(body):
            part = self.recv(missing)
            assert part, "closed by the server within a body"
            body += part
        return int(lines[0].split()[1]), headers, body

    def is_closed(self) -> bool:
        """Wait for the server to close the connection in an orderly way: no reset."""
        return self.recv(1) == b""


def head(target: str, *headers: str, method: str = "POST", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: x", *headers, "", ""]).encode()


GET = head("/", method="GET")


@contextmanager
def refused(reason: str) -> Iterator[None]:
    """Expect that exactly one client is counted as refused for this reason."""
    counter = http_metrics.REFUSED_CLIENTS.labels(reason)
    before = counter._value.get()
    yield
    assert counter._value.get() == before + 1


def assert_problem(response: tuple[int, dict[str, str], bytes], status: int) -> None:
    actual, headers, body = response
    assert (actual, headers["content-type"]) == (status, "application/problem+json")
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    problem = json.loads(body)
    assert (problem["status"], problem["request_id"]) == (status, headers["x-request-id"])


# Early responses.


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("status", [401, 413, 503])
def test_early_response_reaches_client_that_sends_first(loop: str, version: str, status: int) -> None:
    """The client reads only after it has sent 3 MB. Uvicorn resets its connection in the meantime."""
    body = b"x" * 3 * MEGABYTE
    with serving(application, loop=loop) as server, Client(server.port) as client:
        client.sendall(head(f"/status/{status}", f"Content-Length: {len(body)}", version=version))
        client.sendall(body)

        actual, headers, _ = client.response()
        assert (actual, headers["connection"]) == (status, "close")
        assert client.is_closed()


def test_early_response_reaches_client_with_chunked_body(server: Serving) -> None:
    with Client(server.port) as client:
        client.sendall(head("/status/401", "Transfer-Encoding: chunked"))
        client.sendall((b"10000\r\n" + b"x" * 65536 + b"\r\n") * 40 + b"0\r\n\r\n")

        assert client.response()[0] == 401
        assert client.is_closed()


def test_early_response_reaches_urllib(server: Serving) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/status/413", data=b"x" * 10 * MEGABYTE)
    for _ in range(8):
        with pytest.raises(urllib.error.HTTPError, match="413") as error:
            urllib.request.urlopen(request, timeout=20)
        error.value.close()


def test_early_response_keeps_connection_if_rest_of_body_is_small(server: Serving) -> None:
    with Client(server.port) as client:
        client.sendall(head("/status/401", "Content-Length: 20") + b"x" * 10)
        status, headers, _ = client.response()
        assert status == 401
        assert "connection" not in headers
        [connection] = server.protocols
        assert not keep_alive.is_idle(connection), "a leaving worker would close it while its body arrives"

        client.sendall(b"x" * 10)
        eventually(lambda: keep_alive.is_idle(connection), within=60)
        client.sendall(GET)
        assert client.response()[0] == 200


def test_early_response_closes_if_client_waits_for_100(server: Serving) -> None:
    """The client may or may not send the body then, so the server cannot know where the next request begins."""
    with Client(server.port) as client:
        client.sendall(head("/status/401", "Content-Length: 20", "Expect: 100-continue"))

        status, headers, _ = client.response()
        assert (status, headers["connection"]) == (401, "close")
        assert client.is_closed()


def test_early_response_reaches_client_with_unsupported_upgrade(server: Serving) -> None:
    """Java's HTTP client asks for h2c in its first request."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    with Client(server.port) as client:
        client.sendall(head("/status/401", f"Content-Length: {3 * MEGABYTE}", *upgrade) + b"x" * 3 * MEGABYTE)

        assert client.response()[0] == 401


@pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_connection_is_kept_after_body_in_parts(server: Serving, size: int, expect: tuple[str, ...]) -> None:
    with Client(server.port) as client:
        for _ in range(2):
            client.sendall(head("/read", f"Content-Length: {size}", *expect))
            if expect:
                assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(b"x" * (size // 2))
            client.sendall(b"x" * (size // 2))

            status, headers, body = client.response()
            assert (status, int(body)) == (200, size)
            assert "connection" not in headers


class Transport:
    """Records what is written, and that it was closed."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.is_closing = lambda: False

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append(b"<closed>")


async def test_headers_and_body_are_written_together() -> None:
    transport: Any = Transport()
    joining = protocol._JoiningTransport(transport, asyncio.get_running_loop())
    for _ in range(2):
        joining.holds_next = True
        for part in (b"head ", b"body", b" more"):
            joining.write(part)
    await asyncio.sleep(0)
    assert transport.done == [b"head body", b" more"] * 2


async def test_headers_are_written_alone_if_the_body_is_late() -> None:
    transport: Any = Transport()
    joining = protocol._JoiningTransport(transport, asyncio.get_running_loop())
    joining.holds_next = True
    joining.write(b"head")
    assert transport.done == []
    await asyncio.sleep(0)
    joining.write(b"body")
    assert transport.done == [b"head", b"body"]


async def test_headers_are_written_before_the_connection_is_closed() -> None:
    transport: Any = Transport()
    joining = protocol._JoiningTransport(transport, asyncio.get_running_loop())
    joining.holds_next = True
    joining.write(b"head")
    joining.close()
    await asyncio.sleep(0)
    assert transport.done == [b"head", b"<closed>"]


async def test_part_of_a_body_that_is_held_back_may_be_a_buffer() -> None:
    transport: Any = Transport()
    joining = protocol._JoiningTransport(transport, asyncio.get_running_loop())
    joining.holds_next = True  # a pipelined request has arrived
    part = bytearray(b"one ")
    joining.write(memoryview(part))  # type: ignore[arg-type]
    part[:] = b"all "
    joining.write(b"two")
    assert transport.done == [b"one two"]


@pytest.mark.parametrize("loop", LOOPS)
def test_response_without_body_is_sent_before_a_shutdown(loop: str) -> None:
    async def answer_and_stop(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, send)
        cycle: Any = send.__self__  # type: ignore[attr-defined]
        cycle.on_response.__self__.shutdown()

    with serving(answer_and_stop, loop=loop) as server, Client(server.port) as client:
        client.sendall(head("/", method="HEAD"))
        assert client.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("loop", LOOPS)
def test_headers_are_sent_before_a_malformed_body_closes_the_connection(loop: str) -> None:
    async def answer_and_fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        cycle: Any = send.__self__  # type: ignore[attr-defined]
        cycle.on_response.__self__.data_received(b"not a chunk\r\n")

    with serving(answer_and_fail, loop=loop) as server, Client(server.port) as client:
        client.sendall(head("/", "transfer-encoding: chunked"))
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_headers_of_a_stream_reach_the_client_before_its_body(server: Serving) -> None:
    with Client(server.port) as client:
        client.sendall(head("/head-only", method="GET"))
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_connection_is_closed_after_body_in_parts_if_client_asks(server: Serving) -> None:
    with Client(server.port) as client:
        client.send_in_two_parts(head("/read", "Content-Length: 4", "Connection: close"), b"xxxx")

        assert client.response()[2] == b"4"
        assert client.is_closed()


@pytest.mark.parametrize("loop", LOOPS)
def test_half_closed_client_gets_its_responses(loop: str) -> None:
    """As `nc -N` and some load balancers' checks do: they close their direction after the request."""
    with serving(application, loop=loop) as server, Client(server.port) as client:
        client.sendall(head("/sleep/0.1", method="GET") + head("/bytes/1000000", "Connection: close", method="GET"))
        client.shutdown(socket.SHUT_WR)

        assert [client.response()[0], len(client.response()[2])] == [200, 1_000_000]
        assert client.is_closed()


def test_client_that_closes_without_announcing_it_has_left(server: Serving) -> None:
    """Its read is cancelled: docs/decisions/0038."""
    with Client(server.port) as client:
        client.sendall(head("/sleep/60", method="GET"))
        client.shutdown(socket.SHUT_WR)

        assert client.is_closed()


def test_half_closed_client_with_an_incomplete_request_is_closed(server: Serving) -> None:
    for part in (b"GET / HT", head("/read", "Content-Length: 4") + b"xx"):
        with Client(server.port) as client:
            client.sendall(part)
            client.shutdown(socket.SHUT_WR)

            assert client.is_closed()


def test_stream_of_a_client_that_left_ends(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler writes nothing that would tell, and waits for the end of the connection."""
    monkeypatch.setattr(protocol, "HALF_CLOSED_SECONDS", 0.2)
    with Client(server.port) as client:
        client.sendall(head("/head-only", "Connection: close", method="GET"))
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        client.shutdown(socket.SHUT_WR)

        while client.recv(1000):  # the rest of the headers, then the end
            pass


@contextmanager
def lingering(server: Serving) -> Iterator[Client]:
    """Yield a client whose response was sent, and whose body the server discards."""
    with Client(server.port) as client:
        client.sendall(head("/status/413", f"Content-Length: {100 * MEGABYTE}"))
        assert client.response()[0] == 413
        yield client


def test_lingering_close_ends_after_too_many_bytes(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_BYTES", 3 * MEGABYTE)
    with lingering(server) as client, refused("discarded"), pytest.raises(ConnectionError):
        for _ in range(100):
            client.sendall(b"x" * MEGABYTE)


def test_lingering_close_ends_if_nothing_arrives(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_IDLE_SECONDS", 0.2)
    with lingering(server):
        eventually(lambda: server.connections == 0, within=60)


def test_lingering_close_ends_in_time(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
    with lingering(server) as client, pytest.raises(ConnectionError):
        for _ in range(1000):
            client.sendall(b"x" * 1024)
            time.sleep(0.01)


def test_lingering_close_survives_shutdown() -> None:
    with serving(application) as server, lingering(server) as client:
        server.server.should_exit = True
        eventually(lambda: not server.server.servers[0].is_serving(), within=60)
        client.sendall(b"x" * 10 * MEGABYTE)

        assert client.is_closed()


# Size and form of requests.


@pytest.mark.parametrize("parts", [1, 30])
def test_headers_of_limited_size_are_accepted_larger_ones_get_431(server: Serving, parts: int) -> None:
    def ask(size: int) -> tuple[int, dict[str, str], bytes]:
        empty = head("/", "A: ", method="GET")
        request = head("/", "A: " + "x" * (size - len(empty)), method="GET")
        with Client(server.port) as client:
            for start in range(0, len(request), -(-len(request) // parts)):
                client.sendall(request[start : start + -(-len(request) // parts)])
            return client.response()

    assert ask(LIMITS.header_bytes)[0] == 200
    with refused("headers_too_large"):
        response = ask(LIMITS.header_bytes + 1000)
    assert_problem(response, 431)


def test_headers_without_end_get_431(server: Serving) -> None:
    with Client(server.port) as client, refused("headers_too_large"):
        client.sendall(b"GET /where HTTP/1.1\r\nA: " + b"x" * MEGABYTE)

        response = client.response()
        assert_problem(response, 431)
        assert json.loads(response[2])["instance"] == "/where"


def test_request_that_shares_a_packet_with_a_body_is_accepted(server: Serving) -> None:
    """The limit of headers is that of each request, not of a packet. The connection is kept after both."""
    size = 100_000
    with Client(server.port) as client:
        client.send_in_two_parts(head("/read", f"Content-Length: {size}"), b"x" * size + GET)

        assert client.response()[2] == b"100000"
        assert client.response()[0] == 200
        client.sendall(GET)
        assert client.response()[0] == 200


def test_too_many_headers_get_431(server: Serving) -> None:
    extra = [f"A{number}: x" for number in range(LIMITS.header_count - 1)]
    with Client(server.port) as client:
        client.sendall(head("/", *extra, method="GET"))
        assert client.response()[0] == 200

        with refused("headers_too_large"):
            client.sendall(head("/", "B: x", *extra, method="GET"))
            assert_problem(client.response(), 431)


def test_malformed_request_gets_400_problem(server: Serving) -> None:
    with Client(server.port) as client, refused("malformed"):
        client.sendall(b"GET / HTTP/1.1\r\nHost x\r\n\r\n")

        assert_problem(client.response(), 400)
        assert client.is_closed()


def test_malformed_request_behind_another_gets_no_response(server: Serving) -> None:
    """Its response would be taken for that of the request before it."""
    with Client(server.port) as client, refused("malformed"):
        client.sendall(head("/sleep/0.2", method="GET") + b"GET / HTTP/1.1\r\nHost x\r\n\r\n")

        status, headers, _ = client.response()
        assert (status, headers["connection"]) == (200, "close")
        assert client.is_closed()


def test_malformed_chunk_gets_400_problem(server: Serving) -> None:
    with Client(server.port) as client, refused("malformed"):
        client.sendall(head("/read", "Transfer-Encoding: chunked") + b"5\r\nxx")
        client.sendall(b"xxx\r\nZ\r\n")

        assert_problem(client.response(), 400)


def test_trailers_are_not_headers(server: Serving) -> None:
    with Client(server.port) as client:
        client.sendall(
            head("/headers", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
        )

        assert json.loads(client.response()[2]) == ["host", "transfer-encoding"]


@pytest.mark.parametrize("line", [b"a:\r\n", b"a: " + b"x" * 500 + b"\r\n"], ids=["many trailers", "large trailers"])
def test_trailers_without_end_get_400(server: Serving, line: bytes) -> None:
    with Client(server.port) as client, refused("malformed"):
        client.sendall(head("/read", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n")
        client.sendall(line * 100)

        assert_problem(client.response(), 400)


def test_chunk_extensions_without_end_get_400(server: Serving) -> None:
    with Client(server.port) as client, refused("malformed"):
        client.sendall(head("/read", "Transfer-Encoding: chunked") + b"1;")
        client.sendall(b"x" * MEGABYTE)

        assert_problem(client.response(), 400)


def test_body_in_chunks_of_one_byte_is_accepted(server: Serving) -> None:
    with Client(server.port) as client:
        client.sendall(head("/read", "Transfer-Encoding: chunked"))
        for _ in range(20):
            client.sendall(b"1\r\nx\r\n" * 1000)
        client.sendall(b"0\r\n\r\n")

        assert client.response()[2] == b"20000"


# Time.


@pytest.mark.parametrize("sent", [b"G", GET[:-2], b"\r\n" + GET[:20]])
@pytest.mark.parametrize("earlier", [0, 1])
def test_slow_headers_get_408(sent: bytes, earlier: int) -> None:
    with serving(application, header_seconds=0.2) as server, Client(server.port) as client, refused("header_timeout"):
        for _ in range(earlier):
            client.sendall(GET)
            assert client.response()[0] == 200
        client.sendall(sent)

        assert_problem(client.response(), 408)
        assert client.is_closed()


def test_headers_byte_by_byte_get_408() -> None:
    with serving(application, header_seconds=0.2) as server, Client(server.port) as client:
        client.settimeout(0.01)
        client.sendall(b"GET / HTTP/1.1\r\nA: ")

        def response() -> bytes:
            client.sendall(b"x")
            return client.recv(1024)

        assert eventually(response, within=60).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("requests", [0, 1])
@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_idle_connection_is_closed(requests: int, sent: bytes) -> None:
    with serving(application, idle_seconds=0.2) as server, Client(server.port) as client:
        for _ in range(requests):
            client.sendall(GET)
            assert client.response()[0] == 200
        client.sendall(sent)

        assert client.is_closed()


def test_used_connection_is_not_closed_as_idle() -> None:
    with serving(application, idle_seconds=2.5) as server, Client(server.port) as client:
        for _ in range(6):
            client.sendall(GET)
            assert client.response()[0] == 200
            time.sleep(0.5)


def api() -> FastAPI:
    app = FastAPI()
    app.add_middleware(BodyLimitMiddleware, max_bytes=MEGABYTE)
    install_problem_handlers(app)

    @app.post("/length")
    async def length(text: str = Body()) -> int:
        return len(text)

    return app


@pytest.mark.parametrize("sent", [b"", b'"x'])
def test_slow_body_gets_408_of_the_application(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_IDLE_SECONDS", 120)
    with serving(api(), body_seconds=0.2) as server, Client(server.port) as client, refused("body_timeout"):
        client.sendall(head("/length", "Content-Length: 10", "Content-Type: application/json") + sent)

        status, headers, body = client.response()
        assert (status, headers["content-type"]) == (408, "application/problem+json")
        assert json.loads(body)["instance"] == "/length"
        assert headers["connection"] == "close"
        assert client.is_closed()
        # Without a lingering close, which lasts LINGER_IDLE_SECONDS.
        eventually(lambda: server.connections == 0, within=60)


def test_slow_body_gets_408_of_the_server_if_not_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(application, body_seconds=0.2) as server, Client(server.port) as client:
        client.sendall(head("/read", "Content-Length: 10"))

        assert_problem(client.response(), 408)
        assert client.is_closed()


def test_body_with_the_minimum_rate_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends faster than the minimum takes several times BODY_TIMEOUT."""
    monkeypatch.setattr(protocol, "MIN_BYTES_PER_SECOND", 100)
    with serving(api(), body_seconds=1) as server, Client(server.port) as client:
        client.sendall(head("/length", "Content-Length: 10002", "Content-Type: application/json") + b'"')
        for _ in range(10):
            client.sendall(b"x" * 1000)
            time.sleep(0.25)
        client.sendall(b'"')

        assert client.response()[2] == b"10000"


@pytest.mark.parametrize("target", ["/sleep/0.6", "/block/0.6"])
@pytest.mark.parametrize("body", [b"", b"x" * 200_000])
def test_time_of_the_application_does_not_count(target: str, body: bytes) -> None:
    with (
        serving(application, header_seconds=0.2, body_seconds=0.2, send_seconds=0.2, idle_seconds=0.2) as server,
        Client(server.port) as client,
    ):
        client.sendall(head(target, f"Content-Length: {len(body)}") + body)

        assert client.response()[0] == 200


def test_time_in_which_the_event_loop_is_blocked_does_not_count() -> None:
    with (
        serving(application, header_seconds=2) as server,
        Client(server.port) as client,
        Client(server.port) as other,
    ):
        client.sendall(GET[:10])
        eventually(lambda: protocol._Wait.HEADERS in {each._wait for each in server.protocols}, within=60)
        other.sendall(head("/block/3", method="GET"))
        assert other.response()[0] == 200
        client.sendall(GET[10:])

        assert client.response()[0] == 200


def test_client_that_does_not_read_is_disconnected() -> None:
    with (
        serving(application, send_seconds=0.3) as server,
        Client(server.port, SO_RCVBUF=4096) as client,
        refused("send_timeout"),
    ):
        client.sendall(head(f"/bytes/{20 * MEGABYTE}", "Connection: close", method="GET"))
        client.recv(1)

        eventually(lambda: server.connections == 0, within=60)


def test_client_that_reads_slowly_gets_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes bytes from the server only when its buffer is partly empty: not within every SEND_TIMEOUT."""
    with serving(application, send_seconds=0.5) as server, Client(server.port, SO_RCVBUF=4096) as client:
        client.sendall(head(f"/bytes/{8 * MEGABYTE}", "Connection: close", method="GET"))
        received = 0
        until = time.monotonic() + 2
        while time.monotonic() < until:
            received += len(client.recv(2048))
            time.sleep(0.02)
        while data := client.recv(65536):
            received += len(data)

    assert received > 8 * MEGABYTE


# The parts of uvicorn that the protocol relies on.


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "a Unix socket"])
def test_connection_has_the_addresses_that_uvicorn_finds(
    tmp_path: Path, make_loop: Callable[[], asyncio.AbstractEventLoop], host: str
) -> None:
    found: list[object] = []
    config = Config(application, log_config=None)
    config.load()

    class Protocol(ClientProtocol):
        limits = LIMITS

    class Both(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            for protocol_class in (Protocol, HttpToolsProtocol):
                made = protocol_class(config, ServerState(), {})
                made.connection_made(cast("asyncio.Transport", transport))
                found.append((made.server, made.client, made.scheme))
            transport.close()

    async def connect() -> object:
        loop = asyncio.get_running_loop()
        if host == "a Unix socket":
            path = str(tmp_path / "s")
            server: asyncio.Server = await loop.create_unix_server(Both, path)
            reader, writer = await asyncio.open_unix_connection(path)
            addresses: object = ((path, None), None)
        else:
            server = await loop.create_server(Both, host, 0)
            reader, writer = await asyncio.open_connection(host, server.sockets[0].getsockname()[1])
            addresses = (writer.get_extra_info("peername")[:2], writer.get_extra_info("sockname")[:2])
        await reader.read()
        writer.close()
        server.close()
        return addresses

    with asyncio.Runner(loop_factory=make_loop) as runner:
        addresses = runner.run(connect())

    assert found == [(*addresses, "http")] * 2  # type: ignore[misc]


def test_private_names_of_uvicorn_are_known_and_its_version_is_bounded() -> None:
    names = set(re.findall(r"\bself\.(_\w+)", inspect.getsource(protocol.ClientProtocol)))
    uvicorns = {name for name in names if hasattr(HttpToolsProtocol, name)}
    assert uvicorns == {"_should_upgrade", "_start_asgi_task"}
    assert list(inspect.signature(HttpToolsProtocol._start_asgi_task).parameters) == ["self", "cycle", "app"]

    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    (uvicorn,) = [each for each in dependencies if re.match(r"uvicorn\b(?!-)", each)]
    assert re.search(r"<\d", uvicorn), uvicorn


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")


@pytest.mark.parametrize("parts", [1, 2])
def test_body_of_a_request_with_an_unsupported_upgrade_is_read(server: Serving, parts: int) -> None:
    """The parser takes it for a request without a body. The body was lost, or run as another request."""
    body = head("/status/418", method="GET")
    request = head("/read", f"Content-Length: {len(body)}", *H2C)
    with Client(server.port) as client:
        for _ in range(2):
            client.sendall(request + body if parts == 1 else request)
            if parts == 2:
                time.sleep(0.1)  # the body is another packet, as far as possible
                client.sendall(body)
            status, headers, content = client.response()
            assert (status, content) == (200, str(len(body)).encode())
            assert headers.get("connection") != "close"
        client.sendall(head("/headers", *H2C, "Content-Length: 2", "X-Kept: 1") + b"{}" + GET)
        names = json.loads(client.response()[2])
        assert "x-kept" in names
        assert not {"upgrade", "connection"} & set(names)
        assert client.response()[2] == b"ok"


def test_request_with_an_unsupported_upgrade_and_close_is_the_last(server: Serving) -> None:
    with Client(server.port) as client:
        client.sendall(head("/", "Connection: close, Upgrade", "Upgrade: foo", method="GET") + GET)

        assert client.response()[1]["connection"] == "close"
        assert client.is_closed()


@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_handshake_of_a_websocket_with_a_body_is_refused(server: Serving, framing: str) -> None:
    websocket = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    with refused("malformed"), Client(server.port) as client:
        client.sendall(head("/", *websocket, framing, method="GET"))

        assert_problem(client.response(), 400)


@pytest.mark.parametrize("loop", LOOPS)
def test_pipelined_requests_are_read_one_packet_at_a_time(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each queued request takes much more memory than its bytes, and the client decides how many it sends."""
    longest = 0
    begin = ClientProtocol.on_headers_complete

    def measured(self: ClientProtocol) -> None:
        nonlocal longest
        begin(self)
        longest = max(longest, len(self.pipeline))

    monkeypatch.setattr(ClientProtocol, "on_headers_complete", measured)
    block = head("/", f"X-Padding: {'x' * 8000}", method="GET") * 8
    blocks = 30
    with serving(application, loop=loop) as server, Client(server.port) as client:
        for _ in range(blocks):
            client.sendall(block)
            assert client.response()[2] == b"ok"
        for _ in range(7 * blocks):
            assert client.response()[2] == b"ok"

    assert 0 < longest <= protocol.MAX_PIPELINED + 40  # a packet of uvloop's has at most 256 KiB


def test_beginning_of_a_request_after_a_large_body_is_no_large_header(server: Serving) -> None:
    body = b"x" * (LIMITS.header_bytes + 10_000)
    request = head("/read", f"Content-Length: {len(body)}") + body
    with Client(server.port) as client:
        client.sendall(request + GET[:10])
        assert client.response()[2] == str(len(body)).encode()

        client.sendall(GET[10:])
        assert client.response()[2] == b"ok"

        large = head("/", f"X-Large: {'x' * LIMITS.header_bytes}", method="GET")
        client.sendall(request + large[:-100])
        assert client.response()[2] == str(len(body)).encode()
        client.sendall(large[-100:])
        assert_problem(client.response(), 431)


@pytest.mark.parametrize("loop", LOOPS)
def test_pipelined_request_inherits_nothing_of_the_one_before(loop: str) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="inherited nothing")

    async def set_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        content = variable.get().encode()
        variable.set("inherited")
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    with serving(set_and_answer, loop=loop) as server, Client(server.port) as client:
        client.sendall(GET * 3)
        pipelined = [client.response()[2] for _ in range(3)]
        client.sendall(GET)
        later = client.response()[2]

    assert {*pipelined, later} == {b"inherited nothing"}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("answered", [0, 1], ids=["first", "second"])
def test_client_that_leaves_its_pipelined_requests_causes_no_error(
    loop: str, answered: int, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[str] = []
    started, may_answer = threading.Semaphore(0), threading.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/":
            await application(scope, receive, send)
            return
        started.release()
        await asyncio.to_thread(may_answer.wait)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"late"})
        except Exception as error:
            outcomes.append(repr(error))
            raise
        outcomes.append((await receive())["type"])

    with serving(slow, loop=loop) as server, Client(server.port) as client:
        client.sendall(head("/", method="GET") * answered + head("/slow", method="GET") * 3)
        for _ in range(answered):
            assert client.response()[0] == 200
        assert started.acquire(timeout=20)
        # Closed with unread bytes or with a linger of 0, a connection is reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        if answered:  # uvicorn reads nothing while the first one runs, and so does not notice
            eventually(lambda: server.connections == 0, within=60)
        may_answer.set()
        eventually(lambda: server.connections == 0 and bool(outcomes), within=60)

    assert set(outcomes) == {"http.disconnect"}
    assert [record for record in caplog.records if record.exc_info] == []
