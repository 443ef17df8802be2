"""More clients than connections: goodput and latency of Headroom's settings beside the textbook's, in one run.

`make bench-overload`. 4 workers of 15 connections, handlers that hold one for 50 ms, so 1,200 requests a second at the
most. A client that gets a 503 comes back when it was told to.
"""

import asyncio
import tempfile
from pathlib import Path

import uvloop

from tests.support.load import Answers, load, percentile
from tests.support.postgres import as_role, run_postgres
from tests.support.serving import holding_api

SECONDS = 30
# "Textbook" is SQLAlchemy's default: nobody is refused for 30 s, and the queue has no end.
SETTINGS = {
    "headroom": {},
    "textbook": {"DB_POOL_TIMEOUT": "30", "DB_POOL_MAX_WAITERS": "1000000"},
}


async def run(api: str, clients: int) -> tuple[Answers, Answers]:
    return await asyncio.gather(
        load([f"{api}/hold?ms=50"], clients=clients, seconds=SECONDS),
        load([f"{api}/livez"], clients=1, seconds=SECONDS, pause=0.25),
    )


def show(name: str, clients: int, answers: Answers, livez: Answers) -> None:
    good, refused = answers.seconds(200), answers.seconds(503)
    others = sum(answers.statuses.values()) - len(good) - len(refused)
    figures = [len(good) / SECONDS, *milliseconds(good), len(refused) / SECONDS, *milliseconds(refused)]
    row = [clients, name, *(f"{figure:.0f}" for figure in figures), others, f"{livez.seconds(200)[-1] * 1000:.0f}"]
    print(f"| {' | '.join(map(str, row))} |", flush=True)


def milliseconds(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return percentile(seconds, 0.5) * 1000, percentile(seconds, 0.99) * 1000


def main() -> None:
    directory = Path(tempfile.mkdtemp())
    with run_postgres(directory) as server, server.migrated() as url:
        print("| clients | settings | good/s | p50 ms | p99 ms | 503/s | p50 ms | p99 ms | others | /livez max ms |")
        print("| --- " * 10 + "|")
        for clients in (300, 1000):
            for name, settings in SETTINGS.items():
                with holding_api(as_role(url, "headroom_app"), directory, **settings) as api:
                    show(name, clients, *uvloop.run(run(api, clients)))


if __name__ == "__main__":
    main()
