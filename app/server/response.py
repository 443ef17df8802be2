"""Uvicorn's response cycle with a cache of header lines.

Most headers of an API are the same in every response, but uvicorn checks each name and each value with a regular
expression and formats them for every response. Here a cached line is checked and formatted only once.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

# Limits of the cache, which lives as long as the worker. Some headers, such as x-request-id, have a new value in each
# response.
MAX_NAMES = 256
MAX_VALUES = 16
MAX_LINE_BYTES = 256


class _Name:
    """A header name, and the lines of the values that were sent with it. Raises ValueError for an invalid header."""

    __slots__ = ("_max_values", "_start", "is_left_to_uvicorn", "lines")

    def __init__(self, name: bytes) -> None:
        if HEADER_RE.search(name):
            raise ValueError(name)
        name = name.lower()
        self._start = name + b": "
        self.is_left_to_uvicorn = name in (b"connection", b"transfer-encoding")
        self.lines: dict[bytes, bytes] = {}
        self._max_values = 0 if name == b"set-cookie" else MAX_VALUES  # a secret of one client

    def line(self, value: bytes) -> bytes:
        """Return the line of a value that has none yet."""
        if HEADER_VALUE_RE.search(value):
            raise ValueError(value)
        line = self._start + value + b"\r\n"
        if len(self.lines) < self._max_values and len(line) <= MAX_LINE_BYTES:
            self.lines[value] = line
        return line


_LENGTH = _Name(b"content-length")
_names: dict[bytes, _Name] = {}


def _named(name: bytes) -> _Name:
    """Return what is known of a name in this spelling."""
    known = _LENGTH if name.lower() == b"content-length" else _Name(name)
    if len(_names) < MAX_NAMES and len(name) <= MAX_LINE_BYTES:
        _names[name] = known
    return known


class ResponseCycle(RequestResponseCycle):
    """A request and its response. What is rare or wrong is left to uvicorn's method."""

    __slots__ = ()  # an object of uvicorn's class becomes one of this class

    async def send(self, message: Any) -> None:
        """Send a message of the application."""
        if self.response_started or message["type"] != "http.response.start" or not self._begin(message):
            await super().send(message)

    def _begin(self, message: Any) -> bool:
        """Write the status line and the headers. Return False, and do nothing, if uvicorn's method must do it."""
        if self.flow.write_paused or self.disconnected or self.access_log or not self.keep_alive:
            return False
        headers = message.get("headers", [])
        if not isinstance(headers, list):  # an iterator could not be repeated
            return False
        length = None
        try:
            content = [STATUS_LINE[message["status"]]]
            for name, value in self.default_headers + headers:
                known = _names.get(name) or _named(name)
                if known.is_left_to_uvicorn:
                    return False
                if known is _LENGTH and length is None:
                    length = int(value)
                content.append(known.lines.get(value) or known.line(value))
        except Exception:  # noqa: BLE001 - uvicorn's method raises the error that applications know
            return False
        if length is None:
            return False
        content.append(b"\r\n")
        self.response_started = True
        self.waiting_for_100_continue = False
        self.expected_content_length = length
        self.chunked_encoding = False
        self.transport.write(b"".join(content))
        return True
