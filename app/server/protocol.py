"""The HTTP protocol of a worker: uvicorn's, with early responses that reach the client and with bounds on slow clients.

Uvicorn closes the connection after a response whose request body has not arrived completely. The kernel then resets the
connection, and the client loses the response. Here the server first closes its own direction only, and discards what
the client still sends (a "lingering close"). The limits of a client are checked by one sweep per worker, not by timers
of each request: a request that arrives in one piece pays nothing. Measurements: docs/decisions/0017-client-limits.md.

Private names of uvicorn are used in this module only, and named in tests/unit/server/test_protocol.py. `response.py`
depends on one of its methods.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextvars import copy_context
from enum import Enum
from typing import Any, ClassVar, NamedTuple, cast
from weakref import WeakKeyDictionary

import httptools
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from app.observability import http_metrics
from app.server.response import ResponseCycle
from app.settings import Settings
from app.web.cancellation import end_abandoned
from app.web.middleware import BODY_OVERDUE, protocol_problem

logger = logging.getLogger(__name__)

# Bytes per second that a client must send of a body, and read of a response, on average over the time of the limit.
MIN_BYTES_PER_SECOND = 1024
# The lingering close. Long enough for a client that sends 10 MB before it reads, on a slow network.
LINGER_SECONDS = 30.0
LINGER_BYTES = 64 * 1024 * 1024
# A client that has read its response closes the connection. One that does neither that nor send is not waited for.
LINGER_IDLE_SECONDS = 5.0
# A client that closed its direction gets its response within this time. It is also how long a stream whose client has
# left may go on without a write.
HALF_CLOSED_SECONDS = 10.0
# After an early response, the rest of a body up to this size is discarded and the connection is kept.
KEPT_BODY_BYTES = 65_536
# Bytes of chunk sizes, extensions and trailers for each byte of a chunked body. A body in chunks of one byte has 5.
MAX_FRAMING_RATIO = 8
# Requests that wait on a connection while it is read further. Each takes much more memory than its bytes.
MAX_PIPELINED = 8
SWEEP_SECONDS = 1.0
_LENGTH = b"content-length"  # the parser has checked its value


class ClientLimits(NamedTuple):
    """Limits of a client: sizes in bytes, times in seconds."""

    header_bytes: int
    header_count: int
    header_seconds: float
    body_seconds: float
    send_seconds: float


def http_protocol(settings: Settings) -> type["ClientProtocol"]:
    """Return the protocol class for these settings, for the option `http` of uvicorn.Config."""

    class ConfiguredProtocol(ClientProtocol):
        limits = ClientLimits(
            header_bytes=settings.max_header_bytes,
            header_count=settings.max_headers,
            header_seconds=settings.header_timeout,
            body_seconds=settings.body_timeout,
            send_seconds=settings.send_timeout,
        )

    return ConfiguredProtocol


class _Wait(Enum):
    """What a connection waits for from its client."""

    REQUEST = "request"
    HEADERS = "headers"
    BODY = "body"
    READER = "reader"
    CLOSE = "close"


# These are over at the end of their time. The others go on if the client was fast enough in that time.
_TOTAL = frozenset({_Wait.REQUEST, _Wait.HEADERS})


class _Refused(Exception):
    """Raised in a callback of the parser, to end the parsing of a request that is refused."""


class ClientProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with a lingering close and limits on clients."""

    limits: ClassVar[ClientLimits]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._sweep = _sweep_of(self.loop)
        self._context = copy_context()
        # Bytes of packets that ended within the headers of a request.
        self._header_bytes = 0
        self._measures_headers = False
        # The parser has met a request that asks for an upgrade which the server does not offer.
        self._ignores_upgrade = False
        # A request was complete in the last packet. The headers that arrive began in such a packet.
        self._completed = False
        self._began_after_a_request = False
        self._refusal: tuple[int, str, str] | None = None
        # The request that runs while others wait in the pipeline.
        self._running: RequestResponseCycle | None = None
        # The request whose body is arriving; the bytes of its body, with and without the framing of chunks.
        self._body_cycle: RequestResponseCycle | None = None
        self._framed_body_bytes = 0
        self._body_bytes = 0
        self._keep_alive_after_body = False
        self._lingering_transport: asyncio.Transport | None = None
        # Set when no further request is read: what the client sends is discarded.
        self._discards = False
        self._discarded_bytes = 0
        self._lingers = False
        # The client has closed its direction, and waits for the response; since when, by the clock of the sweep.
        self._half_closed = False
        self._half_closed_since: float | None = None
        # Result of the last sweep: the event that the connection waits for, since when, and the bytes received by then.
        self._wait: _Wait | None = None
        self._wait_subject: object = None
        self._window_start = self._wait_start = 0.0
        self._window_bytes = 0

    # Called by the event loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin a connection. As in uvicorn, which makes five system calls for addresses that the transport has."""
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server = _local_address(transport)
        self.client = _remote_address(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self._joining = _JoiningTransport(transport, self.loop)
        self._sweep.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection. Uvicorn tells only the newest request, which may still wait in the pipeline."""
        self._sweep.discard(self)
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        else:
            running = self.cycle
        if running is not None and not running.response_complete:
            end_abandoned(running.scope)
        self._lingering_transport = None  # it refers to this object

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, then check the incomplete part of a request."""
        if self._discards:
            self._discard(data)
            return
        # Rare, so only then is the size of each request's headers computed.
        is_large = self._header_bytes + len(data) > self.limits.header_bytes
        self._measures_headers = is_large or self._began_after_a_request
        self._completed = False
        self._parse(data)
        if self._body_cycle is not None and not self._body_cycle.more_body:
            self._body_ended(self._body_cycle)
        cycle = self.cycle
        if cycle is None or cycle.scope is not self.scope:  # the headers are incomplete
            if self._completed:  # most of the packet's bytes may be of that request
                self._header_bytes = 0
                self._began_after_a_request = True
            else:
                self._header_bytes += len(data)
            if self._header_bytes > self.limits.header_bytes and not self._discards:
                self._refuse(*_headers_too_large(self.limits))
            return
        self._header_bytes = 0
        self._began_after_a_request = False
        if cycle.more_body and not cycle.response_complete:
            self._body_continues(cycle, len(data))

    def _parse(self, data: bytes) -> None:
        """Parse the received bytes, as in uvicorn, but ignore an upgrade that the server does not offer.

        The parser takes a request with `Upgrade` for one without a body. The body would be lost, or run as a request.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif self._ignores_upgrade:
                self._ignores_upgrade = False
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self._parse(head + data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _head_without_upgrade(self) -> bytes:
        kept = [(name, value) for name, value in self.headers if name not in (b"connection", b"upgrade")]
        tokens = [
            token.strip()
            for name, value in self.headers
            if name == b"connection"
            for token in value.split(b",")
            if token.strip().lower() not in (b"upgrade", b"http2-settings")
        ]
        lines = [b"%b: %b\r\n" % header for header in (*kept, *((b"connection", token) for token in tokens))]
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's protocols may keep it open
        """Keep the connection for the response if the client has closed its own direction after its last request.

        Uvicorn closes it, and the response is lost. A client that has left looks the same: the first write tells, or
        the sweep after HALF_CLOSED_SECONDS. So this holds only for HTTP/1.0 and after `Connection: close`. A client
        that wanted to keep its connection has left, and its read is cancelled.
        """
        cycle = self.cycle
        if (
            self._discards
            or cycle is None
            or cycle.response_complete
            or cycle.more_body
            or cycle.keep_alive
            or cycle.scope is not self.scope
        ):
            return None
        self._half_closed = True
        return True

    # Called by the parser.

    def on_headers_complete(self) -> None:
        """Refuse too many or too large headers, or begin the request."""
        if len(self.headers) > self.limits.header_count:
            self._refusal = _too_many_headers(self.limits)
            raise _Refused
        if self._measures_headers and self._headers_size() > self.limits.header_bytes:
            self._refusal = _headers_too_large(self.limits)
            raise _Refused
        if self.parser.should_upgrade():
            names = {name for name, _ in self.headers}
            if not self._should_upgrade() and b"upgrade" in names:  # without the header: CONNECT
                self._ignores_upgrade = True
                return
            if b"transfer-encoding" in names or any(int(value) for name, value in self.headers if name == _LENGTH):
                self._refusal = (400, "A request for a WebSocket or a tunnel has no body.", "malformed")
                raise _Refused
        earlier = self.cycle
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is not earlier and cycle is not None:  # not an upgrade to a WebSocket
            cycle.__class__ = ResponseCycle  # uvicorn names its own; the task of the request has not begun
            cycle.transport = cast("asyncio.Transport", self._joining)
            self._joining.holds_next = True
        if len(self.pipeline) == 1:
            self._running = earlier

    def on_chunk_header(self) -> None:
        """Keep trailers, which follow the chunks, out of the headers of the request."""
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Count and pass on a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    # Called by uvicorn.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin a request in the context of the connection.

        A pipelined request would inherit the lane and the deadline of the one before, which begins it.
        """
        self._context.run(super()._start_asgi_task, cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, or whose headers are refused."""
        if not self._discards:
            self._refuse(*(self._refusal or (400, "The request is not valid HTTP.", "malformed")))

    def on_response_complete(self) -> None:
        """Begin the next pipelined request. As in uvicorn, without its timer: the sweep ends idle connections."""
        self.server_state.total_requests += 1
        # A response without a body, as to HEAD. A shutdown or a refusal may close the connection before the next
        # event-loop iteration.
        self._joining.flush()
        if self._lingers or self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._running = cycle
            self._start_asgi_task(cycle, app)
        if len(self.pipeline) < MAX_PIPELINED:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """Note the end of a request, also if it was answered before: uvicorn notes it only before the response."""
        if self._ignores_upgrade:
            return
        self._completed = True
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:  # a WebSocket has no cycle
            self.cycle.more_body = False

    def handle_websocket_upgrade(self) -> None:
        """Give the connection to uvicorn's WebSocket protocol."""
        self._sweep.discard(self)
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """Close the connection after its response. A lingering close ends by itself."""
        if not self._lingers:
            self._keep_alive_after_body = False
            super().shutdown()

    # The request body.

    def _body_continues(self, cycle: RequestResponseCycle, received: int) -> None:
        """Check the body, which is incomplete. On the first call, prepare the connection for an early response."""
        if cycle is not self._body_cycle:
            self._body_cycle = cycle
            self._framed_body_bytes, self._body_bytes = 0, len(cycle.body)
            self._keep_alive_after_body = cycle.keep_alive
            self._close_by_lingering(cycle)
            # A client that waits for "100 Continue" may or may not send the body after another response.
            if cycle.waiting_for_100_continue or _content_length(cycle) > KEPT_BODY_BYTES:
                cycle.keep_alive = False
        self._framed_body_bytes += received
        framing = self._framed_body_bytes - self._body_bytes
        if (
            framing > 2 * self.limits.header_bytes + MAX_FRAMING_RATIO * self._body_bytes
            or len(self.headers) > self.limits.header_count
        ):
            self._refuse(400, "The chunks or trailers of the request body are too large.", "malformed")

    def _body_ended(self, cycle: RequestResponseCycle) -> None:
        """Let the connection be closed at once, or kept: no byte of the request is unread."""
        self._body_cycle = None
        cycle.transport = cast("asyncio.Transport", self._joining)
        if self._keep_alive_after_body and not cycle.response_started:
            cycle.keep_alive = True

    # Closing.

    def _close_by_lingering(self, cycle: RequestResponseCycle) -> None:
        if self._lingering_transport is None:
            transport = _LingeringTransport(self._joining, self._linger)
            self._lingering_transport = cast("asyncio.Transport", transport)
        cycle.transport = self._lingering_transport

    def _linger(self) -> None:
        """Close our direction of the connection, and discard what the client sends until it closes its own."""
        if self._lingers or self.transport.is_closing():
            return
        self._lingers = self._discards = True
        # The received bytes belong to no request: the connection is not idle, and waits for no response.
        self.scope = cast("Any", {})
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # not with TLS
            self.transport.write_eof()

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > LINGER_BYTES:
            self._abort("discarded")

    def _refuse(self, status: int, detail: str, reason: str) -> None:
        """Answer with a problem and close, if a response can still be sent for this request."""
        self._note(reason)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.scope is not self.scope:
                # The responses of earlier requests come first, and the last of them closes the connection.
                self._discards = True
                cycle.keep_alive = False
                self._close_by_lingering(cycle)
                return
            cycle.disconnected = True
            cycle.message_event.set()
            self._joining.flush()  # "100 Continue", or the headers of a response
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        path = self.url.partition(b"?")[0].decode("ascii", "replace") if self.scope else ""
        headers, body = protocol_problem(status, detail, path)
        headers = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + body)
        if status == 408:
            self.transport.close()
        else:
            self._linger()

    def _abort(self, reason: str) -> None:
        self._note(reason)
        self.transport.abort()

    def _note(self, reason: str) -> None:
        http_metrics.count_refused_client(reason)
        logger.info("closing the connection of client %s: %s", self.client[0] if self.client else "unknown", reason)

    def _headers_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    # Called by the sweep.

    def check(self, now: float) -> None:
        """End the connection if its client has taken too long. `now` is in seconds of the sweep's clock."""
        if self._half_closed and self.transport.get_write_buffer_size():
            self._half_closed_since = None  # it reads: the limit of a slow reader applies
        elif self._half_closed:
            self._half_closed_since = self._half_closed_since or now
            if now - self._half_closed_since >= HALF_CLOSED_SECONDS:
                self.transport.close()
                return
        found = self._awaited()
        if found is None:
            self._wait = self._wait_subject = None
            return
        wait, subject, received = found
        if wait is not self._wait or subject is not self._wait_subject:
            self._wait, self._wait_subject = wait, subject
            self._wait_start = self._window_start = now
            self._window_bytes = received
            return
        window = self._window_seconds(wait)
        if now - self._window_start >= window:
            if wait in _TOTAL or received - self._window_bytes < window * MIN_BYTES_PER_SECOND:
                self._expire(wait)
            self._window_start, self._window_bytes = now, received
        elif wait is _Wait.CLOSE and now - self._wait_start >= LINGER_SECONDS:
            self._expire(wait)

    def _awaited(self) -> tuple[_Wait, object, int] | None:
        """Return what the connection waits for, the object that it belongs to, and a count of bytes.

        None if it does not wait for its client. A new object means that the earlier wait has ended.
        """
        if self._lingers:
            return _Wait.CLOSE, self, self._discarded_bytes
        # Also after a close: the transport waits until its buffer is empty.
        if self.transport.get_write_buffer_size():
            acknowledged = _acknowledged_bytes(self.transport)
            return None if acknowledged is None else (_Wait.READER, self, acknowledged)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.more_body and cycle.scope is self.scope and not self.flow.read_paused:
                return _Wait.BODY, cycle, self._body_bytes
            return None
        if self.scope is None or (cycle is not None and cycle.scope is self.scope):
            return _Wait.REQUEST, cycle, 0
        return _Wait.HEADERS, self.scope, 0

    def _window_seconds(self, wait: _Wait) -> float:
        if wait is _Wait.REQUEST:
            return self.timeout_keep_alive
        if wait is _Wait.HEADERS:
            return self.limits.header_seconds
        if wait is _Wait.BODY:
            return self.limits.body_seconds
        return self.limits.send_seconds if wait is _Wait.READER else LINGER_IDLE_SECONDS

    def _expire(self, wait: _Wait) -> None:
        if wait is _Wait.REQUEST:
            self.transport.close()
        elif wait is _Wait.HEADERS:
            self._refuse(408, "The headers of the request did not arrive in time.", "header_timeout")
        elif wait is _Wait.BODY:
            self._body_overdue(self.cycle)
        elif wait is _Wait.READER:
            self._abort("send_timeout")
        else:
            self.transport.abort()

    def _body_overdue(self, cycle: RequestResponseCycle) -> None:
        """Wake the application, so that it answers with 408. The second time, answer without it."""
        if cycle.response_started:
            self._abort("body_timeout")
        elif BODY_OVERDUE in cycle.scope:
            self._refuse(408, "The body of the request did not arrive in time.", "body_timeout")
        else:
            self._note("body_timeout")
            cast("dict[str, Any]", cycle.scope)[BODY_OVERDUE] = True
            self._keep_alive_after_body = cycle.keep_alive = False
            cycle.transport = cast("asyncio.Transport", self._joining)  # such a client gets no lingering close
            cycle.message_event.set()


def _local_address(transport: asyncio.Transport) -> tuple[str, int | None] | None:
    """Return the host and port, or the path of a Unix socket, that the client has connected to."""
    address = transport.get_extra_info("sockname")
    if isinstance(address, tuple):  # with IPv6, it has more parts
        return address[0], address[1]
    return (address, None) if isinstance(address, str) else None


def _remote_address(transport: asyncio.Transport) -> tuple[str, int] | None:
    """Return the host and port of the client. None if it has none, or has left."""
    address = transport.get_extra_info("peername")
    return (address[0], address[1]) if isinstance(address, tuple) else None


class _JoiningTransport:
    """The transport of responses: writes the headers of one together with the first part of its body.

    Uvicorn writes them one after the other, and uvloop makes a system call of each, which wakes the client twice. If
    the application sends no body in the same iteration of the event loop, the headers are written alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._write = transport.write
        self._close = transport.close
        self._call_soon = loop.call_soon
        self.is_closing = transport.is_closing
        self.holds_next = False
        self._held = b""
        self._flushing: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        """Write the bytes. Hold the first ones of a response back until the next ones."""
        if self.holds_next:
            self.holds_next = False
            self._held = bytes(data)  # after pipelining, a part of a body, which may be a buffer
            self._flushing = self._call_soon(self.flush)
        elif self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            self._write(self._held + data)
        else:
            self._write(data)

    def flush(self) -> None:
        """Write what is held back."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
            self._write(self._held)

    def close(self) -> None:
        """Close the connection when everything is written."""
        self.flush()
        self._close()


class _LingeringTransport:
    """The transport of a response whose request body is incomplete: closing it lingers."""

    def __init__(self, transport: _JoiningTransport, linger: Callable[[], None]) -> None:
        self._transport = transport
        self._linger = linger
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        """Write what is held back, and begin the lingering close."""
        self._transport.flush()
        self._linger()


class _Sweep:
    """Checks all connections of an event loop, about once a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._connections: set[ClientProtocol] = set()
        self._is_scheduled = False
        self._clock = self._last = loop.time()

    def add(self, connection: ClientProtocol) -> None:
        """Check this connection from now on."""
        self._connections.add(connection)
        if not self._is_scheduled:
            self._last = self._loop.time()
            self._schedule()

    def discard(self, connection: ClientProtocol) -> None:
        """Forget a connection that was closed, or upgraded."""
        self._connections.discard(connection)

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_later(SWEEP_SECONDS, self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        # While the event loop is busy, what clients have sent is not read: they do not pay for that time.
        now = self._loop.time()
        self._clock += min(now - self._last, 2 * SWEEP_SECONDS)
        self._last = now
        for connection in tuple(self._connections):
            try:
                connection.check(self._clock)
            except Exception:
                logger.exception("a connection could not be checked")
        if self._connections:
            self._schedule()


_sweeps: WeakKeyDictionary[asyncio.AbstractEventLoop, _Sweep] = WeakKeyDictionary()


def _sweep_of(loop: asyncio.AbstractEventLoop) -> _Sweep:
    sweep = _sweeps.get(loop)
    if sweep is None:
        sweep = _sweeps[loop] = _Sweep(loop)
    return sweep


def _content_length(cycle: RequestResponseCycle) -> float:
    """Return the length of a request body, which the parser has checked; infinity if it comes in chunks."""
    for name, value in cycle.scope["headers"]:
        if name == b"content-length":
            return int(value)
    return float("inf")


def _acknowledged_bytes(transport: asyncio.Transport) -> int | None:
    """Return how many bytes the client's system has acknowledged; None where the kernel does not count them.

    The size of the transport's buffer would not do: the kernel takes more of it only after its own buffer, of up to
    4 MB, is partly empty. For a slow client that lasts minutes.
    """
    if sys.platform != "linux":
        return None
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:  # closed, or not a TCP socket
        return None
    return int.from_bytes(info[_ACKNOWLEDGED], sys.byteorder)


# `tcpi_bytes_acked` of Linux's struct tcp_info, which only grows at its end.
_ACKNOWLEDGED = slice(120, 128)
_TCP_INFO_BYTES = 128


def _headers_too_large(limits: ClientLimits) -> tuple[int, str, str]:
    detail = f"The request line and headers exceed the limit of {limits.header_bytes} bytes."
    return 431, detail, "headers_too_large"


def _too_many_headers(limits: ClientLimits) -> tuple[int, str, str]:
    return 431, f"The request has more than {limits.header_count} headers.", "headers_too_large"
