import gc
import io
import logging
import os
from collections.abc import Callable, Iterator

import pytest

from app.observability.logging import configure_logging
from app.settings import Settings
from tests.support.docker import require_engine
from tests.support.stacks import ComposeStack, LocalStack, Stack


def pytest_collection_finish() -> None:
    """As a deployed worker does, leave what stays until the end out of each garbage collection.

    Half a second was seen for a full one: as long as the pools here wait.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> Iterator[None]:
    """No setting of the caller's shell or .env reaches a test: none may touch a configured database."""
    saved = dict(os.environ)
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)
        os.environ.pop(f"{name.upper()}_FILE", None)
    env_file = Settings.model_config["env_file"]
    Settings.model_config["env_file"] = None
    yield
    Settings.model_config["env_file"] = env_file
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture
def json_log() -> Iterator[Callable[[], str]]:
    """Logs as in production, for the time of the test; call it for what has been written."""
    root = logging.getLogger()
    saved = root.handlers[:], root.level
    configure_logging(format="json", level="info")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    handler.setStream(written)
    yield written.getvalue
    root.handlers[:], root.level = saved


@pytest.fixture(scope="session", params=["local", "compose"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, running: as local processes and, where an engine answers, in containers."""
    if request.param == "compose":
        require_engine()
        with ComposeStack(f"headroom-test-{os.getpid()}").running() as compose:
            yield compose
    else:
        with LocalStack(tmp_path_factory.mktemp("stack")).running() as local:
            yield local
