"""Steady traffic from outside: clients with kept-alive connections that read, and write posts with unique titles."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from ssl import SSLContext
from time import monotonic
from typing import Any, NamedTuple, cast

from benchmarks.fault.ledger import Ledger
from tests.support.load import Answer, Connection, get, post

# No deadline of the API is longer: 3 s for a connection and 10 s for a statement. A client gives up after this time.
PATIENCE_SECONDS = 20.0
PAUSE_SECONDS = 0.04
WRITERS, READERS = 8, 16
# With these statuses of a proxy, the replica may have carried the request out.
UNKNOWN_STATUSES = (502, 504)
CONTENT = "x" * 1000
OUTCOME_UNKNOWN = b"/problems/outcome-unknown"


class Failure(StrEnum):
    """Why a request has no answer. ABORTED: the client disconnected on purpose."""

    NOT_CONNECTED = "not connected"
    BROKEN = "broken"
    SILENT = "silent"
    ABORTED = "aborted"


@dataclass(slots=True)
class Exchange:
    """A request: its start (as monotonic() has it), its duration in seconds, and its status or failure.

    `is_wrong`: the answer does not fit the question, or an acknowledged write could not be read.
    """

    started: float
    seconds: float
    result: int | Failure
    is_wrong: bool = False

    @property
    def ended(self) -> float:
        return self.started + self.seconds

    @property
    def succeeded(self) -> bool:
        return isinstance(self.result, int) and 200 <= self.result < 300

    @property
    def failed(self) -> bool:
        return not self.succeeded and self.result is not Failure.ABORTED


class Account(NamedTuple):
    """The user who writes."""

    location: str
    token: str


class Traffic:
    """The clients of one trial, and what they have seen. `port` may change: requests go to the newest one."""

    def __init__(
        self,
        port: int,
        account: Account,
        ledger: Ledger,
        *,
        tls: SSLContext | None = None,
        writers: int = WRITERS,
        readers: int = READERS,
    ) -> None:
        self.port = port
        self.account = account
        self.ledger = ledger
        self.tls = tls
        self.writers = writers
        self.readers = readers
        self.exchanges: list[Exchange] = []
        self.in_flight: dict[object, float] = {}
        self._last_error = 0.0
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the clients."""
        reads = (self.read_back, self.read_back, self.read_list, self.read_author)
        actions = [self.write] * self.writers + [reads[number % len(reads)] for number in range(self.readers)]
        self._tasks = [asyncio.create_task(self._repeat(action)) for action in actions]

    async def stop(self) -> None:
        """Send no more requests, and wait for the last answers."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    def calm_since(self) -> float:
        """Return the time of the last sign of trouble: an error, or the start of a request that still waits."""
        now = monotonic()
        is_waiting = any(now - started > 1 for started in [*self.in_flight.values()])
        return now if is_waiting else self._last_error

    def record(self, exchange: Exchange) -> None:
        """Add an exchange. Faults have clients of their own, in another thread."""
        self.exchanges.append(exchange)
        if exchange.failed:
            self._last_error = exchange.ended

    async def _repeat(self, action: "Callable[[Client], Coroutine[Any, Any, None]]") -> None:
        client = Client(self)
        await asyncio.sleep(random.random() * PAUSE_SECONDS)
        while not self._stopping.is_set():
            await action(client)
            await asyncio.sleep(PAUSE_SECONDS)
        client.close()

    async def write(self, client: "Client", hang_up_after: float | None = None) -> None:
        """Create a post, and record in the ledger what the answer says."""
        title = self.ledger.begin()
        answer = await client.send(self.request_to_write(title), hang_up_after=hang_up_after)
        if isinstance(answer, Failure):
            if answer is Failure.NOT_CONNECTED:
                self.ledger.refuse(title)  # the request was not sent
            return
        if answer.status == 201:
            self.ledger.acknowledge(title, _header(answer, b"location"))
            client.check(_title(answer) == title)
        elif OUTCOME_UNKNOWN not in answer.body and answer.status not in UNKNOWN_STATUSES:
            self.ledger.refuse(title)

    def request_to_write(self, title: str) -> bytes:
        """Return the request that creates a post."""
        body = json.dumps({"title": title, "content": CONTENT}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.account.token}"}
        return post("/posts", body, **headers)

    async def read_back(self, client: "Client", hang_up_after: float | None = None) -> None:
        """Read an acknowledged post. It must be there, with its own title."""
        if (known := self.ledger.any_acknowledged()) is None:
            await self.read_author(client, hang_up_after)
            return
        location, title = known
        answer = await client.send(get(location), hang_up_after=hang_up_after)
        if not isinstance(answer, Failure) and answer.status in (200, 404):
            client.check(answer.status == 200 and _title(answer) == title)

    async def read_list(self, client: "Client", hang_up_after: float | None = None) -> None:
        """Read the newest posts."""
        await client.send(get("/posts?cursor=&limit=10"), hang_up_after=hang_up_after)

    async def read_author(self, client: "Client", hang_up_after: float | None = None) -> None:
        """Read the author."""
        await client.send(get(self.account.location), hang_up_after=hang_up_after)


class Client:
    """One connection, kept alive, with one request at a time. It opens a new connection after an error."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._connection: _Connection | None = None
        self._port = 0
        self._last: Exchange

    async def send(self, request: bytes, *, hang_up_after: float | None = None) -> Answer | Failure:
        """Send a request and return the answer. Record the exchange."""
        traffic, key, started = self._traffic, object(), monotonic()
        traffic.in_flight[key] = started
        answer = await self._send(request, hang_up_after)
        del traffic.in_flight[key]
        result = answer if isinstance(answer, Failure) else answer.status
        self._last = Exchange(started, monotonic() - started, result)
        traffic.record(self._last)
        if isinstance(answer, Failure) or _header(answer, b"connection").lower() == "close":
            self.close()
        return answer

    def check(self, is_right: bool) -> None:
        """Mark the last exchange as wrong unless its answer is right."""
        self._last.is_wrong = not is_right

    async def _send(self, request: bytes, hang_up_after: float | None) -> Answer | Failure:
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect()
        except (OSError, TimeoutError):
            return Failure.NOT_CONNECTED
        try:
            async with asyncio.timeout_at(deadline):
                asked = connection.ask(request)
                if hang_up_after is None:
                    return await asked
                done, _ = await asyncio.wait({asked}, timeout=hang_up_after)
                if done:
                    return asked.result()
                asked.cancel()
                return Failure.ABORTED
        except TimeoutError:
            return Failure.SILENT
        except OSError:
            return Failure.BROKEN

    async def _connect(self) -> "_Connection":
        if self._connection is not None and (self._connection.is_closed or self._port != self._traffic.port):
            self.close()
        if self._connection is None:
            self._port = self._traffic.port
            loop = asyncio.get_running_loop()
            tls = self._traffic.tls
            _, self._connection = await loop.create_connection(_Connection, "127.0.0.1", self._port, ssl=tls)
        return self._connection

    def close(self) -> None:
        """Close the connection. With an answer outstanding, the server sees a reset."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


class _Connection(Connection):
    @property
    def is_closed(self) -> bool:
        return bool(self._transport.is_closing())

    def abort(self) -> None:
        self._transport.abort()


def _header(answer: Answer, name: bytes) -> str:
    for line in answer.head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip().decode()
    return ""


def _title(answer: Answer) -> str:
    return cast("str", json.loads(answer.body).get("title", ""))
