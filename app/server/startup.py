"""What the API checks in Gunicorn's master, before the first worker is forked."""

from time import monotonic

from app.budget.check import check_budget
from app.budget.sources import APPLICATION_NAME
from app.database.schema_version import check_schema
from app.errors import ConfigurationError
from app.settings import Settings


async def check_before_start(settings: Settings) -> None:
    """Wait for the database, then check its schema and the connection budget.

    Waits up to STARTUP_TIMEOUT seconds. Raise ConfigurationError, SchemaMismatch, BudgetExceeded.
    """
    url = settings.require_database_url()
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError("DATABASE_URL: must name a PostgreSQL database; SQLite is for unit tests")
    deadline = monotonic() + settings.startup_timeout
    # The schema first: its check is the one that waits for the database.
    await check_schema(url, deadline=deadline, application_name=APPLICATION_NAME)
    await check_budget(settings, deadline=deadline)
