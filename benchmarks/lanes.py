"""Measure ordinary reads and sign-ins while noisy clients request expensive pages: `make bench-lanes`.

Each measurement starts the API twice: with lanes and CoDel, and without them. Noisy clients obey Retry-After. With
`--overload`, it measures 5 times more ordinary requests than the pool can serve instead.
"""

import argparse
import os
from asyncio import Event, create_task, sleep
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import uvloop

from app.cli.seed import seed
from app.observability.logging import configure_logging
from benchmarks.database import BenchmarkDatabase, benchmark_database
from benchmarks.tables import print_header, print_row
from tests.support.load import Answers, connect, load, percentile, post
from tests.support.postgres import as_role
from tests.support.serving import Served, gunicorn

PASSWORD = "correct horse"
READERS = 20
NOISY_CLIENTS = (40, 200)
# Enough to learn the costs, and to answer what was begun before.
LEARNING_SECONDS = 20.0
WARM_UP_SECONDS = 2.0
SETTLING_SECONDS = 3.0
VARIANTS = {
    "without": {"DB_EXPENSIVE_AFTER": "0", "DB_QUEUE_TARGET": "1000"},
    "with": {"POSTGRES_CORES": str(os.cpu_count() or 1)},
}
COLUMNS = (
    "noisy clients",
    "ask for",
    "lanes",
    "readers: 200/s",
    "of quiet",
    "p99 ms",
    "503/s",
    "noisy: 200/s",
    "p99 ms",
    "503/s",
    "longest ms",
    "others",
    "sign-ins",
    "longest ms",
)
# Kinds of expensive requests. The number of the client makes each differ: equal reads would share a statement.
KINDS: dict[str, Callable[[int], str]] = {
    "same search": lambda number: "/posts?q=zzzzqqq",
    "search": lambda number: f"/posts?q=zzzz{number}",
    "one letter": lambda number: f"/posts?q={'etaoinshrdlu'[number % 12]}&limit={20 + number // 12}",
    "offset": lambda number: f"/posts?offset={190_000 + number}",
    "search by title": lambda number: f"/posts?q=zzzz{number}&sort=title",
    "search by cursor": lambda number: f"/posts?cursor=&q=zzzz{number}",
}


class Round(NamedTuple):
    """What the clients of one measurement got."""

    readers: Answers
    noisy: Answers
    sign_ins: Answers


async def sign_in(port: int, until: Event) -> Answers:
    """Sign in again and again, and return the answers."""
    form = urlencode({"username": "lanes@example.com", "password": PASSWORD}).encode()
    request = post("/auth/token", form, **{"Content-Type": "application/x-www-form-urlencoded"})
    answers = Answers()
    while not until.is_set():
        connection = await connect(port)
        started = monotonic()
        answer = await connection.ask(request)
        answers.each.append((started, answer.status, monotonic() - started))
        connection.close()
        await sleep(0.25)
    return answers


async def run_round(served: Served, noisy: list[str], clients: int, seconds: float) -> Round:
    """Run readers, noisy clients and sign-ins together. The first seconds, in which costs are learnt, do not count."""
    api = served.address
    stop = Event()
    disturbing = create_task(load([api + path for path in noisy], clients=clients, until=stop)) if clients else None
    signing_in = create_task(sign_in(served.port, stop))
    urls = [f"{api}/users/{number}" for number in range(1, READERS + 1)]
    await load(urls, clients=READERS, seconds=LEARNING_SECONDS if clients else WARM_UP_SECONDS)
    began = monotonic()
    readers = await load(urls, clients=READERS, seconds=seconds)
    stop.set()
    others = await disturbing if disturbing else Answers()
    signed_in = await signing_in
    return Round(readers, *(Answers([each for each in got.each if each[0] >= began]) for got in (others, signed_in)))


def show(kind: str, clients: int, lanes: str, got: Round, seconds: float, quiet: float) -> float:
    """Print a row, and return the readers' rate."""
    rate = len(got.readers.seconds(200)) / seconds
    refused = got.noisy.seconds(503)
    print_row(
        (
            clients,
            kind,
            lanes,
            f"{rate:.0f}",
            f"{rate / quiet:.2f}" if quiet else "",
            f"{percentile(got.readers.seconds(200), 0.99) * 1000:.0f}",
            f"{len(got.readers.seconds(503)) / seconds:.1f}",
            f"{len(got.noisy.seconds(200)) / seconds:.1f}",
            f"{percentile(got.noisy.seconds(200), 0.99) * 1000:.0f}",
            f"{len(refused) / seconds:.1f}",
            f"{refused[-1] * 1000:.0f}" if refused else "",
            sum(count for each in got for status, count in each.statuses.items() if status not in (200, 503)),
            f"{len(got.sign_ins.seconds(200))} of {len(got.sign_ins.each)}",
            f"{percentile(got.sign_ins.seconds(200, 503), 1) * 1000:.0f}",
        )
    )
    return rate


def measure_noise(database: BenchmarkDatabase, kinds: list[str], counts: list[int], seconds: float) -> None:
    """Print what ordinary readers get, for each kind of expensive request."""
    url = as_role(database.url, "headroom_app")
    limits = {"SIGN_IN_ACCOUNT_LIMIT": "1000000", "SIGN_IN_ADDRESS_LIMIT": "1000000"}
    print_header(COLUMNS)
    quiet = {}
    for lanes, settings in VARIANTS.items():
        with gunicorn("app.main:create_app()", url, database.directory, **limits, **settings) as served:
            user = {"email": "lanes@example.com", "name": "Lanes", "password": PASSWORD}
            assert httpx.post(f"{served.address}/users", json=user, timeout=30).status_code in (201, 409)
            quiet[lanes] = show("nothing", 0, lanes, uvloop.run(run_round(served, [], 0, seconds)), seconds, 0.0)
    for clients in counts:
        for kind in kinds:
            for lanes, settings in VARIANTS.items():
                paths = [KINDS[kind](number) for number in range(clients)]
                with gunicorn("app.main:create_app()", url, database.directory, **limits, **settings) as served:
                    got = uvloop.run(run_round(served, paths, clients, seconds))
                show(kind, clients, lanes, got, seconds, quiet[lanes])


def measure_overload(database: BenchmarkDatabase, seconds: float) -> None:
    """Print what 5 times overload leaves of the pool's capacity, and how long the served requests take."""
    url = as_role(database.url, "headroom_app")
    pools = {"DB_POOL_SIZE": "3", "DB_MAX_OVERFLOW": "0"}
    print_header(("queue", "capacity/s", "sent/s", "200/s", "of capacity", "p50 ms", "p99 ms", "503/s", "p99 ms"))
    for name, settings in VARIANTS.items():
        with gunicorn("tests.support.holding:create()", url, database.directory, **pools, **settings) as served:
            page = f"{served.address}/hold?ms=25"
            uvloop.run(load([f"{served.address}/livez"], clients=8, seconds=WARM_UP_SECONDS, pause=0.1))
            capacity = len(uvloop.run(load([page], clients=48, seconds=seconds)).seconds(200)) / seconds
            # Each client sends about 5 requests a second. CoDel needs two intervals to find that the queue stays long.
            began = monotonic() + SETTLING_SECONDS
            clients = round(capacity)
            total = seconds + SETTLING_SECONDS
            got = uvloop.run(load([page], clients=clients, seconds=total, patient=False, pause=0.1))
        got = Answers([each for each in got.each if each[0] >= began])
        served_in, refused_in = got.seconds(200), got.seconds(503)
        print_row(
            (
                name,
                f"{capacity:.0f}",
                f"{len(got.each) / seconds:.0f}",
                f"{len(served_in) / seconds:.0f}",
                f"{len(served_in) / seconds / capacity:.2f}",
                *(f"{percentile(served_in, share) * 1000:.0f}" for share in (0.5, 0.99)),
                f"{len(refused_in) / seconds:.0f}",
                f"{percentile(refused_in, 0.99) * 1000:.0f}",
            )
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=200_000, help="rows in posts (default: 200000)")
    parser.add_argument("--seconds", type=float, default=8, help="length of a measurement (default: 8)")
    parser.add_argument("--clients", type=int, nargs="+", default=[*NOISY_CLIENTS], help="default: 40 200")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="default: all")
    parser.add_argument("--overload", action="store_true", help="measure overload by ordinary requests")
    options = parser.parse_args()
    with benchmark_database() as database:
        configure_logging(format="json", level="error")  # migrations have set their own
        if options.overload:
            measure_overload(database, options.seconds)
        else:
            seed(url=database.url, users=1_000, posts=options.posts)
            measure_noise(database, options.kinds, options.clients, options.seconds)
    print(f"\nload average: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
