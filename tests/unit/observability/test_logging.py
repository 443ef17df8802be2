import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

import pytest

from app.observability.logging import BATCH_LINES, REQUEST_LOGGER, BatchingHandler, logging_config
from tests.support.waiting import eventually_async


def json_line(level: int, message: str, *arguments: object, **options: Any) -> dict[str, Any]:
    """Return the fields of the JSON line for a log call."""
    formatter = logging_config(format="json", level="info")["formatters"]["json"]["()"]()
    record = logging.getLogger("some.library").makeRecord(
        "some.library", level, __file__, 1, message, arguments, options.get("exc_info"), extra=options.get("extra")
    )
    line = formatter.format(record)
    assert "\n" not in line
    fields: dict[str, Any] = json.loads(line)
    return fields


def test_json_line_has_the_standard_and_the_extra_fields() -> None:
    line = json_line(logging.WARNING, "%d of %s", 3, "them", extra={"method": "GET", "duration_ms": 0.5})

    assert datetime.now(UTC) >= datetime.fromisoformat(line.pop("time"))
    assert line.pop("pid")
    assert line == {
        "level": "WARNING",
        "logger": "some.library",
        "request_id": "-",
        "message": "3 of them",
        "method": "GET",
        "duration_ms": 0.5,
    }


def test_json_line_of_an_exception_omits_the_refused_row() -> None:
    error = LookupError("duplicate key\nDETAIL:  Key (email)=(ann@example.com) already exists.")
    line = json_line(logging.ERROR, "failed", exc_info=(type(error), error, None))

    assert line["exc_info"].startswith("LookupError: duplicate key")
    assert "ann@example.com" not in line["exc_info"]


class FailingStr:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = object.__repr__


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize("value", [CYCLE, FailingStr()], ids=["cycle", "failing __str__"])
def test_json_line_with_an_unserialisable_extra_keeps_its_message(value: object) -> None:
    assert json_line(logging.INFO, "about it", extra={"value": value})["message"] == "about it"


def test_json_line_ignores_an_extra_with_a_standard_name() -> None:
    line = json_line(logging.INFO, "hello", extra={"level": "none", "logger": "none", "time": "never"})

    assert (line["level"], line["logger"]) == ("INFO", "some.library")
    assert line["time"] != "never"


@pytest.mark.parametrize(
    "value",
    ["lone surrogate: \ud800", b"not UTF-8: \xff", object(), float("nan"), {1: {2, 3}}, datetime.now(UTC)],
    ids=["lone surrogate", "not UTF-8", "object", "NaN", "set in dict", "datetime"],
)
def test_json_line_accepts_any_value(value: object) -> None:
    assert json_line(logging.INFO, "about %s", value, extra={"value": value})["message"] == f"about {value}"


class RecordingStream(StringIO):
    """A stream that records each call of write()."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str, /) -> int:
        self.writes.append(text)
        return len(text)


@pytest.fixture
def stream() -> RecordingStream:
    return RecordingStream()


@pytest.fixture
def handler(stream: RecordingStream) -> Iterator[BatchingHandler]:
    handler = BatchingHandler(stream)
    yield handler
    handler.close()


@pytest.fixture
def request_logger(handler: BatchingHandler) -> logging.Logger:
    return logger_with(REQUEST_LOGGER, handler)


@pytest.fixture
def other_logger(handler: BatchingHandler) -> logging.Logger:
    return logger_with("app.somewhere", handler)


def logger_with(name: str, handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger(name)
    logger.addHandler(handler)
    return logger


async def until_written(stream: RecordingStream, writes: int) -> None:
    await eventually_async(lambda: _has(stream, writes), within=60, every=0.001)


async def _has(stream: RecordingStream, writes: int) -> bool:
    return len(stream.writes) >= writes


async def test_request_lines_of_a_moment_are_written_together(
    request_logger: logging.Logger, stream: RecordingStream
) -> None:
    for moment in (1, 2):
        request_logger.info("first of %d", moment)
        await asyncio.sleep(0)
        request_logger.info("second of %d", moment)
        await until_written(stream, moment)

    assert stream.writes == ["first of 1\nsecond of 1\n", "first of 2\nsecond of 2\n"]


async def test_many_request_lines_are_written_before_the_moment_ends(
    request_logger: logging.Logger, stream: RecordingStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.observability.logging.BATCH_SECONDS", 3600)
    for number in range(BATCH_LINES + 1):
        request_logger.info("%d", number)
    assert [text.count("\n") for text in stream.writes] == [BATCH_LINES]


async def test_other_line_is_written_at_once_after_pending_request_lines(
    request_logger: logging.Logger, other_logger: logging.Logger, stream: RecordingStream
) -> None:
    request_logger.info("before")
    other_logger.info("error")
    assert stream.writes == ["before\nerror\n"]

    request_logger.info("after")
    await until_written(stream, 2)
    assert stream.writes[1:] == ["after\n"]


def test_request_line_without_a_running_loop_is_written_at_once(
    request_logger: logging.Logger, stream: RecordingStream
) -> None:
    request_logger.info("hello")

    assert stream.writes == ["hello\n"]


def test_lines_pending_when_a_loop_stops_precede_the_next_line(
    request_logger: logging.Logger, other_logger: logging.Logger, stream: RecordingStream
) -> None:
    def log_and_stop() -> None:
        request_logger.info("the last request")
        loop.stop()

    loop = asyncio.new_event_loop()
    loop.call_soon(log_and_stop)
    loop.run_forever()
    loop.close()
    assert stream.writes == []

    other_logger.info("finished")
    assert stream.writes == ["the last request\nfinished\n"]


async def test_failing_stream_loses_only_the_lines_of_that_write(
    request_logger: logging.Logger,
    stream: RecordingStream,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(text: str) -> int:
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(stream, "write", fail)
        request_logger.info("lost")
        seen = [""]

        async def failed() -> bool:
            seen[0] += capsys.readouterr().err
            return "BrokenPipeError" in seen[0]

        await eventually_async(failed, within=60, every=0.001)

    request_logger.info("recovered")
    await until_written(stream, 1)
    assert stream.writes == ["recovered\n"]


async def test_line_with_a_lone_surrogate_is_escaped() -> None:
    written = BytesIO()
    handler = BatchingHandler(TextIOWrapper(written, "utf-8"))
    request_logger = logger_with(REQUEST_LOGGER, handler)
    for line in ("before", "lone surrogate: \ud800", "after"):
        request_logger.info(line)
    handler.flush()

    assert written.getvalue() == b"before\nlone surrogate: \\ud800\nafter\n"
