"""The API for development: one worker that uvicorn replaces when code changes, with migrations and warnings.

Run it with `headroom dev`, which starts PostgreSQL and names it in the environment.
"""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import uvicorn
from alembic.config import Config
from alembic.script import ScriptDirectory
from fastapi import FastAPI

from app.database.conninfo import parameters
from app.development.warnings import warn_of_mistakes
from app.main import create_app
from app.observability.logging import logging_config
from app.paths import PROJECT_ROOT, PYPROJECT
from app.settings import Settings, load_settings

# Passes the option to the processes that uvicorn starts.
_LOG_SQL = "HEADROOM_DEV_SQL"
# A request that still runs is cut off then: the new code should answer soon.
_SHUTDOWN_SECONDS = 1
logger = logging.getLogger("headroom.dev")


def main() -> None:
    """Serve until a stop signal, and restart the worker when a file changes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sql", action="store_true")
    os.environ[_LOG_SQL] = "1" if parser.parse_args().sql else ""
    settings = load_settings()
    uvicorn.run(
        "app.development.server:create",
        factory=True,
        host=settings.api_host,
        port=settings.api_port,
        reload=True,
        workers=1,  # otherwise Uvicorn reads WEB_CONCURRENCY, which may be empty
        reload_dirs=[str(PROJECT_ROOT / folder) for folder in ("app", "migrations")],
        log_config=_logging(settings),
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        server_header=False,
    )


def create() -> FastAPI:
    """Return the application with its warnings, after new migrations were applied."""
    settings = load_settings()
    migrate(settings)
    app = create_app(settings)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def watched(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            warn_of_mistakes(app.state.database, log_sql=bool(os.environ.get(_LOG_SQL)))
            yield state

    app.router.lifespan_context = watched
    return app


def migrate(settings: Settings) -> None:
    """Apply new revisions and log the last one. What fails is logged, and tried again at the next change."""
    try:
        scripts = ScriptDirectory.from_config(Config(toml_file=PYPROJECT))
        heads, known = set(scripts.get_heads()), {script.revision for script in scripts.walk_revisions()}
        with psycopg.connect(**parameters(settings.require_migration_database_url())) as connection:
            applied = {name for (name,) in connection.execute("SELECT version_num FROM alembic_version")}
    except Exception:
        logger.exception("the revisions cannot be read; this is tried again when a file changes")
        return
    if not applied <= known:
        missing = ", ".join(applied - known)
        logger.error(
            "the database has revision %s, which no file has; restore the file, then run make downgrade", missing
        )
    elif heads != applied:
        # In a process of its own, because Alembic's environment configures the log.
        upgrade = [sys.executable, "-m", "alembic", "upgrade", "heads"]
        if subprocess.run(upgrade, cwd=PROJECT_ROOT, check=False).returncode:
            logger.error("the migration failed; it is tried again when a file changes")
        else:
            for revision in heads - applied:
                logger.info("migrated to %s: %s", revision, scripts.get_revision(revision).doc)


def _logging(settings: Settings) -> dict[str, Any]:
    """Return the configuration of the log: console lines with short tracebacks."""
    config = logging_config(format="console", level=settings.log_level)
    config["handlers"]["stdout"]["stream"] = "ext://sys.stdout"  # uvicorn sends the configuration to the worker
    config["formatters"]["console"]["()"] = "app.development.tracebacks.ShortFormatter"
    # Otherwise uvicorn would be silent about reloads, and watchfiles would report each of its looks.
    config["loggers"] |= {"uvicorn.error": {"level": "INFO"}, "watchfiles": {"level": "WARNING"}}
    return config


if __name__ == "__main__":
    main()
