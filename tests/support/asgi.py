"""Call an ASGI application directly, without the calls of an HTTP client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any


async def send_request(
    app: Callable[..., Awaitable[None]],
    method: str,
    url: str,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Return the response's status and body."""
    path, _, query = url.partition("?")
    content_length = [(b"content-length", b"%d" % len(body))] if body else []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), *content_length, *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


class WebSocketClient:
    """The client's side of a WebSocket. `closed` has the application's end: its return or its exception."""

    def __init__(self, app: Callable[..., Awaitable[None]], path: str, *, denial_responses: bool) -> None:
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "subprotocols": [],
            "state": {},
            "extensions": {"websocket.http.response": {}} if denial_responses else {},
        }
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "websocket.connect"})

        async def run() -> None:
            await app(scope, self._to_app.get, self._from_app.put)

        self.closed = asyncio.create_task(run())

    async def send(self, text: str) -> None:
        await self._to_app.put({"type": "websocket.receive", "text": text})

    async def receive(self) -> dict[str, Any]:
        """Return the application's next message. Raise its exception if it ended before."""
        receiving = asyncio.create_task(self._from_app.get())
        await asyncio.wait({receiving, self.closed}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        if not receiving.done() and self._from_app.empty():
            receiving.cancel()
            self.closed.result()
            raise AssertionError("the application ended without a message")
        return await receiving

    async def close(self) -> None:
        """Disconnect, and wait until the application has ended."""
        await self._to_app.put({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self.closed, timeout=30)


@asynccontextmanager
async def open_websocket(
    app: Callable[..., Awaitable[None]], path: str, *, denial_responses: bool = True
) -> AsyncIterator[WebSocketClient]:
    """Open a WebSocket. A server with `denial_responses` can answer a handshake with a whole HTTP response."""
    client = WebSocketClient(app, path, denial_responses=denial_responses)
    try:
        yield client
        if not client.closed.done():
            await client.close()
    finally:
        client.closed.cancel()
        await asyncio.wait({client.closed})
