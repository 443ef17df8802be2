"""More clients than connections: what Headroom, its pool with the textbook's settings, the textbook's stack and bare
asyncpg get done: `make bench-overload`.

Each has 4 workers of 15 connections, and handlers that hold one for 50 ms: 1,200 requests a second at the most. A
client that gets a 503 comes back when it was told to. The variants take turns, round after round.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import uvloop

from benchmarks.bench import POSTGRES, reached, rival
from tests.support.load import Answers, load, percentile
from tests.support.postgres import as_role, run_postgres
from tests.support.serving import Served, gunicorn

ROUNDS, SECONDS, WARM_UP_SECONDS = 3, 10, 2
headroom = partial(gunicorn, "benchmarks.holding:create()")
VARIANTS: dict[str, Callable[..., AbstractContextManager[Served]]] = {
    "headroom": headroom,
    # SQLAlchemy's default: nobody is refused for 30 s, and the queue has no end.
    "headroom, pool_timeout 30, no end to the queue": partial(
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


async def run(api: str, clients: int) -> tuple[Answers, Answers]:
    # An API answers as soon as one of its workers does: the others come up meanwhile.
    await load([f"{api}/livez"], clients=4, seconds=WARM_UP_SECONDS, pause=0.1)
    return await asyncio.gather(
        load([f"{api}/hold?ms=50"], clients=clients, seconds=SECONDS),
        load([f"{api}/livez"], clients=1, seconds=SECONDS, pause=0.25),
    )


def show(clients: int, name: str, turns: list[tuple[Answers, Answers]]) -> None:
    """Medians of the turns, and the slowest /livez of all."""
    good = [answers.seconds(200) for answers, _ in turns]
    refused = [answers.seconds(503) for answers, _ in turns]
    others = [
        sum(answers.statuses.values()) - len(a) - len(b)
        for (answers, _), a, b in zip(turns, good, refused, strict=True)
    ]
    speeds = [len(each) / SECONDS for each in good]
    row = (
        clients,
        name,
        f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})",
        *milliseconds(good),
        f"{statistics.median(len(each) / SECONDS for each in refused):.0f}",
        *milliseconds(refused),
        f"{statistics.median(others) / SECONDS:.0f}",
        f"{max(livez.seconds(200)[-1] for _, livez in turns) * 1000:.0f}",
    )
    print(f"| {' | '.join(map(str, row))} |", flush=True)


def milliseconds(turns: list[list[float]]) -> tuple[str, str]:
    """The median of the turns' medians, and of their 99th percentiles."""
    p50, p99 = (statistics.median(percentile(seconds, share) for seconds in turns) * 1000 for share in (0.5, 0.99))
    return f"{p50:.0f}", f"{p99:.0f}"


def main() -> None:
    directory = Path(tempfile.mkdtemp())
    with run_postgres(directory, POSTGRES) as server, server.migrated() as url:
        url = as_role(reached(server, url), "headroom_app")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
        for clients in (300, 1000):
            turns: dict[str, list[tuple[Answers, Answers]]] = {name: [] for name in VARIANTS}
            for _ in range(ROUNDS):
                for name, start in VARIANTS.items():
                    with start(url, directory) as served:
                        turns[name].append(uvloop.run(run(served.address, clients)))
            for name in VARIANTS:
                show(clients, name, turns[name])


if __name__ == "__main__":
    main()
