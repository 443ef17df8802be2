import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.support.postgres import run_postgres
from tests.support.stacks import ComposeStack


@pytest.fixture(scope="module")
def database(new_directory: Callable[[], Path]) -> Iterator[URL]:
    """Create a migrated database on a server of this module. Return the superuser's URL."""
    with run_postgres(new_directory()) as server, server.migrated() as url:
        yield url


@pytest.fixture(scope="session")
def replicas(images: None, shared: ExitStack) -> ComposeStack:
    """Run docker-compose.yml with two replicas, whose pools are small enough for the budget of 92 connections.

    Check at the end that `docker compose down --volumes` leaves nothing.
    """
    return shared.enter_context(_replicas())


@contextmanager
def _replicas() -> Iterator[ComposeStack]:
    with ComposeStack(f"headroom-two-{os.getpid()}", replicas=2, build=False, DB_MAX_OVERFLOW="5").running() as stack:
        yield stack
        assert all(objects_of(stack).values())
    assert objects_of(stack) == {"container": [], "volume": [], "network": []}


def objects_of(stack: ComposeStack) -> dict[str, list[str]]:
    """Return the ids of the stack's containers and networks and the names of its volumes."""
    filters = ["--quiet", "--filter", f"label=com.docker.compose.project={stack.name}"]
    found = {}
    for kind, options in (("container", ["--all"]), ("volume", []), ("network", [])):
        command = ["docker", kind, "ls", *options, *filters]
        found[kind] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return found
