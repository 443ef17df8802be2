"""Ends requests whose answer is of no use any more: the client has disconnected.

A request that only reads is cancelled, and with it its statement on the server. Any other request goes on to its end: a
client may send a write and leave (docs/decisions/0038-cancelled-requests.md). Nothing watches for a disconnect while a
request runs: the server's protocol calls `end_abandoned()` when it learns of one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi.dependencies.models import Dependant

from app.web.deps import get_database, get_db, get_read_db, get_statement_db
from app.web.operation import exchange_of, selected_operation

_SAFE_METHODS = frozenset({"GET", "HEAD"})
_WRITING = frozenset({get_database, get_db, get_statement_db})


def end_abandoned(scope: Mapping[str, Any]) -> None:
    """Cancel the request if it only reads and its response has not begun. Its client has disconnected."""
    exchange = exchange_of(scope)
    if exchange is None or exchange.task is None or exchange.status or not only_reads(scope):
        return
    exchange.is_abandoned = True
    exchange.task.cancel()


def only_reads(scope: Mapping[str, Any]) -> bool:
    """Return True if the request's method is safe, and its route takes a ReadSession and no other kind of session."""
    if scope["method"] not in _SAFE_METHODS:
        return False
    dependant = getattr(selected_operation(scope), "dependant", None)
    if not isinstance(dependant, Dependant):
        return False
    calls = set(_calls(dependant))
    return get_read_db in calls and _WRITING.isdisjoint(calls)


def _calls(dependant: Dependant) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _calls(dependency)
