"""The listener of the workers, compared with uvicorn's own: `make bench-listener`.

Three variants run the same API in four workers: Headroom's worker, plain Uvicorn workers, and Headroom's worker
with Uvicorn's listener. They are measured in turn, in rounds:

1. A connection for each request to /livez, from 1, 8 and 32 threads.
2. Groups of 32 clients that keep their connections: how many of them the busiest worker has.
3. 2,000 clients that connect at once: the p99 of the time until a client has its response.

Then the balance over time, without the other variant: 200 clients keep their connections and hold a database connection
for 50 ms in each request. They connect at the first 200 of /readyz; later a worker is killed, then all are reloaded.
All of them may wait for a connection: with the default of DB_QUEUE_TARGET, the overload itself would be refused.
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from threading import Thread
from time import monotonic, perf_counter

import orjson
import uvloop
from sqlalchemy import URL

from benchmarks.database import benchmark_database
from benchmarks.tables import print_header, print_row
from tests.support.load import Connection, connect, get, percentile
from tests.support.postgres import as_role
from tests.support.serving import Served, gunicorn
from tests.support.waiting import eventually

APPLICATION = "tests.support.holding:create()"
FAIR = "headroom"
OTHERS = {
    "plain Uvicorn workers": "benchmarks.plain_worker.PlainWorker",
    "Uvicorn's listener alone": "benchmarks.plain_worker.PlainListenerWorker",
}
WORKERS = 4
THREADS = (1, 8, 32)
GROUP = 32
GROUPS = 9
BALANCE_CLIENTS = 200
HOLD = get("/hold?ms=50")


def plain(worker_class: str, url: URL, directory: Path) -> AbstractContextManager[Served]:
    """Serve the API with workers of this class. It is ready when /livez answers."""
    return gunicorn(APPLICATION, url, directory, options=("--worker-class", worker_class), ready_path="/livez")


def requests_per_second(port: int, threads: int, seconds: float) -> float:
    """Let threads send requests, each on a connection of its own."""
    counts = []
    started = monotonic()

    def run() -> None:
        count = 0
        while monotonic() < started + seconds:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(get("/livez"))
                response = b""
                while not response.endswith(b"}"):
                    received = connection.recv(4096)
                    assert received, "the server closed the connection without a response"
                    response += received
            count += 1
        counts.append(count)

    running_threads = [Thread(target=run) for _ in range(threads)]
    for thread in running_threads:
        thread.start()
    for thread in running_threads:
        thread.join()
    assert len(counts) == threads, "a client failed"
    return sum(counts) / (monotonic() - started)


async def workers_of_group(port: int) -> Counter[str]:
    """Open the connections of a group, and return how many each worker has."""
    connections = [await connect(port) for _ in range(GROUP)]
    answers = [await connection.ask(get("/hold?ms=0")) for connection in connections]
    for connection in connections:
        connection.close()
    return Counter(orjson.loads(answer.body)["worker"] for answer in answers)


async def crowd(port: int, clients: int) -> float:
    """Let the clients connect at once. Return the p99 of the seconds until a client has its response."""
    latencies = []

    async def run() -> None:
        started = perf_counter()
        connection = await connect(port)
        assert (await connection.ask(get("/livez"))).status == 200
        latencies.append(perf_counter() - started)
        connection.close()

    await asyncio.gather(*(run() for _ in range(clients)))
    return percentile(sorted(latencies), 0.99)


def compare(servers: dict[str, Served], rounds: int, seconds: float, clients: int) -> None:
    """Measure the variants in turn. Print the medians, and the first one's ratios to the others in each round."""

    def measure(name: str, served: Served) -> list[float]:
        figures = [requests_per_second(served.port, threads, seconds) for threads in THREADS]
        groups = [max(uvloop.run(workers_of_group(served.port)).values()) for _ in range(GROUPS)]
        return [*figures, float(statistics.median(groups)), uvloop.run(crowd(served.port, clients)) * 1000]

    results: dict[str, list[list[float]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, served in servers.items():
            results[name].append(measure(name, served))
    what = [
        *(f"requests/s, a connection each, {threads} threads" for threads in THREADS),
        f"clients of the busiest worker, of {GROUP}",
        f"{clients} clients at once, p99 ms",
    ]
    print_header(("", *servers, *(f"ratio to {name}, median (min to max)" for name in OTHERS)))
    for index, name in enumerate(what):
        columns = [[figures[index] for figures in results[variant]] for variant in servers]
        medians = [f"{statistics.median(column):.0f}" for column in columns]
        ratios = [[a / b for a, b in zip(columns[0], column, strict=True)] for column in columns[1:]]
        print_row((name, *medians, *(f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios)))


class KeptClients:
    """Clients that keep their connections and send the next request at once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.worker: dict[int, str] = {}
        self.outcomes: Counter[str] = Counter()

    async def run(self, number: int) -> None:
        """Send requests until cancelled. Open another connection when the server closes one."""
        while True:
            connection: Connection | None = None
            try:
                connection = await connect(self.port)
                await self._use(connection, number)
            except OSError:
                self.outcomes["broken"] += 1
                self.worker.pop(number, None)
            finally:
                if connection is not None:
                    connection.close()

    async def _use(self, connection: Connection, number: int) -> None:
        while not connection.is_closed:
            answer = await connection.ask(HOLD)
            self.outcomes[str(answer.status)] += 1
            if answer.status == 200:
                self.worker[number] = orjson.loads(answer.body)["worker"]
            if answer.is_last:
                self.outcomes["moved"] += 1
                return

    def shares(self) -> str:
        """Return the clients of each worker. Each client has a request in flight at nearly every moment."""
        return " ".join(str(count) for _, count in sorted(Counter(self.worker.values()).items()))


def first_worker(served: Served) -> int:
    """Return the process id of the oldest worker."""
    return int(Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()[0])


async def balance(served: Served, seconds: float) -> None:
    """Print the clients of each worker once a second: after the start, a killed worker and a reload."""
    clients = KeptClients(served.port)
    tasks = [asyncio.create_task(clients.run(number)) for number in range(BALANCE_CLIENTS)]
    print_header(("change", "s", "requests in flight by worker", "200", "503", "broken", "moved"))
    for change in ("start", "a worker killed", "SIGHUP"):
        if change == "a worker killed":
            os.kill(first_worker(served), signal.SIGKILL)
        elif change == "SIGHUP":
            os.kill(served.pid, signal.SIGHUP)
        clients.outcomes.clear()
        for second in range(1, int(seconds) + 1):
            await asyncio.sleep(1)
            counted = clients.outcomes
            print_row(
                (change, second, clients.shares(), *(counted[name] for name in ("200", "503", "broken", "moved")))
            )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each variant (default: 9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a measurement (default: 1)")
    parser.add_argument("--clients", type=int, default=2000, help="clients that connect at once (default: 2000)")
    parser.add_argument("--balance", type=float, default=12.0, help="seconds after each change; 0: none (default: 12)")
    options = parser.parse_args()
    print(f"load average at the start: {os.getloadavg()[0]:.1f}\n")
    with benchmark_database() as database, ExitStack() as stack:
        url = as_role(database.url, "headroom_app")
        if options.rounds:
            with ExitStack() as servers:
                variants = {FAIR: servers.enter_context(gunicorn(APPLICATION, url, database.directory))}
                for name, worker in OTHERS.items():
                    variants[name] = servers.enter_context(plain(worker, url, database.directory))
                for served in variants.values():
                    eventually(lambda s=served: len(uvloop.run(workers_of_group(s.port))) > 1, within=30)  # type: ignore[misc]
                compare(variants, options.rounds, options.seconds, options.clients)
            print()
        if options.balance:
            served = stack.enter_context(gunicorn(APPLICATION, url, database.directory, DB_QUEUE_TARGET="5"))
            uvloop.run(balance(served, options.balance))
    print(f"\nload average at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
