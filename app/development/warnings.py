"""Warnings of the development server: repeated statements, slow statements with their plan, and idle holders."""

import asyncio
import inspect
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from types import FrameType
from typing import Any

import psycopg
from greenlet import getcurrent  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError

from app.database import Database
from app.development.holding import watch_holders
from app.development.statements import Executed, watch_statements
from app.errors import HeadroomError
from app.paths import PROJECT_ROOT
from app.request_context import request_scope
from app.web.operation import route_template

logger = logging.getLogger("headroom.dev")

# A request that sends the same statement this many times is warned of.
REPETITIONS = 5
SLOW_SECONDS = 0.1
_REPEATED = "headroom.development.repeated"
_MAX_PARAMETERS = 200
# Frames that send a statement for the code above them.
_SENDERS = tuple(str(PROJECT_ROOT / folder) for folder in ("app/database", "app/development", "app/pagination"))

_explaining: ContextVar[bool] = ContextVar("explaining", default=False)


def warn_of_mistakes(database: Database, *, log_sql: bool) -> None:
    """Log the mistakes of each request from now on. With `log_sql`, log every statement too."""
    watch_statements(database, _Mistakes(database, log_sql=log_sql))
    for engine in database.engines:
        watch_holders(engine, _warn_of_holder)


def _warn_of_holder(place: str) -> None:
    if not _explaining.get():
        logger.warning("%s holds a connection while it waits for something else: %s", route(), place)


class _Mistakes:
    """Watches the statements of the application."""

    def __init__(self, database: Database, *, log_sql: bool) -> None:
        self._database = database
        self._log_sql = log_sql
        self._tasks: set[asyncio.Task[None]] = set()

    def before(self, sql: str) -> None:
        """Change nothing."""

    def after(self, executed: Executed) -> None:
        """Log the statement if it is slow or repeated, or if all statements are logged."""
        if _explaining.get():
            return
        if self._log_sql:
            logger.info("%s", described(executed))
        if executed.seconds >= SLOW_SECONDS:
            task = asyncio.create_task(self._explain(executed, described(executed)))
            self._tasks.add(task)  # asyncio holds tasks weakly
            task.add_done_callback(self._tasks.discard)
        scope: Any = request_scope.get()
        if scope and executed.sql not in ("BEGIN", "COMMIT", "ROLLBACK"):
            repeated: dict[str, int] = scope.setdefault(_REPEATED, {})
            repeated[executed.sql] = repeated.get(executed.sql, 0) + 1
            if repeated[executed.sql] == REPETITIONS:
                logger.warning("N+1: sent %d times in one request: %s", REPETITIONS, described(executed))

    async def _explain(self, executed: Executed, description: str) -> None:
        _explaining.set(True)
        try:
            plan = "\n".join(f"    {line}" for line in await self._plan(f"EXPLAIN {executed.sql}", executed.parameters))
        except (HeadroomError, SQLAlchemyError, psycopg.Error, TypeError) as error:
            plan = f"    (no plan: {type(error).__name__})"
        logger.warning("slow statement: %s\n%s", description, plan)

    async def _plan(self, explain: str, parameters: Any) -> list[str]:
        async with self._database.engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            if isinstance(driver, psycopg.AsyncConnection) and not isinstance(parameters, Mapping):
                # A statement of the fast path: it has numbered parameters, which only a raw cursor accepts.
                async with psycopg.AsyncRawCursor(driver) as cursor:
                    await cursor.execute(explain.encode(), parameters)
                    return [line for (line,) in await cursor.fetchall()]
            values = parameters if isinstance(parameters, Mapping) else tuple(parameters)
            return [*(await connection.exec_driver_sql(explain, values)).scalars()]


def described(executed: Executed) -> str:
    """Return the route, the line of code, the time and the statement with its parameters, in one line."""
    parameters = repr(executed.parameters)
    if len(parameters) > _MAX_PARAMETERS:
        parameters = f"{parameters[:_MAX_PARAMETERS]}..."
    sql = " ".join(executed.sql.split())
    return (
        f"{route()} | {place()} | {executed.seconds * 1000:.1f} ms | {sql} {parameters if executed.parameters else ''}"
    )


def route() -> str:
    """Return the method and the route of the current request."""
    scope = request_scope.get()
    return f"{scope['method']} {route_template(scope)}" if scope else "no request"


def place() -> str:
    """Return the line of the project that sends the current statement: "file:line in function"."""
    frame: FrameType | None = inspect.currentframe()
    parent = getcurrent().parent
    found = _sender(frame) or (_sender(parent.gr_frame) if parent is not None else None)
    if found is None:
        return "no line of the project"
    file = found.f_code.co_filename.removeprefix(f"{PROJECT_ROOT}/")
    return f"{file}:{found.f_lineno} in {found.f_code.co_name}"


def _sender(frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(str(PROJECT_ROOT)) and "site-packages" not in name and not name.startswith(_SENDERS):
            return frame
        frame = frame.f_back
    return None
