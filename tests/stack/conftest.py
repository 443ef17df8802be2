import os
from collections.abc import Iterator

import pytest

from tests.support.stacks import ComposeStack, ProdStack, Stack


@pytest.fixture(scope="session")
def prod(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProdStack]:
    """Run compose.prod.yml with secrets of its own."""
    secrets = tmp_path_factory.mktemp("secrets") / "prod"
    with ProdStack(f"headroom-prod-{os.getpid()}", secrets, build=False).running() as prod:
        yield prod


@pytest.fixture
def compose(stack: Stack) -> ComposeStack:
    """Return the session's stack in containers. The test has to parametrize `stack` with it."""
    assert isinstance(stack, ComposeStack)
    return stack
