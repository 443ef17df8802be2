"""A load generator: many clients, each with one request at a time."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from ssl import SSLContext
from time import monotonic
from typing import NamedTuple, cast
from urllib.parse import urlsplit

ANSWER_WITHIN_SECONDS = 60.0


@dataclass
class Answers:
    """The start (as monotonic() has it), status and duration in seconds of every response.

    The status is 0 if the connection broke during a request, and -1 if no response came within ANSWER_WITHIN_SECONDS.
    `refusals` has the start, the kind of problem and the duration of every 503. `broken` has, for each connection that
    broke, the seconds that it had been idle before the request, 0 if it was new, and the error.
    """

    each: list[tuple[float, int, float]] = field(default_factory=list)
    refusals: list[tuple[float, str, float]] = field(default_factory=list)
    broken: list[tuple[float, str]] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _ in self.each)

    def seconds(self, *statuses: int) -> list[float]:
        """Return the durations of the responses with these statuses, in ascending order."""
        return sorted(seconds for _, status, seconds in self.each if status in statuses)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile of sorted values, or 0 if there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


async def load(
    urls: Sequence[str],
    *,
    clients: int,
    seconds: float = inf,
    until: asyncio.Event | None = None,
    patient: bool = True,
    pause: float = 0.0,
    keep_alive: bool = True,
    tls: SSLContext | None = None,
) -> Answers:
    """Let the clients, spread over the URLs, send requests for this many seconds, or until the event.

    A `patient` client obeys Retry-After; others send the next request at once. `pause` is the time between two
    requests of a client, in seconds. Without `keep_alive` each request opens a connection. `tls` is for https URLs.
    """
    answers = Answers()
    ends = monotonic() + seconds
    stop = until or asyncio.Event()
    await asyncio.gather(
        *(
            _client(urls[number % len(urls)], ends, stop, answers, patient, pause, keep_alive, tls)
            for number in range(clients)
        )
    )
    return answers


async def _client(
    url: str,
    ends: float,
    stop: asyncio.Event,
    answers: Answers,
    patient: bool,
    pause: float,
    keep_alive: bool,
    tls: SSLContext | None,
) -> None:
    address = urlsplit(url)
    assert address.port
    request = get(address.path + (f"?{address.query}" if address.query else ""))
    connection: Connection | None = None
    answered = 0.0
    while monotonic() < ends and not stop.is_set():
        started = monotonic()
        is_new = connection is None or connection.is_closed
        retry_after = 0.0
        try:
            async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
                if connection is None or connection.is_closed:
                    connection = await connect(address.port, tls)
                answer = await connection.ask(request)
                status, retry_after = answer.status, answer.retry_after
        except TimeoutError:
            status = -1
        except OSError as error:
            status, retry_after = 0, 0.1  # wait before the next attempt, as a load balancer does
            idle = 0.0 if is_new else started - answered
            answers.broken.append((idle, repr(error)))
        if connection is not None and (status <= 0 or not keep_alive or answer.is_last):
            connection.close()
            connection = None
        answered = monotonic()
        answers.each.append((started, status, answered - started))
        if status == 503:
            answers.refusals.append((started, answer.problem, answered - started))
        wait = retry_after if patient else 0.0
        await asyncio.sleep(min(max(wait, pause), max(0.0, ends - monotonic())))
    if connection is not None:
        connection.close()


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(target: str, body: bytes, **headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Answer(NamedTuple):
    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def problem(self) -> str:
        """Return the last part of the type of a problem; empty if the body is none."""
        found = re.search(rb'"type":"/problems/([a-z-]+)"', self.body)
        return found[1].decode() if found else ""

    @property
    def is_last(self) -> bool:
        """Return True if the server closes the connection after this response."""
        return re.search(rb"\r\nconnection: close\r\n", self.head + b"\r\n", re.IGNORECASE) is not None

    @property
    def retry_after(self) -> float:
        found = re.search(rb"\r\nretry-after: (\d+)", self.head, re.IGNORECASE)
        return float(found[1]) if found else 0.0


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection with keep-alive and one request at a time, cheaper than what it measures."""

    _transport: asyncio.Transport
    _waiter: asyncio.Future[Answer] | None = None
    _buffer = b""

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request. The future raises ConnectionError if the server closes the connection."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._waiter.set_exception(ConnectionResetError())
        else:
            self._transport.write(request)
        return self._waiter

    @property
    def is_closed(self) -> bool:
        """Return True if the server has closed the connection while no request was in progress."""
        return self._transport.is_closing()

    def close(self) -> None:
        if self._transport.get_extra_info("ssl_object") is None:
            self._transport.close()
        else:
            self._transport.abort()  # without a farewell, which would outlive the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        if length is None or len(body) < int(length[1]):
            return  # every response of the API has a Content-Length
        self._buffer = b""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Answer(head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionResetError())


async def connect(port: int, tls: SSLContext | None = None, host: str = "127.0.0.1") -> Connection:
    """Open a connection. With TLS, the certificate must be valid for localhost."""
    name = "localhost" if tls else None
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, host, port, ssl=tls, server_hostname=name)
    return connection
