import os
from collections.abc import Iterator

import pytest

from app.settings import Settings


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
