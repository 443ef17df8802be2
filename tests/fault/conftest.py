import os
from collections.abc import Callable, Iterator
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
def replicas(images: None) -> Iterator[ComposeStack]:
    """Run docker-compose.yml with two replicas, whose pools are small enough for the budget of 92 connections."""
    with ComposeStack(f"headroom-two-{os.getpid()}", replicas=2, build=False, DB_MAX_OVERFLOW="5").running() as stack:
        yield stack
