"""What the API checks in Gunicorn's master, before the first worker is forked."""

import logging
from time import monotonic

from app.budget.check import check_budget
from app.budget.sources import APPLICATION_NAME
from app.database.schema_version import check_schema
from app.errors import ConfigurationError
from app.settings import Settings, load_settings

logger = logging.getLogger(__name__)

_settings: Settings | None = None


def read_settings() -> Settings:
    """Return the settings of the API, for Gunicorn's configuration, which is executed again at a reload (SIGHUP).

    If a setting is invalid, raise ConfigurationError at the start. At a reload, log the error and return the settings
    before: Gunicorn would end the master, and with it the replica.
    """
    global _settings
    try:
        settings = load_settings()
        settings.require_database_url()
        settings.require_secret_key()
    except ConfigurationError as error:
        if _settings is None:
            raise
        logger.error("reload with the settings before, because one is invalid now: %s", error)  # noqa: TRY400
        return _settings
    _settings = settings
    return settings


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
