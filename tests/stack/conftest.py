import os
from collections.abc import Iterator

import pytest

from tests.support.docker import require_engine
from tests.support.stacks import ProdStack


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProdStack]:
    """compose.prod.yml, running, with secrets of its own."""
    require_engine()
    secrets = tmp_path_factory.mktemp("secrets") / "prod"
    with ProdStack(f"headroom-prod-{os.getpid()}", secrets).running() as prod:
        yield prod
