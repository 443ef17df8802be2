"""The request in progress, for code of every layer: its id, its ASGI scope, and whether it writes."""

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

# "-" outside a request.
request_id: ContextVar[str] = ContextVar("request_id", default="-")
# The ASGI scope of the request, for code that must name the request later; empty outside a request.
request_scope: ContextVar[Mapping[str, Any]] = ContextVar("request_scope", default=MappingProxyType({}))
_WRITES = "headroom.writes"


def note_write() -> None:
    """Note that the request in progress writes, in its own task or in one that it has started."""
    scope = request_scope.get()
    if isinstance(scope, dict):
        scope[_WRITES] = True


def writes(scope: Mapping[str, Any]) -> bool:
    """Return True if the request has begun to write: it must go on when its client disconnects."""
    return _WRITES in scope
