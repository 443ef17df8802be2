"""Ends requests whose answer is of no use any more: the client has disconnected, or its deadline has passed.

A request that only reads is cancelled, and with it its statement on the server. Any other request goes on to its end: a
client may send a write and leave (docs/decisions/0038-cancelled-requests.md). Nothing watches for a disconnect while a
request runs: the server's protocol calls `end_abandoned()` when it learns of one.

A request with the header Request-Timeout is cancelled when its time is over, unless it has stored something by then.
"""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.dependencies.models import Dependant

from app.request_context import writes
from app.request_deadline import RequestDeadline, request_deadline
from app.web.deps import get_database, get_db, get_primary_read_db, get_read_db, get_statement_db
from app.web.operation import Exchange, exchange_of, selected_operation

# Seconds. Nine digits are more than any limit of the server.
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")

_SAFE_METHODS = frozenset({"GET", "HEAD"})
_READING = frozenset({get_read_db, get_primary_read_db})
_WRITING = frozenset({get_database, get_db, get_statement_db})


def end_abandoned(scope: Mapping[str, Any]) -> None:
    """Cancel the request if it only reads and its response has not begun. Its client has disconnected."""
    exchange = exchange_of(scope)
    if exchange is None or exchange.task is None or exchange.status or not only_reads(scope):
        return
    if writes(scope):  # with a session that is no parameter, such as `app.state.database`
        return
    exchange.is_abandoned = True
    exchange.task.cancel()


def requested_timeout(scope: Mapping[str, Any]) -> float | None:
    """Return the Request-Timeout in seconds; None if the request has none. Raise ValueError if it is malformed.

    Several ones are malformed, as they are when a proxy joins them with a comma.
    """
    timeout = None
    for name, value in scope["headers"]:
        if name == b"request-timeout":
            if timeout is not None or not _SECONDS.fullmatch(value):
                raise ValueError("Request-Timeout must be one number of seconds, such as 2 or 0.25.")
            timeout = float(value)
    return timeout


@contextmanager
def deadline_in(seconds: float, exchange: Exchange) -> Iterator[RequestDeadline]:
    """Cancel the request after `seconds`, unless its response has begun or it has stored something."""
    deadline = RequestDeadline(
        time.monotonic() + seconds,
        response_has_begun=lambda: bool(exchange.status),
        cancel=lambda: exchange.task is not None and exchange.task.cancel(),
    )
    timer = asyncio.get_running_loop().call_later(seconds, deadline.expire)
    token = request_deadline.set(deadline)
    try:
        yield deadline
    finally:
        request_deadline.reset(token)
        timer.cancel()


def only_reads(scope: Mapping[str, Any]) -> bool:
    """Return True if the request's method is safe, and its route takes a ReadSession and no other kind of session."""
    if scope["method"] not in _SAFE_METHODS:
        return False
    dependant = getattr(selected_operation(scope), "dependant", None)
    if not isinstance(dependant, Dependant):
        return False
    calls = set(_calls(dependant))
    return not _READING.isdisjoint(calls) and _WRITING.isdisjoint(calls)


def _calls(dependant: Dependant) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _calls(dependency)
