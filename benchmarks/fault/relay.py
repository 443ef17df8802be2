"""A TCP relay whose connections can be silenced, cut and refused: `python -m benchmarks.fault.relay PORT TARGET_PORT`.

It is a process of its own, so that the load of the clients does not slow it down. Commands come line by line on stdin;
each is answered with one line.
"""

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self, cast

import uvloop

HOST = "127.0.0.1"


class Relay:
    """The relay, as its user sees it. It listens on `port` of 127.0.0.1."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        command = [sys.executable, "-m", "benchmarks.fault.relay", str(port), str(target)]
        root = Path(__file__).parent.parent.parent
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._read()

    def silence(self) -> None:
        """Accept connections and forward nothing, as a network that drops every packet."""
        self._do("silence")

    def forward(self) -> None:
        """Forward again, also on the connections that were silent."""
        self._do("forward")

    def refuse(self) -> None:
        """Close every connection and refuse new ones."""
        self._do("refuse")

    def listen(self) -> None:
        """Accept connections again."""
        self._do("listen")

    def cut(self) -> None:
        """Close every connection. New ones work."""
        self._do("cut")

    def switch(self, target: int) -> None:
        """Close every connection. New ones go to another port."""
        self._do(f"target {target}")
        self._do("cut")

    def switch_new(self, target: int) -> None:
        """Let new connections go to another port, and leave the open ones where they are."""
        self._do(f"target {target}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _do(self, command: str) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(command + "\n")
        pipe.flush()
        self._read()

    def _read(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("the relay has ended")


class _Pipe(asyncio.Protocol):
    """One direction of a connection."""

    def __init__(self, relay: "_Server", peer: "_Pipe | None" = None) -> None:
        self.relay = relay
        self.peer = peer
        self.transport: asyncio.Transport | None = None
        self._held: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit from it
        self.relay.pipes.add(self)
        if self.relay.is_silent:
            # uvloop starts to read after this method, whatever it does.
            asyncio.get_running_loop().call_soon(self.set_silent, True)
        if self.peer is None:
            self.peer = _Pipe(self.relay, self)
            task = asyncio.ensure_future(self._open(self.peer))
            self.relay.tasks.add(task)
            task.add_done_callback(self.relay.tasks.discard)

    async def _open(self, peer: "_Pipe") -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: peer, HOST, self.relay.target)
        except OSError:
            assert self.transport is not None
            self.transport.abort()
            return
        assert peer.transport is not None
        self._forward()
        if self.transport is None or self.transport.is_closing():
            peer.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self._forward()

    def set_silent(self, is_silent: bool) -> None:
        """Stop to read, so that nothing is forwarded, not even the end of the connection; or go on."""
        assert self.transport is not None
        with suppress(RuntimeError):  # it is closing
            self.transport.pause_reading() if is_silent else self.transport.resume_reading()
        self._forward()

    def _forward(self) -> None:
        assert self.peer is not None
        if self.peer.transport is not None and not self.relay.is_silent:
            self.peer.transport.writelines(self._held)
            self._held.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.pipes.discard(self)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()


class _Server:
    """The relay's process."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.is_silent = False
        self.pipes: set[_Pipe] = set()
        self.tasks: set[asyncio.Future[Any]] = set()
        self._listener: asyncio.Server | None = None

    async def run(self, commands: IO[str]) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), commands)
        await self._listen()
        print("done", flush=True)
        while line := (await reader.readline()).decode().split():
            match line:
                case ["silence"]:
                    self._set_silent(True)
                case ["forward"]:
                    self._set_silent(False)
                case ["refuse"]:
                    assert self._listener is not None
                    self._listener.close()
                    self._cut()
                case ["listen"]:
                    await self._listen()
                case ["cut"]:
                    self._cut()
                case ["target", port]:
                    self.target = int(port)
            print("done", flush=True)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Pipe(self), HOST, self.port, backlog=1024)

    def _set_silent(self, is_silent: bool) -> None:
        self.is_silent = is_silent
        for pipe in self.pipes:
            pipe.set_silent(is_silent)

    def _cut(self) -> None:
        for pipe in [*self.pipes]:
            assert pipe.transport is not None
            pipe.transport.abort()


if __name__ == "__main__":
    uvloop.run(_Server(int(sys.argv[1]), int(sys.argv[2])).run(sys.stdin))
