"""More clients than connections: what Headroom, the textbook's stack and bare asyncpg serve. `make bench-overload`.

Each variant has 4 workers of 15 connections, and handlers that hold one for 50 ms: at most 1,200 requests per second. A
client that gets a 503 waits for the time in Retry-After. The variants are measured in turn, in rounds.
"""

import argparse
import statistics
from asyncio import gather
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import uvloop

from benchmarks.database import benchmark_database
from benchmarks.tables import print_header, print_row
from benchmarks.variants import rival
from tests.support.load import Answers, load, percentile
from tests.support.postgres import as_role
from tests.support.serving import Served, gunicorn

WARM_UP_SECONDS = 2
headroom = partial(gunicorn, "tests.support.holding:create()")
VARIANTS: dict[str, Callable[..., AbstractContextManager[Served]]] = {
    "headroom": headroom,
    # SQLAlchemy's defaults: a time-out of 30 s and an unbounded queue.
    "headroom, pool_timeout 30, unbounded queue": partial(
        headroom, DB_POOL_TIMEOUT="30", DB_POOL_MAX_WAITERS="1000000"
    ),
    "textbook": partial(rival, "textbook"),
    "bare": partial(rival, "bare"),
}
COLUMNS = (
    "clients",
    "variant",
    "200/s (min to max)",
    "p50 ms",
    "p99 ms",
    "503/s",
    "p50 ms",
    "p99 ms",
    "others/s",
    "/livez max ms",
)
# The answers of the load and of the client that polls /livez meanwhile.
Round = tuple[Answers, Answers]


async def run_round(api: str, clients: int, seconds: float) -> Round:
    """Run the load, and poll /livez meanwhile."""
    # The API is ready as soon as one worker is: this gives the others time to start.
    await load([f"{api}/livez"], clients=4, seconds=WARM_UP_SECONDS, pause=0.1)
    return await gather(
        load([f"{api}/hold?ms=50"], clients=clients, seconds=seconds),
        load([f"{api}/livez"], clients=1, seconds=seconds, pause=0.25),
    )


def show(clients: int, name: str, rounds: list[Round], seconds: float) -> None:
    """Print the medians of the rounds, and the slowest /livez of all of them."""
    succeeded = [answers.seconds(200) for answers, _ in rounds]
    refused = [answers.seconds(503) for answers, _ in rounds]
    others = [
        sum(answers.statuses.values()) - len(ok) - len(no)
        for (answers, _), ok, no in zip(rounds, succeeded, refused, strict=True)
    ]
    speeds = [len(each) / seconds for each in succeeded]
    print_row(
        (
            clients,
            name,
            f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})",
            *_milliseconds(succeeded),
            f"{statistics.median(len(each) / seconds for each in refused):.0f}",
            *_milliseconds(refused),
            f"{statistics.median(others) / seconds:.0f}",
            f"{max(livez.seconds(200)[-1] for _, livez in rounds) * 1000:.0f}",
        )
    )


def _milliseconds(rounds: list[list[float]]) -> tuple[str, str]:
    """Return the median over the rounds of p50, and of p99."""
    p50, p99 = (statistics.median(percentile(seconds, share) for seconds in rounds) * 1000 for share in (0.5, 0.99))
    return f"{p50:.0f}", f"{p99:.0f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements per variant (default: 3)")
    parser.add_argument("--seconds", type=float, default=10, help="length of a measurement (default: 10)")
    parser.add_argument("--clients", type=int, nargs="+", default=[300, 1000], help="default: 300 1000")
    options = parser.parse_args()
    with benchmark_database() as database:
        url = as_role(database.url, "headroom_app")
        print_header(COLUMNS)
        for clients in options.clients:
            rounds: dict[str, list[Round]] = {name: [] for name in VARIANTS}
            for _ in range(options.rounds):
                for name, start in VARIANTS.items():
                    with start(url, database.directory) as served:
                        rounds[name].append(uvloop.run(run_round(served.address, clients, options.seconds)))
            for name in VARIANTS:
                show(clients, name, rounds[name], options.seconds)


if __name__ == "__main__":
    main()
