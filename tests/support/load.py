"""Many clients at once: each sends a request, waits for the answer, and does as it is told. Only to 127.0.0.1."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

ANSWER_WITHIN_SECONDS = 60.0


@dataclass
class Answers:
    """What the clients got: when it was asked for (in the time of monotonic()), the status, the seconds it took.

    The status is 0 where the connection broke, and -1 where no answer came within ANSWER_WITHIN_SECONDS.
    """

    each: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, status, _ in self.each)

    def seconds(self, *statuses: int) -> list[float]:
        """How long the answers of these statuses took, the quickest first."""
        return sorted(seconds for _, status, seconds in self.each if status in statuses)


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values; 0 where there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


async def load(
    urls: Sequence[str],
    *,
    clients: int,
    seconds: float,
    patient: bool = True,
    pause: float = 0.0,
    keep_alive: bool = True,
) -> Answers:
    """So many clients, spread over the URLs, keep asking for so many seconds.

    A patient client that is told to come back later (Retry-After) does that; another one asks again at once. `pause` is
    what a client thinks between two requests, in seconds. Without `keep_alive` each request has a connection of its
    own, and so perhaps another worker.
    """
    answers = Answers()
    until = monotonic() + seconds
    await asyncio.gather(
        *(_client(urls[number % len(urls)], until, answers, patient, pause, keep_alive) for number in range(clients))
    )
    return answers


async def _client(url: str, until: float, answers: Answers, patient: bool, pause: float, keep_alive: bool) -> None:
    address = urlsplit(url)
    assert address.hostname == "127.0.0.1"
    target = address.path + (f"?{address.query}" if address.query else "")
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while monotonic() < until:
        started = monotonic()
        retry_after = 0.0
        try:
            async with asyncio.timeout(ANSWER_WITHIN_SECONDS):
                if connection is None:
                    connection = await asyncio.open_connection(address.hostname, address.port)
                status, retry_after = await _ask(*connection, request)
        except TimeoutError:
            status = -1
        except (OSError, asyncio.IncompleteReadError):
            status, retry_after = 0, 0.1  # as a balancer would: not at once again
        if connection is not None and (status <= 0 or not keep_alive):
            connection[1].close()
            connection = None
        answers.each.append((started, status, monotonic() - started))
        wait = retry_after if patient else 0.0
        await asyncio.sleep(min(max(wait, pause), max(0.0, until - monotonic())))
    if connection is not None:
        connection[1].close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, float]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), float(headers.get("retry-after", 0))
