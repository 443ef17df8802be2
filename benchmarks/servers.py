"""Compare ways to run an ASGI application under Gunicorn, without a database: `make bench-servers`.

The application answers a GET with 200 bytes of JSON, and does nothing else. Measured is the CPU time of the workers per
request. The parser `gunicorn_h1c` is not one of the project's packages: without it, its variant is left out.
"""

import argparse
import statistics
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import uvloop

from app.paths import PROJECT_ROOT
from benchmarks.processes import cpu_seconds
from benchmarks.tables import print_header, print_row
from tests.support.load import load
from tests.support.ports import free_port
from tests.support.serving import Served, running

CLIENTS = 32


class Way(NamedTuple):
    """A way to run the application: Gunicorn's options, and the package that it needs."""

    name: str
    options: list[str]
    needs: str = "gunicorn"


WAYS = [
    Way("uvicorn-worker: uvloop, httptools", ["-k", "uvicorn_worker.UvicornWorker"]),
    Way("uvicorn-worker: asyncio, httptools", ["-k", "benchmarks.servers_workers.AsyncioWorker"]),
    Way("uvicorn-worker: uvloop, h11", ["-k", "benchmarks.servers_workers.H11Worker"], "h11"),
    Way("gunicorn asgi: uvloop, Python parser", ["-k", "asgi", "--asgi-loop", "uvloop", "--http-parser", "python"]),
    Way(
        "gunicorn asgi: uvloop, gunicorn_h1c",
        ["-k", "asgi", "--asgi-loop", "uvloop", "--http-parser", "fast"],
        "gunicorn_h1c",
    ),
]


async def micros(served: Served, seconds: float) -> tuple[float, float]:
    """Return the CPU microseconds of the workers per request, and the requests per second."""
    before = cpu_seconds(served.pid)
    answers = await load([f"{served.address}/hello"], clients=CLIENTS, seconds=seconds)
    requests = answers.statuses[200]
    assert len(answers.each) == requests, answers.statuses
    return (cpu_seconds(served.pid) - before) / requests * 1e6, requests / seconds


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with TemporaryDirectory() as name, ExitStack() as stack:
        served = {}
        for way in WAYS:
            if find_spec(way.needs) is None:
                print(f"left out, because {way.needs} is not installed: {way.name}", file=sys.stderr)
                continue
            port = free_port()
            command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2"]
            command += [*way.options, "--no-control-socket", "benchmarks.servers_workers:application"]

            def ready(port: int = port) -> bool:
                return httpx.get(f"http://127.0.0.1:{port}/hello").status_code == 200

            environment = {"PYTHONPATH": str(PROJECT_ROOT)}
            served[way.name] = Served(port, stack.enter_context(running(command, Path(name), environment, ready)))
        for number in range(-1, args.rounds):
            for variant, each in served.items():
                measured = uvloop.run(micros(each, args.seconds if number >= 0 else 0.5))
                if number >= 0:
                    found.setdefault(variant, []).append(measured)
    first = [cpu for cpu, _ in found[WAYS[0].name]]
    print_header(("server", "CPU us per request", "of the first", "requests/s"))
    for variant, measurements in found.items():
        cpu = [micros_ for micros_, _ in measurements]
        ratio = statistics.median(a / b for a, b in zip(cpu, first, strict=True))
        speed = statistics.median(per_second for _, per_second in measurements)
        print_row((variant, f"{statistics.median(cpu):.1f}", f"{ratio:.2f}", f"{speed:.0f}"))


if __name__ == "__main__":
    main()
