"""Cursors: opaque, signed positions in a sorted list."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from app.errors import InvalidInput
from app.list_limits import ListLimits

SIGNATURE_BYTES = 16
_LIMITS = ListLimits()


class InvalidCursor(InvalidInput):
    """The cursor was not issued for this list with these parameters."""

    def __init__(self) -> None:
        super().__init__("cursor: was not issued by this list for these parameters")


class Cursors:
    """Writes and reads cursors.

    A cursor contains the position of the last row of a page (`order.py`). It is signed for a `context`: one list with
    one sort order and one set of filters. Cursors that were signed with one of the keys `fallbacks` are valid too.
    `limits` are those of the lists.
    """

    def __init__(self, secret_key: str, fallbacks: Sequence[str] = (), limits: ListLimits = _LIMITS) -> None:
        self.limits = limits
        self._keys = [hashlib.sha256(b"cursor:" + key.encode()).digest() for key in (secret_key, *fallbacks)]

    def write(self, context: object, position: Sequence[object]) -> str:
        """Return the cursor of a position. It and `context` must be serialisable as JSON."""
        # UTF-8 without escapes: a title of 200 characters outside the BMP would otherwise exceed the length limit.
        payload = to_json(position)
        return base64.urlsafe_b64encode(_sign(self._keys[0], context, payload) + payload).decode().rstrip("=")

    def read(self, cursor: str, context: object) -> list[Any]:
        """Return the position that `write()` was given. Raise InvalidCursor."""
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise InvalidCursor from None
        signature, payload = raw[:SIGNATURE_BYTES], raw[SIGNATURE_BYTES:]
        if not any(hmac.compare_digest(signature, _sign(key, context, payload)) for key in self._keys):
            raise InvalidCursor
        position: list[Any] = from_json(payload)
        return position


def _sign(key: bytes, context: object, payload: bytes) -> bytes:
    message = to_json(context) + b"\0" + payload
    # Keyed BLAKE2 is a MAC (RFC 7693); HMAC-SHA-256 takes three times as long.
    return hashlib.blake2b(message, key=key, digest_size=SIGNATURE_BYTES).digest()
