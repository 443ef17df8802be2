"""What the API checks in Gunicorn's master, before the first worker is forked."""

from app.budget.check import check_budget
from app.budget.sources import APPLICATION_NAME
from app.database.schema_version import check_schema
from app.settings import Settings


async def check_before_start(settings: Settings) -> None:
    """Wait for the database, then check its schema and the connection budget.

    Waits up to STARTUP_TIMEOUT seconds. Raise SchemaMismatch, BudgetExceeded.
    """
    # The schema first: its check is the one that waits for the database.
    await check_schema(
        settings.require_database_url(), seconds=settings.startup_timeout, application_name=APPLICATION_NAME
    )
    await check_budget(settings)
