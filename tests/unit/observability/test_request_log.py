"""The line of a request: the same on both ways to write it, and counted where not every request has one."""

import json
import logging
import logging.config
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest

from app.observability.logging import BatchingHandler, logging_config
from app.observability.request_log import SLOW_SECONDS, RequestLog
from app.request_context import request_id

Write = Callable[..., list[dict[str, Any]]]
Arguments = tuple[str, bytes, str, int, float]

REQUESTS: dict[str, Arguments] = {
    "plain": ("GET", b"/things/7", "/things/{thing_id}", 200, 0.01234),
    "query characters": ("GET", b'/a"b\\c%0a', "/a", 404, 0.0),
    "bytes beyond ASCII": ("GET", b"/\xff\xfe", "unmatched", 404, 1.5),
    "no response": ("POST", b"/things", "/things", 0, 12.0),
}


@pytest.fixture
def root() -> Iterator[BatchingHandler]:
    """Configure the root logger as in production, with its lines in a StringIO."""
    root = logging.root
    before = root.handlers[:], root.level
    config = logging_config(format="json", level="info")
    handler = BatchingHandler(StringIO())
    handler.setFormatter(config["formatters"]["json"]["()"]())
    handler.addFilter(config["filters"]["request_id"]["()"]())
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    yield handler
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.fixture
def write(root: BatchingHandler) -> Write:
    """Return a function that writes the line of a request and returns the lines, without what the clock decides."""

    def write(log: RequestLog, *request: Any, level: int = logging.INFO) -> list[dict[str, Any]]:
        stream = StringIO()
        root.setStream(stream)
        log.write(level, *request)
        root.flush()
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        for line in lines:
            assert len(line.pop("time")) == len("2026-11-27T12:00:00.000+00:00")
        return lines

    return write


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_line_is_the_same_with_and_without_a_record(
    request_: Arguments, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = request_id.set("id-1")
    try:
        direct = write(RequestLog(), *request_)
        monkeypatch.setattr("app.observability.request_log._own_handler", lambda: None)
        assert write(RequestLog(), *request_) == direct
        assert direct[0]["request_id"] == "id-1"
    finally:
        request_id.reset(token)  # the context is that of later tests too


def test_disabled_level_writes_no_line(write: Write) -> None:
    assert write(RequestLog(), *REQUESTS["plain"], level=logging.DEBUG) == []


def _add_handler(seen: list[str]) -> None:
    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logging.root.addHandler(Other())


def _add_filter(seen: list[str]) -> None:
    logging.root.handlers[0].addFilter(lambda record: seen.append(record.getMessage()) or True)  # type: ignore[func-returns-value]


def _replace_call_handlers(seen: list[str]) -> None:
    logging.Logger.callHandlers = lambda self, record: seen.append(record.getMessage())  # type: ignore[method-assign]


def _replace_factory(seen: list[str]) -> None:
    def factory(*args: Any, **options: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **options)
        seen.append(record.getMessage())
        return record

    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("instrument", [_add_handler, _add_filter, _replace_call_handlers, _replace_factory])
def test_instrumentation_sees_the_record_of_a_request(
    instrument: Callable[[list[str]], None], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
    seen: list[str] = []
    factory = logging.getLogRecordFactory()
    try:
        instrument(seen)
        write(RequestLog(), *REQUESTS["plain"])
    finally:
        logging.setLogRecordFactory(factory)
    assert seen == ["GET /things/7 200 12.3 ms"]


def test_filter_on_the_request_logger_is_applied(write: Write) -> None:
    logger = logging.getLogger("headroom.request")
    logger.addFilter(refuse := lambda _: False)
    try:
        assert write(RequestLog(), *REQUESTS["plain"]) == []
    finally:
        logger.removeFilter(refuse)


def test_lines_of_some_requests_count_all_of_them(write: Write) -> None:
    log = RequestLog(every=10)
    requests = [("GET", b"/x", "/x", 404 if number % 25 == 7 else 200, 0.01) for number in range(100)]
    lines = [line for request in requests for line in write(log, *request)]
    failed = [line for line in lines if line["status"] == 404]
    assert [line["requests"] for line in failed] == [1] * 4
    assert [line["requests"] for line in lines if line["status"] == 200] == [10] * 9  # and 6 wait for the next line


def test_slow_request_is_always_logged(write: Write) -> None:
    log = RequestLog(every=1000)
    assert write(log, "GET", b"/x", "/x", 200, 0.01) == []
    assert [line["requests"] for line in write(log, "GET", b"/x", "/x", 200, SLOW_SECONDS)] == [1]
