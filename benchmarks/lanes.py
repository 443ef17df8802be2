"""Measure ordinary reads and sign-ins while noisy clients request expensive pages: `make bench-lanes`.

Each measurement starts the API twice: with lanes and CoDel, and without them. Noisy clients obey Retry-After. The API
runs as local processes; with `--stack prod`, as two replicas of compose.prod.yml behind its proxy and PgBouncer (needs
Docker). With `--overload`, it measures 5 times more ordinary requests than the pool can serve instead.
"""

import argparse
import os
import tempfile
from asyncio import Event, create_task, sleep
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from ssl import SSLContext
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import uvloop

from app.cli.samples import seed
from app.observability.logging import configure_logging
from benchmarks.database import BenchmarkDatabase, benchmark_database
from benchmarks.tables import print_header, print_row
from tests.support.load import Answers, connect, load, percentile, post
from tests.support.postgres import as_role
from tests.support.postgres import connect as connect_to_database
from tests.support.serving import gunicorn
from tests.support.stacks import ProdStack, build_images
from tests.support.waiting import eventually

PASSWORD = "correct horse"
USERS = 1_000
READERS = 20
NOISY_CLIENTS = (40, 200)
# Enough to learn the costs, and to answer what was begun before.
LEARNING_SECONDS = 20.0
WARM_UP_SECONDS = 2.0
SETTLING_SECONDS = 3.0
VARIANTS = {
    "without": {
        "DB_EXPENSIVE_AFTER": "0",
        "DB_EXPENSIVE_SHARE": "1000",
        "DB_EXPENSIVE_MAX_WAITERS": "1000",
        "DB_QUEUE_TARGET": "1000",
    },
    "with": {"POSTGRES_CORES": str(os.cpu_count() or 1)},
}
# The limit of offsets would refuse a kind of request.
LIMITS = {"SIGN_IN_ACCOUNT_LIMIT": "1000000", "SIGN_IN_ADDRESS_LIMIT": "1000000", "LIST_MAX_OFFSET": "1000000"}
TRIGRAM_INDEX = "ix_posts_title_content_trgm"
COLUMNS = (
    "noisy clients",
    "ask for",
    "lanes",
    "readers: 200/s",
    "of quiet",
    "p99 ms",
    "503/s; longest ms since the start",
    "noisy: 200/s",
    "p99 ms",
    "503/s",
    "longest ms since the start",
    "others",
    "sign-ins",
    "longest ms",
    "readers keep half of quiet from s",
)
WORDS = ("answer", "budget", "cache", "query")
# Kinds of expensive requests. The number of the client makes each differ: equal reads would share a statement.
KINDS: dict[str, Callable[[int], str]] = {
    "same search": lambda number: "/posts?q=zzzzqqq",
    "search": lambda number: f"/posts?q=zzzz{number}",
    "one letter": lambda number: f"/posts?q={'etaoinshrdlu'[number % 12]}&limit={20 + number // 12}",
    "common word": lambda number: f"/posts?q={WORDS[number % len(WORDS)]}&limit={20 + number // len(WORDS)}",
    "offset": lambda number: f"/posts?offset={190_000 + number}",
    "offset within the limit": lambda number: f"/posts?offset={9_000 + number}",
    "search by title": lambda number: f"/posts?q=zzzz{number}&sort=title",
    "search by cursor": lambda number: f"/posts?cursor=&q=zzzz{number}",
}


class Api(NamedTuple):
    """An API that is ready, with the certificate of its authority if it needs TLS."""

    port: int
    tls: SSLContext | None = None

    @property
    def address(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"


# Starts the API with these settings.
Start = Callable[[dict[str, str]], AbstractContextManager[Api]]


@contextmanager
def local_processes(posts: int, *, has_index: bool) -> Iterator[Start]:
    """Serve the API as processes of this machine."""
    with benchmark_database() as database:
        configure_logging(format="json", level="error")  # migrations have set their own
        seed(url=database.url, users=USERS, posts=posts)
        if not has_index:
            with connect_to_database(database.url) as admin:
                admin.execute(f"DROP INDEX IF EXISTS {TRIGRAM_INDEX}")

        @contextmanager
        def start(settings: dict[str, str]) -> Iterator[Api]:
            url = as_role(database.url, "headroom_app")
            with gunicorn("app.main:create_app()", url, database.directory, **LIMITS, **settings) as served:
                yield Api(served.port)

        yield start


@contextmanager
def production(posts: int, *, has_index: bool) -> Iterator[Start]:
    """Serve the API with compose.prod.yml."""
    build_images()
    with tempfile.TemporaryDirectory() as directory:
        stack = ProdStack(f"headroom-lanes-{os.getpid()}", Path(directory) / "secrets", build=False, **LIMITS)
        with stack.running():
            adding = ("--users", str(USERS), "--posts", str(posts))
            stack.compose("run", "--rm", "--no-deps", "migrate", "headroom", "seed", *adding)
            if not has_index:
                stack.sql(f"DROP INDEX IF EXISTS {TRIGRAM_INDEX}")

            @contextmanager
            def start(settings: dict[str, str]) -> Iterator[Api]:
                stack.compose("stop", "api")
                eventually(lambda: stack.replicas_in_proxy() == 0, within=60)
                names = {name for variant in VARIANTS.values() for name in variant}
                stack.environment |= dict.fromkeys(names, "") | settings
                stack.compose("up", "--no-build", "--detach", "--no-deps", "api")
                eventually(lambda: stack.replicas_in_proxy() == 2, within=120)
                yield Api(httpx.URL(stack.api).port or 443, stack.tls)

            yield start


STACKS = {"local": local_processes, "prod": production}


class Round(NamedTuple):
    """What the clients of one measurement got. `rates` are the readers' answers in each second from the start."""

    readers: Answers
    noisy: Answers
    sign_ins: Answers
    rates: list[int]


async def sign_in(api: Api, until: Event) -> Answers:
    """Sign in again and again, and return the answers."""
    form = urlencode({"username": "lanes@example.com", "password": PASSWORD}).encode()
    request = post("/auth/token", form, **{"Content-Type": "application/x-www-form-urlencoded"})
    answers = Answers()
    while not until.is_set():
        connection = await connect(api.port, api.tls)
        started = monotonic()
        answer = await connection.ask(request)
        answers.each.append((started, answer.status, monotonic() - started))
        connection.close()
        await sleep(0.25)
    return answers


def since(answers: Answers, began: float) -> Answers:
    """Return the answers to requests that were sent from then on, and all refusals."""
    return Answers([each for each in answers.each if each[0] >= began], answers.refusals)


async def run_round(api: Api, noisy: list[str], clients: int, seconds: float, learning: float) -> Round:
    """Run readers, noisy clients and sign-ins together. The first seconds, in which costs are learnt, do not count."""
    stop = Event()
    disturbed = [api.address + path for path in noisy]
    disturbing = create_task(load(disturbed, clients=clients, until=stop, tls=api.tls)) if clients else None
    signing_in = create_task(sign_in(api, stop))
    urls = [f"{api.address}/users/{number}" for number in range(1, READERS + 1)]
    started = monotonic()
    readers = await load(urls, clients=READERS, seconds=learning + seconds, tls=api.tls)
    stop.set()
    others = await disturbing if disturbing else Answers()
    counts = Counter(int(sent + took - started) for sent, status, took in readers.each if status == 200)
    began = started + learning
    return Round(
        since(readers, began),
        since(others, began),
        since(await signing_in, began),
        [counts[second] for second in range(int(learning + seconds))],
    )


def longest_refusals(answers: Answers) -> str:
    """Return the kinds of problem of all 503s since the start, each with its longest time in milliseconds."""
    longest = {problem: took for _, problem, took in sorted(answers.refusals, key=lambda each: each[2])}
    return ", ".join(f"{problem} {took * 1000:.0f}" for problem, took in longest.items())


def show(kind: str, clients: int, lanes: str, got: Round, seconds: float, quiet: float) -> float:
    """Print a row, and return the readers' rate."""
    rate = len(got.readers.seconds(200)) / seconds
    refused = got.noisy.seconds(503)
    recovered = max((second for second, count in enumerate(got.rates, 1) if count < quiet / 2), default=0)
    print_row(
        (
            clients,
            kind,
            lanes,
            f"{rate:.0f}",
            f"{rate / quiet:.2f}" if quiet else "",
            f"{percentile(got.readers.seconds(200), 0.99) * 1000:.0f}",
            f"{len(got.readers.seconds(503)) / seconds:.1f}; {longest_refusals(got.readers)}",
            f"{len(got.noisy.seconds(200)) / seconds:.1f}",
            f"{percentile(got.noisy.seconds(200), 0.99) * 1000:.0f}",
            f"{len(refused) / seconds:.1f}",
            longest_refusals(got.noisy),
            sum(
                status not in (200, 503)
                for each in (got.readers, got.noisy, got.sign_ins)
                for _, status, _ in each.each
            ),
            f"{len(got.sign_ins.seconds(200))} of {len(got.sign_ins.each)}",
            f"{percentile(got.sign_ins.seconds(200, 503), 1) * 1000:.0f}",
            "" if not quiet else "never" if recovered == len(got.rates) else recovered,
        )
    )
    return rate


def measure_noise(
    start: Start, kinds: list[str], counts: list[int], variants: list[str], seconds: float, learning: float
) -> None:
    """Print what ordinary readers get, for each kind of expensive request."""
    print_header(COLUMNS)
    quiet = {}
    for lanes in variants:
        with start(VARIANTS[lanes]) as api:
            user = {"email": "lanes@example.com", "name": "Lanes", "password": PASSWORD}
            created = httpx.post(f"{api.address}/users", json=user, timeout=30, verify=api.tls or True)
            assert created.status_code in (201, 409)
            got = uvloop.run(run_round(api, [], 0, seconds, learning))  # workers still start at first
        quiet[lanes] = show("nothing", 0, lanes, got, seconds, 0.0)
    for clients in counts:
        for kind in kinds:
            for lanes in variants:
                paths = [KINDS[kind](number) for number in range(clients)]
                with start(VARIANTS[lanes]) as api:
                    got = uvloop.run(run_round(api, paths, clients, seconds, learning))
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
    parser.add_argument(
        "--learning", type=float, default=LEARNING_SECONDS, help="load before a measurement, in seconds (default: 20)"
    )
    parser.add_argument("--lanes", nargs="+", choices=VARIANTS, default=[*VARIANTS], help="default: without and with")
    parser.add_argument("--stack", choices=STACKS, default="local", help="where the API runs (default: local)")
    parser.add_argument("--index", action="store_true", help="keep the index for the search, if there is one")
    parser.add_argument("--overload", action="store_true", help="measure overload by ordinary requests")
    options = parser.parse_args()
    if options.overload:
        with benchmark_database() as database:
            configure_logging(format="json", level="error")
            measure_overload(database, options.seconds)
    else:
        with STACKS[options.stack](options.posts, has_index=options.index) as start:
            measure_noise(start, options.kinds, options.clients, options.lanes, options.seconds, options.learning)
    print(f"\nload average: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
