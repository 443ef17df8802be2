"""`headroom schema`: compare the revisions of this release with the database's."""

import asyncio
import json

from app.database.admin_connection import AdminConnection
from app.database.schema_version import Comparison, compare, database_schema, oldest_after_upgrade, release, revisions
from app.errors import ConfigurationError, SchemaMismatch
from app.settings import load_settings


def show_schema(*, as_json: bool) -> None:
    """Print the comparison. Raise SchemaMismatch if this release may not run on the schema, DatabaseUnavailable."""
    url = load_settings().require_database_url()
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(f"DATABASE_URL: must name a PostgreSQL database, got {url.get_backend_name()}")

    async def query() -> Comparison:
        async with AdminConnection(url, application_name="headroom:schema") as connection:
            return compare(await database_schema(connection))

    result = asyncio.run(query())
    if as_json:
        print(json.dumps(_document(result) | {"revisions": revisions()}, indent=2))
    else:
        for name, value in _document(result).items():
            shown = ", ".join(value) or "none" if isinstance(value, list) else value
            print(f"{name.replace('_', ' '):<20} {'unknown' if shown is None else shown}")
    if not result.may_run:
        raise SchemaMismatch(str(result))


def _document(result: Comparison) -> dict[str, str | list[str] | None]:
    return {
        "release": release(),
        "code": list(result.code),
        "database": list(result.database),
        "oldest_that_may_run": result.oldest,
        "oldest_after_upgrade": oldest_after_upgrade(),
        "pending": list(result.pending),
        "ahead": list(result.ahead),
        "state": result.state.value,
    }
