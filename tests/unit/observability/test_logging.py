"""Lines of the log, as a program reads them."""

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO, StringIO, TextIOWrapper
from typing import Any

import pytest

from app.observability.logging import REQUESTS, TurnHandler, logging_config


def written(level: int, message: str, *arguments: object, **options: Any) -> dict[str, Any]:
    """What a JSON line says."""
    formatter = logging_config(format="json", level="info")["formatters"]["json"]["()"]()
    record = logging.getLogger("some.library").makeRecord(
        "some.library", level, __file__, 1, message, arguments, options.get("exc_info"), extra=options.get("extra")
    )
    line = formatter.format(record)
    assert "\n" not in line
    said: dict[str, Any] = json.loads(line)
    return said


def test_a_line_says_when_how_bad_who_and_what() -> None:
    line = written(logging.WARNING, "%d of %s", 3, "them", extra={"method": "GET", "duration_ms": 0.5})

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


def test_an_exception_is_in_the_line_and_the_row_that_the_database_objects_to_is_not() -> None:
    error = LookupError("duplicate key\nDETAIL:  Key (email)=(ann@example.com) already exists.")
    line = written(logging.ERROR, "failed", exc_info=(type(error), error, None))

    assert line["exc_info"].startswith("LookupError: duplicate key")
    assert "ann@example.com" not in line["exc_info"]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = object.__repr__


ITSELF: list[object] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize("value", [ITSELF, Unspeakable()], ids=["itself", "unspeakable"])
def test_what_cannot_be_written_does_not_cost_the_line(value: object) -> None:
    assert written(logging.INFO, "about it", extra={"value": value})["message"] == "about it"


def test_extra_does_not_take_the_place_of_what_each_line_has() -> None:
    line = written(logging.INFO, "hello", extra={"level": "none", "logger": "none", "time": "never"})

    assert (line["level"], line["logger"]) == ("INFO", "some.library")
    assert line["time"] != "never"


@pytest.mark.parametrize(
    "value", ["half a pair: \ud800", b"no text: \xff", object(), float("nan"), {1: {2, 3}}, datetime.now(UTC)], ids=repr
)
def test_a_line_is_written_whatever_it_is_about(value: object) -> None:
    assert written(logging.INFO, "about %s", value, extra={"value": value})["message"] == f"about {value}"


class Writes(StringIO):
    """A stream that keeps apart what was written at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str, /) -> int:
        self.writes.append(text)
        return len(text)


@pytest.fixture
def stream() -> Writes:
    return Writes()


@pytest.fixture
def handler(stream: Writes) -> Iterator[TurnHandler]:
    handler = TurnHandler(stream)
    yield handler
    handler.close()


@pytest.fixture
def requests(handler: TurnHandler) -> logging.Logger:
    return logger_of(REQUESTS, handler)


@pytest.fixture
def others(handler: TurnHandler) -> logging.Logger:
    return logger_of("app.somewhere", handler)


def logger_of(name: str, handler: logging.Handler) -> logging.Logger:
    logger = logging.Logger(name)
    logger.addHandler(handler)
    return logger


async def test_the_request_lines_of_a_turn_are_written_together_at_its_end(
    requests: logging.Logger, stream: Writes
) -> None:
    for turn in (1, 2):
        requests.info("first of %d", turn)
        requests.info("second of %d", turn)
        await asyncio.sleep(0)

    assert stream.writes == ["first of 1\nsecond of 1\n", "first of 2\nsecond of 2\n"]


async def test_any_other_line_is_written_at_once_and_after_what_came_before_it(
    requests: logging.Logger, others: logging.Logger, stream: Writes
) -> None:
    requests.info("before")
    others.info("trouble")
    assert stream.writes == ["before\ntrouble\n"]

    requests.info("after")
    await asyncio.sleep(0)
    assert stream.writes[1:] == ["after\n"]


def test_a_request_line_is_written_at_once_where_no_loop_runs(requests: logging.Logger, stream: Writes) -> None:
    requests.info("hello")

    assert stream.writes == ["hello\n"]


def test_what_a_loop_left_behind_when_it_ended_is_written_before_the_next_line(
    requests: logging.Logger, others: logging.Logger, stream: Writes
) -> None:
    def leave() -> None:
        requests.info("the last request")
        loop.stop()

    loop = asyncio.new_event_loop()
    loop.call_soon(leave)
    loop.run_forever()
    loop.close()
    assert stream.writes == []

    others.info("finished")
    assert stream.writes == ["the last request\nfinished\n"]


async def test_a_stream_that_fails_costs_its_lines_and_nothing_else(
    requests: logging.Logger, stream: Writes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(text: str) -> int:
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(stream, "write", fail)
        requests.info("lost")
        await asyncio.sleep(0)
    assert "BrokenPipeError" in capsys.readouterr().err

    requests.info("there again")
    await asyncio.sleep(0)
    assert stream.writes == ["there again\n"]


async def test_a_line_that_cannot_be_encoded_costs_no_line_of_its_turn() -> None:
    written = BytesIO()
    requests = logger_of(REQUESTS, TurnHandler(TextIOWrapper(written, "utf-8")))
    for line in ("before", "half a pair: \ud800", "after"):
        requests.info(line)
    await asyncio.sleep(0)

    assert written.getvalue() == b"before\nhalf a pair: \\ud800\nafter\n"
