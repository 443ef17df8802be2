"""A TCP proxy in front of PostgreSQL that can hang, like a stuck server or a broken network."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

from sqlalchemy import URL

SSL_REQUEST = 80877103


class _Messages:
    """Parse the client's messages of the PostgreSQL protocol, far enough to count statements."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False

    def types(self, data: bytes) -> Iterator[bytes]:
        """Add data. Return the types of the messages that are complete now."""
        self._buffer += data
        while True:
            header = 5 if self._started else 8  # type and length; before the startup message, length and code
            if len(self._buffer) < header:
                return
            length = int.from_bytes(self._buffer[1:5] if self._started else self._buffer[:4], "big")
            whole = length + 1 if self._started else length
            if len(self._buffer) < whole:
                return
            if self._started:
                yield self._buffer[:1]
            else:
                self._started = int.from_bytes(self._buffer[4:8], "big") != SSL_REQUEST
            self._buffer = self._buffer[whole:]


class Proxy:
    """A proxy on a port of 127.0.0.1. `executed`, `round_trips` and `bytes` count what clients sent."""

    def __init__(self, target: URL) -> None:
        self._target = target
        self._running = asyncio.Event()
        self._running.set()
        self._forgotten = asyncio.Event()
        self._released = asyncio.Event()
        self._released.set()
        self._silence_next: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.opened = 0
        self.executed = 0
        self.round_trips = 0
        self.bytes = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._target.set(host="127.0.0.1", port=port).difference_update_query(["host"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def pause(self) -> None:
        """Accept connections and forward nothing."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def forget(self) -> None:
        """Forward nothing more on open connections, as if the server had vanished. New connections work."""
        self._forgotten.set()
        self._forgotten = asyncio.Event()

    def hold(self) -> Callable[[], None]:
        """Forward nothing on open connections until the result is called. New connections work."""
        held, self._released = self._released, asyncio.Event()
        self._released.set()
        held.clear()
        return held.set

    def redirect(self, target: URL) -> None:
        """Forward new connections to another server. Open ones stay where they are."""
        self._target = target

    def silence_next(self, *, after: int) -> None:
        """Forward nothing more on the next connection after its client has sent this number of messages."""
        self._silence_next = after

    async def stop_listening(self) -> None:
        """Refuse new connections."""
        self._server.close()

    async def listen_again(self) -> None:
        """Accept connections again, on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.url.port)

    async def close(self) -> None:
        """Refuse new connections and close the open ones."""
        await self.stop_listening()
        await self.cut()

    async def cut(self) -> None:
        """Close the open connections. New ones work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.opened += 1
        forgotten, released, silent_after = self._forgotten, self._released, self._silence_next
        if silent_after is not None:
            forgotten, self._silence_next = asyncio.Event(), None
        upstream_reader, upstream_writer = await self._connect()
        for source, sink, messages in (
            (reader, upstream_writer, _Messages()),
            (upstream_reader, writer, None),
        ):
            task = asyncio.create_task(self._pump(source, sink, messages, forgotten, released, silent_after))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        directory = self._target.query.get("host")  # the embedded PostgreSQL listens on a Unix socket
        if isinstance(directory, str):
            return await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.{self._target.port or 5432}")
        return await asyncio.open_connection(self._target.host, self._target.port)

    async def _pump(
        self,
        source: StreamReader,
        sink: StreamWriter,
        messages: _Messages | None,
        forgotten: asyncio.Event,
        released: asyncio.Event,
        silent_after: int | None,
    ) -> None:
        sent = 0
        try:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    self.bytes += len(data)
                    for kind in messages.types(data) if messages else ():
                        sent += 1
                        if silent_after is not None and sent > silent_after:
                            forgotten.set()
                        self.executed += kind in (b"E", b"Q")  # Execute, or a simple Query
                        self.round_trips += kind in (
                            b"S",
                            b"Q",
                            b"H",
                        )  # Sync, Query, Flush: the client waits for the response
                    await self._running.wait()
                    await released.wait()
                    if not forgotten.is_set():
                        sink.write(data)
                        await sink.drain()
        finally:
            sink.close()
