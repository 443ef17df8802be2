"""The application and the worker classes of `benchmarks/servers.py`."""

from typing import Any, ClassVar

from starlette.types import Receive, Scope, Send
from uvicorn_worker import UvicornWorker

_BODY = b'{"text":"' + b"x" * 189 + b'"}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with 200 bytes."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


class AsyncioWorker(UvicornWorker):  # type: ignore[misc]  # it has no types
    """Uvicorn on asyncio's own event loop."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "asyncio", "http": "httptools"}


class H11Worker(UvicornWorker):  # type: ignore[misc]  # it has no types
    """Uvicorn with the parser h11."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "uvloop", "http": "h11"}
