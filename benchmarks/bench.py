"""Headroom beside the textbook's stack and beside Starlette on asyncpg: `make bench`.

Every variant runs all the time, each under Gunicorn with four workers, on one PostgreSQL; they are measured in turn, so
that a machine that slows down slows all of them down. Whether the answers are right is looked at while they come.

Prints tables and writes the figures and a chart to `--output`. It asserts nothing about speed, which depends on the
machine.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic, perf_counter
from typing import Any, NamedTuple

import httpx
import orjson
import uvloop
from psycopg.rows import dict_row
from sqlalchemy import URL

from app.cli.seed import seed
from app.domains.auth.tokens import Tokens
from app.paths import PROJECT_ROOT
from benchmarks import charts
from benchmarks.processes import cpu_seconds
from tests.support.load import Answer, connect, get, percentile, post
from tests.support.postgres import Server, as_role, run_pgbouncer, run_postgres
from tests.support.postgres import connect as database_connection
from tests.support.proxy import Proxy
from tests.support.serving import SECRET_KEY, Served, gunicorn, running
from tests.support.stacks import free_port

RIVALS = PROJECT_ROOT / "benchmarks/rivals"
# What a server of this size would have; a crash loses nothing that was committed.
POSTGRES = "postgres -c max_connections=400 -c shared_buffers=1GB -c max_wal_size=4GB"
WARM_UP_SECONDS = 1.5
SAMPLES = 1_000
# Parsing an answer takes the client longer than receiving it.
COMPARE_EVERY = 25
COUNTED_REQUESTS = 20


class Variant(NamedTuple):
    name: str
    driver: str
    serve: Callable[..., Any]
    pooled: bool = False


@contextmanager
def rival(application: str, url: URL, directory: Path, workers: int = 4, **environment: str) -> Iterator[Served]:
    port = free_port()
    config = str(RIVALS / "gunicorn_conf.py")
    bind = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
    command = [sys.executable, "-m", "gunicorn", "-c", config, *bind, f"benchmarks.rivals.{application}:app"]
    variables = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "SECRET_KEY": SECRET_KEY,
        "PYTHONPATH": str(PROJECT_ROOT),
    }

    def ready() -> bool:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200

    with running(command, directory, variables | environment, ready) as pid:
        yield Served(port, pid)


@contextmanager
def headroom(url: URL, directory: Path, workers: int = 4, **settings: str) -> Iterator[Served]:
    """As it is deployed, a log line for each request included."""
    settings = {"LOG_LEVEL": "info", "LOG_FORMAT": "json", "WEB_CONCURRENCY": str(workers)} | settings
    with gunicorn("app.main:create_app()", url, directory, **settings) as served:
        yield served


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("headroom", "asyncpg", headroom),
        # The others log nothing either.
        Variant("headroom, LOG_LEVEL=warning", "asyncpg", partial(headroom, LOG_LEVEL="warning")),
        Variant("textbook", "asyncpg", partial(rival, "textbook")),
        Variant("bare", "asyncpg", partial(rival, "bare")),
        Variant("ceiling", "asyncpg", partial(rival, "bare", RESET="0")),
        Variant("headroom, psycopg, PgBouncer", "psycopg", partial(headroom, DB_POOLER="pgbouncer"), pooled=True),
    )
}
DEFAULT = ("headroom", "headroom, LOG_LEVEL=warning", "textbook", "bare", "ceiling")


class Truth:
    """What is in the database, and so what an answer has to say."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self.users = {row["id"]: row for row in self._rows("SELECT id, name, created_at FROM users", SAMPLES)}
        self.posts = {row["id"]: self._post(row) for row in self._rows(self._POSTS + "WHERE true", SAMPLES)}
        self.newest = [
            self._post(row) for row in self._ask(self._POSTS + "ORDER BY p.created_at DESC, p.id DESC LIMIT 20")
        ]
        self.last_post = self._ask("SELECT max(id) AS id FROM posts")[0]["id"]

    _POSTS = (
        "SELECT p.id, p.title, p.content, p.author_id, u.name, p.created_at, p.updated_at"
        " FROM posts p JOIN users u ON u.id = p.author_id "
    )

    def written(self) -> int:
        """How many posts there are beyond those of the start."""
        return int(self._ask(f"SELECT count(*) AS n FROM posts WHERE id > {self.last_post}")[0]["n"])

    def forget_written(self) -> None:
        self._ask(f"DELETE FROM posts WHERE id > {self.last_post} RETURNING id")
        with database_connection(self._url) as connection:
            connection.execute("VACUUM posts")

    def _rows(self, select: str, number: int) -> list[dict[str, Any]]:
        return self._ask(f"{select} ORDER BY random() LIMIT {number}")

    def _ask(self, query: str) -> list[dict[str, Any]]:
        with database_connection(self._url) as connection:
            return list(connection.cursor(row_factory=dict_row).execute(query.encode()))

    @staticmethod
    def _post(row: dict[str, Any]) -> dict[str, Any]:
        author = {"id": row["author_id"], "name": row["name"]}
        return {key: row[key] for key in ("id", "title", "content", "created_at", "updated_at")} | {"author": author}


class Call(NamedTuple):
    """A request, the status of its answer, and what that has to say."""

    request: bytes
    status: int
    says: Callable[[Any], bool]


def endpoints(truth: Truth) -> dict[str, list[Call]]:
    tokens = Tokens(SECRET_KEY, 86_400)
    draft = {"title": "A title of some length", "content": "What there is to say about it. " * 10}
    body = orjson.dumps(draft)

    def write(user_id: int) -> Call:
        headers = {"Authorization": f"Bearer {tokens.issue(user_id)}", "Content-Type": "application/json"}
        return Call(post("/posts", body, **headers), 201, partial(_written, truth, user_id, draft))

    return {
        "GET /users/{id}": [Call(get(f"/users/{key}"), 200, partial(_same, user)) for key, user in truth.users.items()],
        "GET /posts?cursor=&limit=20": [
            Call(
                get("/posts?cursor=&limit=20"),
                200,
                lambda page: all(map(_same, truth.newest, page["items"])) and len(page["items"]) == 20,
            )
        ],
        "GET /posts/{id}": [Call(get(f"/posts/{key}"), 200, partial(_same, each)) for key, each in truth.posts.items()],
        "POST /posts": [write(user_id) for user_id in truth.users],
    }


def _written(truth: Truth, user_id: int, draft: dict[str, str], said: dict[str, Any]) -> bool:
    author = {"id": user_id, "name": truth.users[user_id]["name"]}
    return draft.items() <= said.items() and said["author"] == author and said["id"] > truth.last_post


def _same(truth: dict[str, Any], said: dict[str, Any]) -> bool:
    return truth == {
        key: datetime.fromisoformat(value) if key.endswith("_at") else value for key, value in said.items()
    }


@dataclass
class Figures:
    """Of one turn. Times are seconds, processor times microseconds a request."""

    requests: int
    per_second: float
    p50: float
    p99: float
    slowest: float
    app_micros: float
    postgres_micros: float
    answer_bytes: float


async def turn(served: Served, calls: list[Call], server: Server, clients: int, seconds: float) -> Figures:
    """Ask for so many seconds. Raises AssertionError for an answer that is not right."""
    connections = [await connect(served.port) for _ in range(clients)]
    times: list[float] = []
    sizes = 0
    random = Random(1)
    before = cpu_seconds(served.pid), cpu_seconds(server.pid)
    started = monotonic()
    until = started + seconds

    async def client(number: int) -> None:
        nonlocal sizes
        connection = connections[number]
        while monotonic() < until:
            call = random.choice(calls)
            asked = perf_counter()
            answer = await asyncio.wait_for(connection.ask(call.request), 30)
            times.append(perf_counter() - asked)
            sizes += len(answer.head) + len(answer.body) + 4
            _check(call, answer, thoroughly=len(times) % COMPARE_EVERY == 0)

    await asyncio.gather(*map(client, range(clients)))
    took = monotonic() - started
    app, postgres = cpu_seconds(served.pid) - before[0], cpu_seconds(server.pid) - before[1]
    for connection in connections:
        connection.close()
    times.sort()
    number = len(times)
    return Figures(
        requests=number,
        per_second=number / took,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99),
        slowest=times[-1],
        app_micros=app / number * 1e6,
        postgres_micros=postgres / number * 1e6,
        answer_bytes=sizes / number,
    )


def _check(call: Call, answer: Answer, *, thoroughly: bool) -> None:
    assert answer.status == call.status, answer
    assert not thoroughly or call.says(orjson.loads(answer.body)), answer


@dataclass
class OnTheWire:
    """What a request exchanges with the database."""

    statements: float
    round_trips: float
    bytes: float


async def on_the_wire(variant: Variant, url: URL, directory: Path, calls: list[Call]) -> OnTheWire:
    """Counted by a proxy, one request after the other, when everything has been said once."""
    async with Proxy(url) as proxy, AsyncExitStack() as stack:
        serving = variant.serve(proxy.url, directory, workers=1)
        served = await asyncio.to_thread(serving.__enter__)
        stack.push_async_callback(asyncio.to_thread, serving.__exit__, None, None, None)
        connection = await connect(served.port)
        for call in calls[:COUNTED_REQUESTS] * (COUNTED_REQUESTS // len(calls[:COUNTED_REQUESTS])):
            _check(call, await connection.ask(call.request), thoroughly=True)
        before = proxy.executed, proxy.round_trips, proxy.bytes
        for call in calls[:COUNTED_REQUESTS] * (COUNTED_REQUESTS // len(calls[:COUNTED_REQUESTS])):
            _check(call, await connection.ask(call.request), thoroughly=True)
        after = proxy.executed, proxy.round_trips, proxy.bytes
        connection.close()
    return OnTheWire(*((now - then) / COUNTED_REQUESTS for now, then in zip(after, before, strict=True)))


Results = dict[str, dict[str, list[Figures]]]


async def rounds(options: argparse.Namespace, server: Server, truth: Truth, served: dict[str, Served]) -> Results:
    """By endpoint and variant, a turn a round."""
    calls = {name: each for name, each in endpoints(truth).items() if options.endpoint in name}
    results: Results = {endpoint: {name: [] for name in served} for endpoint in calls}
    for number in range(-1, options.rounds):
        for endpoint in calls:
            names = list(served)
            for name in names[number % len(names) :] + names[: number % len(names)]:  # who goes first changes
                seconds = WARM_UP_SECONDS if number < 0 else options.seconds
                figures = await turn(served[name], calls[endpoint], server, options.clients, seconds)
                if endpoint.startswith("POST"):
                    assert truth.written() == figures.requests, f"{name}: not each 201 is in the table"
                    truth.forget_written()
                if number >= 0:
                    results[endpoint][name].append(figures)
                    print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


def median(figures: list[Figures], field: str) -> float:
    return float(statistics.median(getattr(each, field) for each in figures))


def ratio(results: dict[str, list[Figures]], name: str, other: str, field: str) -> float:
    """The median of the rounds' ratios: the two of a round were measured one after the other."""
    if not results.get(other) or not results.get(name):
        return float("nan")
    pairs = zip(results[name], results[other], strict=True)
    return float(statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs))


COLUMNS = (
    "variant",
    "req/s (min to max)",
    "of bare",
    "of ceiling",
    "of textbook",
    "p50 ms",
    "p99 ms",
    "of bare's",
    "slowest ms",
    "app us",
    "of bare's",
    "PG us",
    "round trips",
    "DB bytes",
    "answer bytes",
)


def show(results: Results, wire: dict[str, dict[str, OnTheWire]]) -> None:
    for endpoint, by_name in results.items():
        print(f"\n{endpoint}\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for name, figures in by_name.items():
            speeds = [each.per_second for each in figures]
            counted = wire.get(endpoint, {}).get(name)
            cells = (
                name,
                f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})",
                *(f"{ratio(by_name, name, other, 'per_second'):.2f}" for other in ("bare", "ceiling", "textbook")),
                f"{median(figures, 'p50') * 1000:.1f}",
                f"{median(figures, 'p99') * 1000:.1f}",
                f"{ratio(by_name, name, 'bare', 'p99'):.2f}",
                f"{max(each.slowest for each in figures) * 1000:.0f}",
                f"{median(figures, 'app_micros'):.0f}",
                f"{ratio(by_name, name, 'bare', 'app_micros'):.2f}",
                f"{median(figures, 'postgres_micros'):.0f}",
                f"{counted.round_trips:.1f}" if counted else "",
                f"{counted.bytes:.0f}" if counted else "",
                f"{median(figures, 'answer_bytes'):.0f}",
            )
            print(f"| {' | '.join(cells)} |")


def write(results: Results, wire: dict[str, dict[str, OnTheWire]], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    document = {
        "figures": {
            endpoint: {name: [asdict(each) for each in figures] for name, figures in by_name.items()}
            for endpoint, by_name in results.items()
        },
        "on the wire": {
            endpoint: {name: asdict(each) for name, each in by_name.items()} for endpoint, by_name in wire.items()
        },
    }
    (output / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    names = list(next(iter(results.values())))
    charts.bars(
        output / "bench.svg",
        "Requests per second",
        list(results),
        {name: [median(results[endpoint][name], "per_second") for endpoint in results] for name in names},
    )


async def run(options: argparse.Namespace, server: Server, url: URL, directory: Path) -> None:
    truth = Truth(url)
    address = as_role(url, "headroom_app")
    wanted = [VARIANTS[name] for name in options.variants]
    with ExitStack() as stack:
        served = {}
        for variant in wanted:
            way = address
            if variant.pooled:
                way = stack.enter_context(run_pgbouncer(server, directory)).reached(way)
            way = way.set(drivername=f"postgresql+{variant.driver}")
            served[variant.name] = stack.enter_context(variant.serve(way, directory))
        results = await rounds(options, server, truth, served)
    wire: dict[str, dict[str, OnTheWire]] = {}
    if options.wire:
        for endpoint, calls in endpoints(truth).items():
            wire[endpoint] = {
                variant.name: await on_the_wire(
                    variant, address.set(drivername=f"postgresql+{variant.driver}"), directory, calls
                )
                for variant in wanted
                if endpoint in results
            }
            truth.forget_written()
    show(results, wire)
    write(results, wire, options.output)


def reached(server: Server, url: URL) -> URL:
    """The way past the engine's proxy, which would cost everybody the same, to a server in a container."""
    return url.set(host=server.address, port=5432) if server.address else url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of a turn")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--posts", type=int, default=500_000)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT)
    parser.add_argument("--endpoint", default="", help="only those with this in their name")
    parser.add_argument("--no-wire", dest="wire", action="store_false", help="count no round trips")
    parser.add_argument("--output", type=Path, default=Path(".data/bench"))
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    with run_postgres(directory, POSTGRES) as server, server.migrated() as url:
        url = reached(server, url)
        seed(url=url, users=options.users, posts=options.posts)
        uvloop.run(run(options, server, url, directory))


if __name__ == "__main__":
    main()
