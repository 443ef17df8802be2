import pytest
from sqlalchemy import URL

from tests.support.postgres import as_role


@pytest.fixture
def owner(database_url: URL) -> URL:
    """Return the migrations' URL of a database at the project's newest revision."""
    return as_role(database_url, "headroom_owner")
