"""Compare Headroom with other stacks, or with another checkout of itself: `make bench`.

Every variant runs during the whole benchmark, with four workers each, on one PostgreSQL. They are measured in turn, so
that a slow moment of the machine affects all of them. Responses are checked while they arrive.

Prints tables; writes all measurements and a chart to `--output`. docs/performance.md explains the variants.
"""

import argparse
import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from sqlalchemy import URL

from app.cli.samples import seed
from benchmarks import charts
from benchmarks.database import BenchmarkDatabase, benchmark_database
from benchmarks.endpoints import MIXED, Call, Dataset, endpoints
from benchmarks.measuring import Measurement, measure, median, ratios
from benchmarks.tables import print_header, print_row
from benchmarks.variants import BASELINE, DEFAULT, HEADROOM, VARIANTS, Variant, baseline
from tests.support.load import connect
from tests.support.postgres import as_role, run_pgbouncer
from tests.support.proxy import Proxy
from tests.support.serving import Served

WARM_UP_SECONDS = 1.5
COUNTED_REQUESTS = 20


@dataclass
class DatabaseTraffic:
    """What the API exchanges with the database, per request."""

    statements: float
    round_trips: float
    bytes: float


# By endpoint with number of clients, and variant: one measurement per round.
Results = dict[str, dict[str, list[Measurement]]]
Traffic = dict[str, dict[str, DatabaseTraffic]]


async def run(options: argparse.Namespace, database: BenchmarkDatabase) -> None:
    """Measure the chosen variants, print the tables, write the files."""
    dataset = Dataset(database.url)
    calls = {name: each for name, each in endpoints(dataset).items() if options.endpoint in name}
    if not calls:
        sys.exit(f"no endpoint contains {options.endpoint!r}: {', '.join(endpoints(dataset))}")
    app_url = as_role(database.url, "headroom_app")
    with ExitStack() as stack:
        served = {}
        for variant in options.variants:
            url = app_url
            if variant.pooled:
                url = stack.enter_context(run_pgbouncer(database.server, database.directory)).reached(url)
            served[variant.name] = stack.enter_context(variant.serve(_with_driver(url, variant), database.directory))
        results = await measure_rounds(options, database, dataset, calls, served)
    traffic: Traffic = {}
    if options.count_traffic:
        for endpoint in calls.keys() - {MIXED}:
            traffic[endpoint] = {
                variant.name: await count_traffic(variant, app_url, database.directory, calls[endpoint])
                for variant in options.variants
            }
            dataset.delete_new_posts()
    show_results(results, traffic)
    if options.baseline:
        show_baseline(results)
    write_results(results, traffic, options.output)


async def measure_rounds(
    options: argparse.Namespace,
    database: BenchmarkDatabase,
    dataset: Dataset,
    calls: dict[str, list[Call]],
    served: dict[str, Served],
) -> Results:
    """Measure each variant once per round and endpoint, after one round to warm up."""
    runs = {
        f"{endpoint}, {clients} client{'s' * (clients > 1)}": (endpoint, clients)
        for endpoint in calls
        for clients in options.clients
    }
    results: Results = {run: {name: [] for name in served} for run in runs}
    names = list(served)
    for number in range(-1, options.rounds):
        for run, (endpoint, clients) in runs.items():
            first = number % len(names)
            for name in names[first:] + names[:first]:  # each round starts with another variant
                seconds = WARM_UP_SECONDS if number < 0 else options.seconds
                measurement = await measure(served[name], calls[endpoint], database.server, clients, seconds)
                if measurement.created:
                    assert dataset.count_new_posts() == measurement.created, f"{name}: a 201 without a stored post"
                    dataset.delete_new_posts()
                if number >= 0:
                    results[run][name].append(measurement)
                    print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


async def count_traffic(variant: Variant, url: URL, directory: Path, calls: list[Call]) -> DatabaseTraffic:
    """Count with a proxy, one request after the other, after the same requests were sent once to warm up."""
    sample = calls[:COUNTED_REQUESTS]
    sample *= COUNTED_REQUESTS // len(sample)
    async with Proxy(url) as proxy, AsyncExitStack() as stack:
        # In threads: starting and stopping a server blocks, and the proxy runs on this event loop.
        serving = variant.serve(_with_driver(proxy.url, variant), directory, workers=1)
        served = await asyncio.to_thread(serving.__enter__)
        stack.push_async_callback(asyncio.to_thread, serving.__exit__, None, None, None)
        connection = await connect(served.port)
        for call in sample:
            call.check(await connection.ask(call.request), body=True)
        before = proxy.executed, proxy.round_trips, proxy.bytes
        for call in sample:
            call.check(await connection.ask(call.request), body=True)
        after = proxy.executed, proxy.round_trips, proxy.bytes
        connection.close()
    return DatabaseTraffic(*((now - then) / len(sample) for now, then in zip(after, before, strict=True)))


def _with_driver(url: URL, variant: Variant) -> URL:
    return url.set(drivername=f"postgresql+{variant.driver}")


def show_results(results: Results, traffic: Traffic) -> None:
    """Print one table for each endpoint and number of clients."""
    for run, by_name in results.items():
        counted = traffic.get(run.rpartition(", ")[0], {})
        rows = [_row(by_name, name, counted.get(name)) for name in by_name]
        print(f"\n{run}\n")
        print_header(tuple(rows[0]))
        for row in rows:
            print_row(tuple(row.values()))


def _row(by_name: dict[str, list[Measurement]], name: str, counted: DatabaseTraffic | None) -> dict[str, str]:
    """Return one variant's cells by column. Ratios to variants that were not measured are left out."""
    measurements = by_name[name]
    speeds = [each.per_second for each in measurements]

    def compared(column: str, other: str, field: str) -> dict[str, str]:
        if other not in by_name:
            return {}
        return {column: f"{statistics.median(ratios(measurements, by_name[other], field)):.2f}"}

    return {
        "variant": name,
        "req/s (min to max)": f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})",
        **compared("of bare", "bare", "per_second"),
        **compared("of ceiling", "ceiling", "per_second"),
        **compared("of textbook", "textbook", "per_second"),
        "p50 ms": f"{median(measurements, 'p50') * 1000:.1f}",
        "p99 ms": f"{median(measurements, 'p99') * 1000:.1f}",
        **compared("p99 of bare", "bare", "p99"),
        **compared("of fastify", "fastify", "per_second"),
        "slowest ms": f"{max(each.slowest for each in measurements) * 1000:.0f}",
        "refused": f"{statistics.median(each.refused / (each.requests + each.refused) for each in measurements):.1%}",
        "app us": f"{median(measurements, 'app_micros'):.0f}",
        **compared("app us of bare", "bare", "app_micros"),
        "PG us": f"{median(measurements, 'postgres_micros'):.0f}",
        **({"round trips": f"{counted.round_trips:.1f}", "DB bytes": f"{counted.bytes:.0f}"} if counted else {}),
        "response bytes": f"{median(measurements, 'response_bytes'):.0f}",
    }


def show_baseline(results: Results) -> None:
    """Print the ratio of this checkout to the baseline for each endpoint."""
    print("\nThis checkout divided by the baseline: median of the rounds' ratios (lowest to highest)\n")
    print_header(("endpoint", "req/s", "p50", "p99", "app CPU", "PG CPU"))
    for endpoint, by_name in results.items():
        cells = []
        for field in ("per_second", "p50", "p99", "app_micros", "postgres_micros"):
            each = ratios(by_name[HEADROOM], by_name[BASELINE], field)
            cells.append(f"{statistics.median(each):.3f} ({min(each):.2f} to {max(each):.2f})")
        print_row((endpoint, *cells))


def write_results(results: Results, traffic: Traffic, output: Path) -> None:
    """Write bench.json with every measurement, and a chart: ratios to `bare` by the number of clients."""
    output.mkdir(parents=True, exist_ok=True)
    document = {
        "measurements": {
            endpoint: {name: [asdict(each) for each in measurements] for name, measurements in by_name.items()}
            for endpoint, by_name in results.items()
        },
        "database traffic": {
            endpoint: {name: asdict(each) for name, each in by_name.items()} for endpoint, by_name in traffic.items()
        },
    }
    (output / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    by_clients: dict[str, dict[str, float]] = {}
    for run, by_name in results.items():
        endpoint, _, clients = run.rpartition(", ")
        first = next(iter(by_name))
        if "bare" in by_name:
            each = ratios(by_name[first], by_name["bare"], "per_second")
            by_clients.setdefault(clients, {})[endpoint] = statistics.median(each)
    draw(by_clients, output / "bench.svg")


def draw(by_clients: dict[str, dict[str, float]], file: Path) -> None:
    """Draw ratios by number of clients and endpoint. A pair that was not measured has no bar."""
    endpoints = list(dict.fromkeys(endpoint for each in by_clients.values() for endpoint in each))
    series = {clients: [each.get(endpoint) for endpoint in endpoints] for clients, each in by_clients.items()}
    charts.bars(file, "Requests per second, as a ratio to bare", endpoints, series, decimals=1)


def parse_options() -> argparse.Namespace:
    """Return the options; `variants` are Variants, with the baseline second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements per variant and endpoint (default: 5)")
    parser.add_argument("--seconds", type=float, default=4, help="length of a measurement (default: 4)")
    parser.add_argument("--clients", type=int, nargs="+", default=[32], help="client connections (default: 32)")
    parser.add_argument("--users", type=int, default=100_000, help="rows in users (default: 100000)")
    parser.add_argument("--posts", type=int, default=500_000, help="rows in posts (default: 500000)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--baseline", type=Path, metavar="DIR", help="also measure the checkout in this directory")
    parser.add_argument(
        "--only-baseline", action="store_true", help="measure only `headroom` and the baseline, without counting"
    )
    parser.add_argument("--endpoint", default="", help="only endpoints whose name contains this text")
    parser.add_argument(
        "--no-traffic", dest="count_traffic", action="store_false", help="do not count round trips and bytes"
    )
    parser.add_argument("--output", type=Path, default=Path(".data/bench"), help="default: .data/bench")
    options = parser.parse_args()
    if options.only_baseline:
        if options.baseline is None or options.variants:
            parser.error("--only-baseline needs --baseline, and excludes --variants")
        options.variants, options.count_traffic = [HEADROOM], False
    options.variants = [VARIANTS[name] for name in options.variants or DEFAULT]
    if options.baseline is not None:
        if VARIANTS[HEADROOM] not in options.variants:
            parser.error(f"--baseline is compared with the variant {HEADROOM!r}: add it to --variants")
        options.variants.insert(1, baseline(options.baseline))
    return options


def main() -> None:
    """Run the benchmark."""
    options = parse_options()
    with benchmark_database() as database:
        seed(url=database.url, users=options.users, posts=options.posts)
        uvloop.run(run(options, database))


if __name__ == "__main__":
    main()
