import os
from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.support.postgres import run_postgres
from tests.support.stacks import ComposeStack


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """Create a migrated database on a server of this module. Return the superuser's URL."""
    with run_postgres(tmp_path_factory.mktemp("postgres")) as server, server.migrated() as url:
        yield url


@pytest.fixture(scope="session")
def replicas(images: None) -> Iterator[ComposeStack]:
    """Run docker-compose.yml with two replicas, whose pools are small enough for the budget of 92 connections."""
    with ComposeStack(f"headroom-two-{os.getpid()}", replicas=2, build=False, DB_MAX_OVERFLOW="5").running() as stack:
        yield stack
