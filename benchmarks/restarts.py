"""Planned restarts of compose.prod.yml under load: `make bench-restarts`.

Restart PostgreSQL, which is away for 10 s in addition, and replace PgBouncer, again and again.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop

from app.paths import PROJECT_ROOT
from benchmarks.deploy import STEADY_SECONDS, Phases, Traffic, show
from tests.support.stacks import ProdStack, build_images


def slow_start(stack: ProdStack, directory: Path, seconds: float) -> None:
    """Let a new container of PostgreSQL wait before it starts."""
    override = directory / "slow.yml"
    command = f'["bash", "-c", "sleep {seconds}; exec bash /etc/postgresql/start.sh $$0 $$@"]'
    override.write_text(f"services: {{ postgres: {{ entrypoint: {command} }} }}\n")
    stack.files.append(str(override))


def restart(stack: ProdStack, service: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `make restart-SERVICE` for the stack, with the images that are there."""
    files = os.pathsep.join(str(PROJECT_ROOT / file) for file in stack.files)
    environment = {"COMPOSE_FILE": files, "COMPOSE_PROJECT_NAME": stack.name, "COMPOSE_ENV_FILES": os.devnull}
    return subprocess.run(
        [sys.executable, "-m", "ops.restart", service, "--no-build", *options],
        cwd=PROJECT_ROOT,
        env=os.environ | stack.environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def report(stack: ProdStack, service: str) -> str:
    """Restart a service. Return what is printed."""
    finished = restart(stack, service)
    return finished.stdout + finished.stderr


def replace(stack: ProdStack, service: str) -> str:
    """Replace the container of a service, as Compose does it."""
    return stack.compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", service)


def main() -> None:
    """Run both restarts under load, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="default: 50")
    parser.add_argument("--seconds", type=float, default=10, help="additional absence of PostgreSQL (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="restarts of each (default: 3)")
    parser.add_argument("--plain", action="store_true", help="only replace the containers, for comparison")
    options = parser.parse_args()
    build_images()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        stack = ProdStack(f"headroom-restarts-{os.getpid()}", directory / "secrets", build=False)
        with stack.running():
            slow_start(stack, directory, options.seconds)
            traffic, phases = Traffic(stack), Phases()

            def choreography() -> None:
                for number in range(options.rounds):
                    for service in ("postgres", "pgbouncer"):
                        with phases.phase(f"restart {service} {number + 1}"):
                            print(replace(stack, service) if options.plain else report(stack, service), flush=True)
                        with phases.phase("after"):
                            asyncio.run(asyncio.sleep(STEADY_SECONDS / 2))

            uvloop.run(traffic.run(options.clients, choreography))
            show(traffic, phases)


if __name__ == "__main__":
    main()
