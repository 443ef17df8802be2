"""The log line of a request: written directly where nothing but our own handler would see its record."""

import logging
import os
import time
from datetime import UTC, datetime

from pydantic_core import to_json

from app.observability.logging import REQUEST_LOGGER, BatchingHandler
from app.request_context import request_id

# A request that takes longer is logged in any case.
SLOW_SECONDS = 1.0

_logger = logging.getLogger(REQUEST_LOGGER)
_LEVELS = {logging.DEBUG: "DEBUG", logging.INFO: "INFO"}


class RequestLog:
    """Writes the lines of one worker's requests.

    If `every` is N > 1, every N-th successful request is logged. The field `requests` of its line is the number of
    successful requests since the line before. The last requests of a worker, at most N - 1, are not counted. Failed
    requests (a status below 200 or from 400 on) and those above SLOW_SECONDS are always logged.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = every
        self._unlogged = 0
        self._second = 0
        self._time = ""

    def write(self, level: int, method: str, raw_path: bytes, route: str, status: int, seconds: float) -> None:
        """Write the line of a request that took `seconds`, unless the level is disabled or the request is left out."""
        if not _logger.isEnabledFor(level):
            return
        counted = {}
        if self._every > 1:
            if 200 <= status < 400 and seconds < SLOW_SECONDS:
                self._unlogged += 1
                if self._unlogged < self._every:
                    return
                counted["requests"], self._unlogged = self._unlogged, 0
            else:
                counted["requests"] = 1
        # The raw path: a decoded one could contain a line break, and so forge a log line.
        path = raw_path.decode("ascii", "backslashreplace")
        milliseconds = round(seconds * 1000, 1)
        handler = _own_handler()
        if handler is None:
            # Without logger.log()'s search of the stack for the caller.
            record = logging.getLogRecordFactory()(
                _logger.name, level, __file__, 0, "%s %s %d %.1f ms", (method, path, status, milliseconds), None
            )
            record.__dict__.update(
                method=method, path=path, route=route, status=status, duration_ms=milliseconds, **counted
            )
            _logger.handle(record)
            return
        line = {
            "time": self._now(),
            "level": _LEVELS[level],
            "logger": _logger.name,
            "pid": os.getpid(),
            "request_id": request_id.get(),
            "message": f"{method} {path} {status} {milliseconds:.1f} ms",
            "method": method,
            "path": path,
            "route": route,
            "status": status,
            "duration_ms": milliseconds,
            **counted,
        }
        handler.add_request_line(to_json(line).decode())

    def _now(self) -> str:
        """Return the time as the formatter writes it. Its seconds are formatted once for all requests in them."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._time = datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._time}.{int((now - second) * 1000):03d}+00:00"


def _own_handler() -> BatchingHandler | None:
    """Return our handler if a record would reach it alone, unchanged and unseen; None if anything else may see it.

    Instrumentations replace `callHandlers()` or the record factory, and applications add handlers and filters.
    """
    root = logging.root
    handlers = root.handlers
    if (
        len(handlers) != 1
        or type(handlers[0]) is not BatchingHandler
        or not handlers[0].takes_request_lines
        or _logger.filters
        or logging.getLogRecordFactory() is not logging.LogRecord
        or logging.Logger.handle is not _HANDLE
        or logging.Logger.callHandlers is not _CALL_HANDLERS
    ):
        return None
    logger: logging.Logger | None = _logger
    while logger is not None and logger is not root:
        if logger.handlers or not logger.propagate:
            return None
        logger = logger.parent
    return handlers[0]


def _of_logging(name: str) -> object:
    """Return a method of Logger, or None if an instrumentation has replaced it before this module was imported."""
    method = getattr(logging.Logger, name)
    return method if getattr(method, "__code__", None) and method.__code__.co_filename == logging.__file__ else None


_HANDLE, _CALL_HANDLERS = _of_logging("handle"), _of_logging("callHandlers")
