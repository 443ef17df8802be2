"""How throughput and latency change with workers, pools, clients and rows: `make bench-capacity`.

Prints the tables of docs/performance.md and writes its charts. The points of a curve are measured in turn, in rounds.
"""

import argparse
import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from sqlalchemy import URL

from app.cli.samples import seed
from benchmarks import charts
from benchmarks.database import BenchmarkDatabase, benchmark_database, direct_url
from benchmarks.endpoints import PAGE, POST, USER, Call, Dataset, endpoints
from benchmarks.measuring import Measurement, measure, median, ratios
from benchmarks.processes import private_bytes
from benchmarks.tables import print_header, print_row
from benchmarks.variants import headroom
from tests.support.load import get
from tests.support.postgres import as_role, connect
from tests.support.serving import Served, gunicorn

WARM_UP_SECONDS = 1.0
CLIENTS = 64
CURVE_NAMES = {USER: "reads", PAGE: "pages", POST: "posts"}
HOLD = [Call(get("/hold?ms=10"), 200, lambda body: "worker" in body)]
# No request is refused, because the benchmark measures what waiting costs.
PATIENT: dict[str, Any] = {"DB_POOL_MAX_WAITERS": "1000", "DB_POOL_TIMEOUT": "30"}
FEW_POSTS, MANY_POSTS = 10_000, 10_000_000


class Setup(NamedTuple):
    """One point of a curve: its label, how to start the server, and the number of clients."""

    label: str
    start: Callable[[], AbstractContextManager[Served]]
    clients: int = CLIENTS


# By label: one measurement per round.
Curve = dict[str, list[Measurement]]


class Run(NamedTuple):
    """What every part needs."""

    database: BenchmarkDatabase
    options: argparse.Namespace

    @property
    def app_url(self) -> URL:
        return as_role(self.database.url, "headroom_app")

    def calls(self) -> dict[str, list[Call]]:
        return endpoints(Dataset(self.database.url))

    def setup(self, label: str, clients: int = CLIENTS, **settings: Any) -> Setup:
        start = partial(headroom, self.app_url, self.database.directory, **PATIENT, **settings)
        return Setup(label, start, clients)

    async def measure(self, setups: Sequence[Setup], calls: list[Call]) -> Curve:
        """Start each setup alone, so that it shares neither memory nor connections with another."""
        curve: Curve = {setup.label: [] for setup in setups}
        server, seconds = self.database.server, self.options.seconds
        for _ in range(self.options.rounds):
            for label, start, clients in setups:
                with start() as served:
                    await measure(served, calls, server, clients, min(WARM_UP_SECONDS, seconds))
                    curve[label].append(await measure(served, calls, server, clients, seconds))
        return curve


async def workers(run: Run) -> None:
    """Vary WEB_CONCURRENCY."""
    calls = run.calls()
    setups = [run.setup(str(number), workers=number) for number in (1, 2, 3, 4, 6, 8)]
    curves = {CURVE_NAMES[endpoint]: await run.measure(setups, calls[endpoint]) for endpoint in (USER, PAGE)}
    show("Workers", "`WEB_CONCURRENCY`", curves)
    chart(
        run.options.output / "workers.svg",
        "Requests per second by number of workers",
        "WEB_CONCURRENCY",
        curves,
        "per_second",
    )


async def pools(run: Run) -> None:
    """Vary DB_POOL_SIZE, without overflow."""
    calls = run.calls()
    sizes = (1, 2, 3, 5, 8, 15, 20)
    clients = CLIENTS * 2

    def pool(size: int) -> dict[str, str]:
        return {"DB_POOL_SIZE": str(size), "DB_MAX_OVERFLOW": "0"}

    setups = [run.setup(str(size), clients, **pool(size)) for size in sizes]
    holding = partial(gunicorn, "tests.support.holding:create()", run.app_url, run.database.directory, **PATIENT)
    hold_setups = [Setup(str(size), partial(holding, **pool(size)), clients) for size in sizes]
    curves = {
        "reads": await run.measure(setups, calls[USER]),
        "pages": await run.measure(setups, calls[PAGE]),
        "holds": await run.measure(hold_setups, HOLD),
    }
    show("Connections per worker", "`DB_POOL_SIZE`", curves)
    for field, title, scale in (("per_second", "Requests per second", 1.0), ("p99", "p99 latency in ms", 1000.0)):
        file = run.options.output / f"pools-{field}.svg"
        chart(file, f"{title} by connections per worker", "DB_POOL_SIZE", curves, field, scale=scale)


async def overflow(run: Run) -> None:
    """Compare fifteen connections that are kept open with fifteen that are partly overflow."""
    calls = run.calls()
    setups = [
        run.setup(f"{size} + {overflow}", DB_POOL_SIZE=str(size), DB_MAX_OVERFLOW=str(overflow))
        for size, overflow in ((15, 0), (5, 10), (1, 14))
    ]
    curves = {CURVE_NAMES[endpoint]: await run.measure(setups, calls[endpoint]) for endpoint in (USER, PAGE)}
    show("Size and overflow", "size + overflow", curves)


async def clients(run: Run) -> None:
    """Vary the number of clients."""
    calls = run.calls()
    setups = [run.setup(str(number), number) for number in (1, 2, 4, 8, 16, 64, 250, 1000)]
    curves = {CURVE_NAMES[endpoint]: await run.measure(setups, calls[endpoint]) for endpoint in (USER, PAGE)}
    show("Clients", "clients", curves)


async def table_size(run: Run) -> None:
    """Compare the same reads on a table a thousand times as large."""
    server = run.database.server
    curves: dict[str, Curve] = {}
    with ExitStack() as stack:
        sides = {}
        for posts in (FEW_POSTS, run.options.many_posts):
            # In a thread: Alembic's migrations run an event loop of their own.
            url = direct_url(server, await asyncio.to_thread(stack.enter_context, server.migrated()))
            _fill(url, run.options.users, posts)
            served = stack.enter_context(headroom(as_role(url, "headroom_app"), run.database.directory))
            sides[f"{posts:,}"] = served, endpoints(Dataset(url))
        for endpoint, name in CURVE_NAMES.items():
            curves[name] = {label: [] for label in sides}
            for number in range(run.options.rounds + 1):
                for label, (served, calls) in sides.items():
                    measurement = await measure(served, calls[endpoint], server, CLIENTS, run.options.seconds)
                    curves[name][label] += [measurement] if number else []  # the first round warms up
    show("Table size", "posts", curves)
    for name, curve in curves.items():
        few, many = curve.values()
        print(f"\n{name}: {statistics.median(ratios(few, many, 'per_second')):.2f} times as fast on the small table")


def _fill(url: URL, users: int, posts: int) -> None:
    """Insert rows by SQL, which is faster than `headroom seed`. The texts are as long as those of the seed."""
    with connect(url) as connection:
        connection.execute(
            "INSERT INTO users (email, name, password_hash)"
            " SELECT 'u' || n || '@example.com', 'Name of ' || n, 'x' FROM generate_series(1, %s) n",
            (users,),
        )
        # Without the search index, which this benchmark does not use, and without the foreign key's trigger: both would
        # take longer than everything else.
        connection.execute("DROP INDEX IF EXISTS ix_posts_title_content_trgm")
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO posts (author_id, title, content, created_at, updated_at)"
            " SELECT 1 + mod(n::bigint * 7919, %s), 'Title of post ' || n, repeat('some words ', 25),"
            " now() - interval '2 years' + n * interval '5 s', now() FROM generate_series(1, %s) n",
            (users, posts),
        )
        connection.execute("VACUUM (ANALYZE) users, posts")


async def memory(run: Run) -> None:
    """Measure the memory of open connections, in PostgreSQL and in the API."""
    calls = run.calls()
    server = run.database.server
    print("\n### Memory\n")
    print_header(("connections per worker", "open", "PostgreSQL, private MB", "the API's four workers, private MB"))
    for size in (1, 5, 15):
        with run.setup(str(size), DB_POOL_SIZE=str(size), DB_MAX_OVERFLOW="0").start() as served:
            for endpoint in (USER, PAGE):
                await measure(served, calls[endpoint], server, CLIENTS * 2, run.options.seconds)
            with connect(run.database.url) as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'headroom:api%'"
                ).fetchone()
            assert row is not None
            postgres, api = (private_bytes(pid) / 1e6 for pid in (server.pid, served.pid))
            print_row((size, row[0], f"{postgres:.0f}", f"{api:.0f}"))


def show(title: str, column: str, curves: dict[str, Curve]) -> None:
    """Print the curves side by side, with a row per label."""
    print(f"\n### {title}\n")
    print_header((column, *(head for name in curves for head in (f"{name}/s", "p50 ms", "p99 ms"))))
    for label in next(iter(curves.values())):
        cells = [
            text
            for curve in curves.values()
            for text in (
                f"{median(curve[label], 'per_second'):.0f}",
                f"{median(curve[label], 'p50') * 1000:.1f}",
                f"{median(curve[label], 'p99') * 1000:.1f}",
            )
        ]
        print_row((label, *cells))


def chart(file: Path, title: str, x_title: str, curves: dict[str, Curve], field: str, *, scale: float = 1) -> None:
    """Write the medians of a field as a line chart. The labels are the x values."""
    series = {
        name: [(float(label), median(measurements, field) * scale) for label, measurements in curve.items()]
        for name, curve in curves.items()
    }
    charts.lines(file, title, x_title, series)


PARTS = {part.__name__: part for part in (workers, pools, overflow, clients, memory, table_size)}


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per point (default: 3)")
    parser.add_argument("--seconds", type=float, default=3, help="length of a measurement (default: 3)")
    parser.add_argument("--users", type=int, default=100_000, help="rows in users (default: 100000)")
    parser.add_argument("--posts", type=int, default=500_000, help="rows in posts (default: 500000)")
    parser.add_argument(
        "--many-posts", type=int, default=MANY_POSTS, help="rows of the large table (default: 10000000)"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="of the charts (default: docs/images)")
    options = parser.parse_args()
    with benchmark_database() as database:
        seed(url=database.url, users=options.users, posts=options.posts)
        for part in options.parts:
            uvloop.run(PARTS[part](Run(database, options)))


if __name__ == "__main__":
    main()
