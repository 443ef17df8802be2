"""A worker sends the bytes that uvicorn would send, and checks as much."""

import asyncio
import inspect
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.server import response
from app.server.response import MAX_LINE_BYTES, MAX_NAMES, MAX_VALUES, ResponseCycle

Headers = Iterable[tuple[bytes, bytes]]
DEFAULT: Headers = [(b"date", b"Sat, 28 Nov 2026 12:00:00 GMT")]


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def no_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "_names", {})


async def sent(
    cycle_class: type[RequestResponseCycle],
    headers: Headers,
    *,
    status: int = 200,
    method: str = "GET",
    keep_alive: bool = True,
    body: bytes = b"ok",
) -> tuple[bytes, bool, str]:
    """Return what is written, whether the connection is closed, and the error."""
    transport = Transport()
    cycle = cycle_class(
        scope=cast("Any", {"method": method}),
        transport=cast("asyncio.Transport", transport),
        flow=FlowControl(cast("asyncio.Transport", transport)),
        logger=cast("Any", None),
        access_logger=cast("Any", None),
        access_log=False,
        default_headers=list(DEFAULT),
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )
    error = ""
    try:
        await cycle.send({"type": "http.response.start", "status": status, "headers": headers})
        await cycle.send({"type": "http.response.body", "body": body})
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as raised:
        error = repr(raised)
    return transport.written, transport.is_closed, error


LENGTH = (b"content-length", b"2")


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        pytest.param([LENGTH, (b"content-type", b"text/plain")], {}, id="plain"),
        pytest.param([(b"Content-Length", b"2"), (b"X-Own", b"1"), (b"X-OWN", b"1")], {}, id="capital letters"),
        pytest.param([LENGTH, (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")], {}, id="twice"),
        pytest.param([LENGTH, (b"content-length", b"3")], {}, id="two lengths"),
        pytest.param([(b"content-length", b"x")], {}, id="no number"),
        pytest.param([(b"content-length", b"3")], {}, id="too short"),
        pytest.param([(b"content-length", b"1")], {}, id="too long"),
        pytest.param([(b"content-length", b"0")], {"body": b""}, id="empty"),
        pytest.param([], {}, id="without a length"),
        pytest.param([], {"status": 204, "body": b""}, id="without a body"),
        pytest.param([LENGTH], {"method": "HEAD"}, id="HEAD"),
        pytest.param([LENGTH], {"keep_alive": False}, id="HTTP/1.0"),
        pytest.param([LENGTH, (b"Connection", b"close")], {}, id="close"),
        pytest.param([LENGTH, (b"connection", b"keep-alive")], {}, id="keep-alive"),
        pytest.param([(b"transfer-encoding", b"chunked")], {}, id="chunked"),
        pytest.param([LENGTH, (b"transfer-encoding", b"chunked")], {}, id="length and chunks"),
        pytest.param([LENGTH, (b"x y", b"1")], {}, id="invalid name"),
        pytest.param([LENGTH, (b"x-own", b"1\r\nx: 2")], {}, id="invalid value"),
        pytest.param([LENGTH, (b"x-own", b"")], {}, id="empty value"),
        pytest.param([LENGTH], {"status": 600}, id="invalid status"),
        pytest.param([LENGTH, (None, b"1")], {}, id="no name"),
        pytest.param([LENGTH, (b"x-own", "1")], {}, id="text"),
        pytest.param([LENGTH, (b"x-own",)], {}, id="no value"),
        pytest.param([LENGTH, (bytearray(b"x-own"), bytearray(b"1"))], {}, id="bytearray"),
    ],
)
async def test_response_has_the_bytes_and_the_errors_of_uvicorn(headers: Headers, options: dict[str, Any]) -> None:
    expected = await sent(RequestResponseCycle, headers, **options)

    assert [await sent(ResponseCycle, headers, **options) for _ in range(3)] == [expected] * 3


async def test_iterator_of_headers_is_sent() -> None:
    headers = [LENGTH, (b"connection", b"close")]

    assert await sent(ResponseCycle, iter(headers)) == await sent(RequestResponseCycle, headers)


async def test_known_lines_are_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = [LENGTH, (b"x-own", b"1")]
    expected = await sent(ResponseCycle, headers)
    monkeypatch.setattr(response, "HEADER_RE", None)
    monkeypatch.setattr(response, "HEADER_VALUE_RE", None)

    assert await sent(ResponseCycle, headers) == expected


async def test_cookies_and_long_lines_are_not_kept() -> None:
    headers = [LENGTH, (b"set-cookie", b"session=secret"), (b"x-own", b"x" * MAX_LINE_BYTES), (b"x" * 1000, b"1")]

    assert await sent(ResponseCycle, headers) == await sent(RequestResponseCycle, headers)
    assert [bytes(name) for name, known in response._names.items() if known.lines] == [b"date", b"content-length"]
    assert set(response._names) == {b"date", b"content-length", b"set-cookie", b"x-own"}


def test_method_of_uvicorn_is_the_one_that_was_read() -> None:
    """ResponseCycle repeats a part of this method: compare the two after an update of uvicorn."""
    source = inspect.getsource(RequestResponseCycle.send).encode()

    assert sha256(source).hexdigest()[:16] == "abdd8601b326a8da"


async def test_names_and_values_in_memory_are_bounded() -> None:
    headers = [LENGTH, *((b"x-%d" % number, b"1") for number in range(2 * MAX_NAMES))]
    headers += ((b"x-1", b"%d" % number) for number in range(2 * MAX_VALUES))

    assert await sent(ResponseCycle, headers) == await sent(RequestResponseCycle, headers)
    assert len(response._names) == MAX_NAMES
    assert len(response._names[b"x-1"].lines) == MAX_VALUES
