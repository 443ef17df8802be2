"""One measurement: clients send requests for some seconds; latency, throughput and CPU time are recorded."""

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from time import monotonic, perf_counter

from benchmarks.endpoints import Call
from benchmarks.processes import cpu_seconds
from tests.support.load import connect, percentile
from tests.support.postgres import Server
from tests.support.serving import Served

RESPONSE_WITHIN_SECONDS = 30
# Parsing a body takes the client longer than receiving it, so only every 25th is checked.
CHECK_BODY_EVERY = 25


@dataclass
class Measurement:
    """The result of one measurement. Latencies are in seconds, CPU times in microseconds per request that was served.

    `created` is the number of 201s; `refused` of 503s, which no other figure contains.
    """

    requests: int
    created: int
    refused: int
    per_second: float
    p50: float
    p99: float
    slowest: float
    app_micros: float
    postgres_micros: float
    response_bytes: float


async def measure(served: Served, calls: Sequence[Call], server: Server, clients: int, seconds: float) -> Measurement:
    """Send random calls from `clients` connections for `seconds`.

    Raise AssertionError for a wrong response. A server may refuse a request with 503.
    """
    connections = [await connect(served.port) for _ in range(clients)]
    latencies: list[float] = []
    total_bytes = created = refused = 0
    random = Random(1)
    app_before, postgres_before = cpu_seconds(served.pid), cpu_seconds(server.pid)
    started = monotonic()
    until = started + seconds

    async def run_client(number: int) -> None:
        nonlocal total_bytes, created, refused
        connection = connections[number]
        while monotonic() < until:
            call = random.choice(calls)
            sent = perf_counter()
            answer = await asyncio.wait_for(connection.ask(call.request), RESPONSE_WITHIN_SECONDS)
            if answer.status == 503:
                refused += 1
            else:
                latencies.append(perf_counter() - sent)
                total_bytes += len(answer.head) + len(answer.body) + 4  # 4: the blank line between them
                call.check(answer, body=len(latencies) % CHECK_BODY_EVERY == 0)
                created += call.status == 201
            if answer.is_last:  # a worker with more than its share of the clients moves some
                connection.close()
                connection = connections[number] = await connect(served.port)

    await asyncio.gather(*map(run_client, range(clients)))
    elapsed = monotonic() - started
    app, postgres = cpu_seconds(served.pid) - app_before, cpu_seconds(server.pid) - postgres_before
    for connection in connections:
        connection.close()
    assert latencies, f"no request was answered within {seconds} s: use longer measurements"
    latencies.sort()
    requests = len(latencies)
    return Measurement(
        requests=requests,
        created=created,
        refused=refused,
        per_second=requests / elapsed,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        slowest=latencies[-1],
        app_micros=app / requests * 1e6,
        postgres_micros=postgres / requests * 1e6,
        response_bytes=total_bytes / requests,
    )


def median(measurements: Sequence[Measurement], field: str) -> float:
    """Return the median of a field over the measurements."""
    return float(statistics.median(getattr(each, field) for each in measurements))


def ratios(measurements: Sequence[Measurement], others: Sequence[Measurement], field: str) -> list[float]:
    """Return the ratio of a field per round. The two measurements of a round were made shortly after each other."""
    return [getattr(a, field) / getattr(b, field) for a, b in zip(measurements, others, strict=True)]
