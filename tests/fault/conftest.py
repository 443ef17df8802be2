from collections.abc import Iterator

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from tests.support.postgres import ROLES, as_role, connect, run_postgres
from tests.support.stacks import ROOT


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """As its superuser."""
    with run_postgres(tmp_path_factory.mktemp("postgres")) as server, server.database() as url:
        with connect(url) as connection:
            connection.execute(ROLES)
        with pytest.MonkeyPatch.context() as environment:
            owner = as_role(url, "headroom_owner").render_as_string(hide_password=False)
            environment.setenv("MIGRATION_DATABASE_URL", owner)
            command.upgrade(Config(toml_file=ROOT / "pyproject.toml"), "head")
        yield url
