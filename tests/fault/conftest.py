from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.support.postgres import run_postgres


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """As its superuser."""
    with run_postgres(tmp_path_factory.mktemp("postgres")) as server, server.migrated() as url:
        yield url
