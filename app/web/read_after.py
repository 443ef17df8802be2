"""Carries the position of a client's last write from its response to the client's next requests.

A response to a request that has written has a token in the header `Read-After` and in a cookie. A client sends either
of them back: programs copy the header, browsers and HTTP sessions return the cookie by themselves.
"""

import base64
import binascii
import hashlib
import hmac
import struct
import time
from collections.abc import Iterable, Sequence

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.database.read_after import ReadAfter, read_after

HEADER = "Read-After"
COOKIE = "read_after"
# A standby is never further behind than DB_READ_MAX_LAG, at most a minute. The rest is for clocks that differ.
TOKEN_SECONDS = 300

_NAME = HEADER.lower().encode()
# The position and the Unix time of the token.
_PAYLOAD = struct.Struct(">12sI")
_SIGNATURE_BYTES = 11


class ReadAfterTokens:
    """Writes and reads tokens: signed positions that expire. Those signed with one of `fallbacks` are valid too.

    Without a signature, any client could have the primary serve all of its reads.
    """

    def __init__(self, secret_key: str, fallbacks: Sequence[str] = ()) -> None:
        self._keys = [hashlib.sha256(b"read-after:" + key.encode()).digest() for key in (secret_key, *fallbacks)]

    def write(self, position: int) -> str:
        """Return the token of a position."""
        payload = _PAYLOAD.pack(position.to_bytes(12), int(time.time()))
        return base64.urlsafe_b64encode(_sign(self._keys[0], payload) + payload).decode()

    def read(self, token: str) -> int:
        """Return the position of the token; 0 if it has expired or is not one of ours."""
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return 0
        signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not any(hmac.compare_digest(signature, _sign(key, payload)) for key in self._keys):
            return 0
        position, issued = _PAYLOAD.unpack(payload)
        return int.from_bytes(position) if time.time() - issued <= TOKEN_SECONDS else 0


def _sign(key: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, key=key, digest_size=_SIGNATURE_BYTES).digest()


class ReadAfterMiddleware:
    """Gives the reads of a request the position that the client's token asks for, and the response its token."""

    def __init__(self, app: ASGIApp, tokens: ReadAfterTokens, root_path: str = "") -> None:
        self.app = app
        self._tokens = tokens
        self._cookie = f"; Max-Age={TOKEN_SECONDS}; Path={root_path or '/'}; HttpOnly; SameSite=lax"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event stream."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        needed = ReadAfter(self._position(scope["headers"]))
        outer = read_after.set(needed)

        async def send_with_token(message: Message) -> None:
            if message["type"] == "http.response.start" and needed.written:
                token = self._tokens.write(needed.written)
                secure = "; Secure" if scope["scheme"] == "https" else ""
                message["headers"] = [
                    *message.get("headers", ()),
                    (_NAME, token.encode()),
                    (b"set-cookie", f"{COOKIE}={token}{self._cookie}{secure}".encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_token)
        finally:
            read_after.reset(outer)

    def _position(self, headers: Iterable[tuple[bytes, bytes]]) -> int:
        """Return the position of the newest token of the request; 0 if it has none."""
        position = 0
        for name, value in headers:
            if name == _NAME:
                position = max(position, self._tokens.read(value.decode("latin-1")))
            elif name == b"cookie" and COOKIE.encode() in value:
                token = cookie_parser(value.decode("latin-1")).get(COOKIE, "")
                position = max(position, self._tokens.read(token))
        return position
