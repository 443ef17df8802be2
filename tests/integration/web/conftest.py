"""The tests of the web package write to a table of their own."""

from collections.abc import Iterator

import pytest

from tests.integration.database.helpers import template_with_contacts
from tests.support.postgres import Server


@pytest.fixture(scope="session")
def migrated_template(postgres: Server, migrated_template: str) -> Iterator[str]:
    """Return the name of a database that also has the table of contacts."""
    with template_with_contacts(postgres, migrated_template) as name:
        yield name
