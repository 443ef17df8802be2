"""How throughput and latency move with workers, pools, clients and rows: `make bench-capacity`.

Writes the tables and charts of ops/capacity/README.md. The points of a curve are measured in turn, round after round.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from sqlalchemy import URL

from app.cli.seed import seed
from benchmarks import charts
from benchmarks.bench import POSTGRES, Call, Figures, Truth, endpoints, headroom, reached, turn
from benchmarks.processes import private_bytes
from tests.support.load import get
from tests.support.postgres import Server, as_role, connect, run_postgres
from tests.support.serving import Served, gunicorn

ROUNDS, SECONDS, WARM_UP_SECONDS = 3, 3.0, 1.0
CLIENTS = 64
USER, PAGE, POST = "GET /users/{id}", "GET /posts?cursor=&limit=20", "GET /posts/{id}"
NAMES = {USER: "reads", PAGE: "pages", POST: "posts"}
HOLD = [Call(get("/hold?ms=10"), 200, lambda answer: "worker" in answer)]
# Nobody is refused: what waiting costs is what is measured.
PATIENT: dict[str, Any] = {"DB_POOL_MAX_WAITERS": "1000", "DB_POOL_TIMEOUT": "30"}
Setup = tuple[str, Callable[[], AbstractContextManager[Served]], int]
Measured = dict[str, list[Figures]]


async def measure(setups: Sequence[Setup], calls: list[Call], server: Server) -> Measured:
    """Each setup is started on its own, so that none takes memory or connections from another."""
    found: Measured = {name: [] for name, _, _ in setups}
    for _ in range(ROUNDS):
        for name, start, clients in setups:
            with start() as served:
                await turn(served, calls, server, clients, WARM_UP_SECONDS)
                found[name].append(await turn(served, calls, server, clients, SECONDS))
    return found


def table(title: str, column: str, curves: dict[str, Measured]) -> None:
    print(f"\n### {title}\n")
    heads = [head for curve in curves for head in (f"{curve}/s", "p50 ms", "p99 ms")]
    print(f"| {column} | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    for name in next(iter(curves.values())):
        cells = [
            text
            for measured in curves.values()
            for text in (
                f"{_median(measured[name], 'per_second'):.0f}",
                f"{_median(measured[name], 'p50') * 1000:.1f}",
                f"{_median(measured[name], 'p99') * 1000:.1f}",
            )
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def chart(file: Path, title: str, x_title: str, curves: dict[str, Measured], field: str, *, scale: float = 1) -> None:
    charts.lines(
        file,
        title,
        x_title,
        {
            curve: [(float(name), _median(figures, field) * scale) for name, figures in measured.items()]
            for curve, measured in curves.items()
        },
    )


def _median(figures: list[Figures], field: str) -> float:
    return float(statistics.median(getattr(each, field) for each in figures))


async def workers(server: Server, url: URL, directory: Path, output: Path) -> None:
    calls = endpoints(Truth(url))
    app = as_role(url, "headroom_app")
    setups: list[Setup] = [
        (str(n), partial(headroom, app, directory, workers=n, **PATIENT), CLIENTS) for n in (1, 2, 3, 4, 6, 8)
    ]
    curves = {NAMES[endpoint]: await measure(setups, calls[endpoint], server) for endpoint in (USER, PAGE)}
    table("Workers", "workers", curves)
    chart(output / "workers.svg", "Requests a second, by workers", "WEB_CONCURRENCY", curves, "per_second")


async def pools(server: Server, url: URL, directory: Path, output: Path) -> None:
    calls = endpoints(Truth(url))
    app = as_role(url, "headroom_app")

    def setups(start: Callable[..., AbstractContextManager[Served]]) -> list[Setup]:
        return [
            (
                str(size),
                partial(start, app, directory, DB_POOL_SIZE=str(size), DB_MAX_OVERFLOW="0", **PATIENT),
                CLIENTS * 2,
            )
            for size in (1, 2, 3, 5, 8, 15, 20)
        ]

    holding = partial(gunicorn, "benchmarks.holding:create()")
    curves = {
        "reads": await measure(setups(headroom), calls[USER], server),
        "pages": await measure(setups(headroom), calls[PAGE], server),
        "holds": await measure(setups(holding), HOLD, server),
    }
    table("Connections a worker", "DB_POOL_SIZE", curves)
    for field, name, scale in (("per_second", "Requests a second", 1.0), ("p99", "p99, ms", 1000.0)):
        chart(output / f"pools-{field}.svg", f"{name}, by pool", "DB_POOL_SIZE", curves, field, scale=scale)


async def overflow(server: Server, url: URL, directory: Path, output: Path) -> None:
    """The same fifteen connections, kept or opened when they are needed."""
    calls = endpoints(Truth(url))
    app = as_role(url, "headroom_app")
    curves = {}
    for endpoint in (USER, PAGE):
        setups: list[Setup] = [
            (
                f"{size} + {more}",
                partial(headroom, app, directory, DB_POOL_SIZE=str(size), DB_MAX_OVERFLOW=str(more), **PATIENT),
                CLIENTS,
            )
            for size, more in ((15, 0), (5, 10), (1, 14))
        ]
        curves[NAMES[endpoint]] = await measure(setups, calls[endpoint], server)
    table("Size and overflow", "DB_POOL_SIZE + DB_MAX_OVERFLOW", curves)


async def clients(server: Server, url: URL, directory: Path, output: Path) -> None:
    calls = endpoints(Truth(url))
    start = partial(headroom, as_role(url, "headroom_app"), directory, **PATIENT)
    setups: list[Setup] = [(str(n), start, n) for n in (1, 2, 4, 8, 16, 64, 250, 1000)]
    curves = {NAMES[endpoint]: await measure(setups, calls[endpoint], server) for endpoint in (USER, PAGE)}
    table("Clients", "clients", curves)


async def growth(server: Server, url: URL, directory: Path, output: Path) -> None:
    """The same reads on a thousand times the posts."""
    curves: dict[str, Measured] = {}
    with ExitStack() as stack:
        sides = {}
        for posts in (10_000, 10_000_000):
            # Alembic's migrations run a loop of their own.
            filled = reached(server, await asyncio.to_thread(stack.enter_context, server.migrated()))
            _fill(filled, 100_000, posts)
            served = stack.enter_context(headroom(as_role(filled, "headroom_app"), directory))
            sides[f"{posts:,}"] = served, endpoints(Truth(filled))
        for endpoint, curve in NAMES.items():
            curves[curve] = {name: [] for name in sides}
            for number in range(ROUNDS + 1):
                for name, (served, calls) in sides.items():
                    figures = await turn(served, calls[endpoint], server, CLIENTS, SECONDS)
                    curves[curve][name] += [figures] if number else []  # the first warms up
    table("Posts", "posts", curves)
    for curve, measured in curves.items():
        pairs = zip(measured["10,000"], measured["10,000,000"], strict=True)
        print(f"\n{curve}: {statistics.median(a.per_second / b.per_second for a, b in pairs):.2f} times as fast")


def _fill(url: URL, users: int, posts: int) -> None:
    """Faster than seeding, and as long as its texts are."""
    with connect(url) as connection:
        connection.execute(
            "INSERT INTO users (email, name, password_hash)"
            " SELECT 'u' || n || '@example.com', 'Name of ' || n, 'x' FROM generate_series(1, %s) n",
            (users,),
        )
        # Search is not asked for here, and filling its index would take longer than everything else; the foreign key's
        # trigger, a call for each row, looks for what was just written.
        connection.execute("DROP INDEX IF EXISTS ix_posts_title_content_trgm")
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO posts (author_id, title, content, created_at, updated_at)"
            " SELECT 1 + mod(n::bigint * 7919, %s), 'Title of post ' || n, repeat('some words ', 25),"
            " now() - interval '2 years' + n * interval '5 s', now() FROM generate_series(1, %s) n",
            (users, posts),
        )
        connection.execute("VACUUM (ANALYZE) users, posts")


async def memory(server: Server, url: URL, directory: Path, output: Path) -> None:
    """What a connection costs when it is open, and what a worker does."""
    calls = endpoints(Truth(url))
    app = as_role(url, "headroom_app")
    print("\n### Memory\n\n| connections a worker | open | PostgreSQL, private MB | the API, private MB |")
    print("| --- | --- | --- | --- |")
    for size in (1, 5, 15):
        with headroom(app, directory, DB_POOL_SIZE=str(size), DB_MAX_OVERFLOW="0", **PATIENT) as served:
            for endpoint in (USER, PAGE):
                await turn(served, calls[endpoint], server, CLIENTS * 2, SECONDS)
            with connect(url) as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api%'"
                ).fetchone()
                assert row is not None
                megabytes = [private_bytes(pid) / 1e6 for pid in (server.pid, served.pid)]
                print(f"| {size} | {row[0]} | {megabytes[0]:.0f} | {megabytes[1]:.0f} |", flush=True)


PARTS = {part.__name__: part for part in (workers, pools, overflow, clients, memory, growth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--posts", type=int, default=500_000)
    parser.add_argument("--output", type=Path, default=Path("ops/capacity"))
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    with run_postgres(directory, POSTGRES) as server, server.migrated() as url:
        url = reached(server, url)
        seed(url=url, users=options.users, posts=options.posts)
        for part in options.parts:
            uvloop.run(PARTS[part](server, url, directory, options.output))


if __name__ == "__main__":
    main()
