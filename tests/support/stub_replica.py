"""A stand-in for a replica of the API, run in a container: it counts requests, and fails as it is told to.

`GET /stub?mode=MODE` sets what it does with the requests that follow. It returns how many it has executed, and on how
many of these the other end has closed the connection before an answer:

- serve: answer with the headers of the request
- drop: execute the request, and close the connection without an answer
- hang: execute the request, and never answer
- stale: close the connection when its second request arrives, as a server does that closes an idle connection
- unready: as serve, with 503 on /readyz
"""

import asyncio
import json
import socket

mode = "serve"
executed = left = 0


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await serve(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection."""
    global executed, left, mode
    first = True
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        target = lines[0].split(" ")[1]
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        await reader.readexactly(int(headers.get("content-length", "0")))
        status = "200 OK"
        if target.startswith("/stub"):
            mode = target.partition("mode=")[2] or mode
        elif target == "/readyz":
            status = "503 Service Unavailable" if mode == "unready" else status
        elif mode == "stale" and not first:
            return
        else:
            first = False
            executed += 1
            if mode == "drop":
                return
            if mode == "hang":
                try:
                    await reader.read()
                finally:
                    left += 1
                return
        answer = {"name": socket.gethostname(), "executed": executed, "left": left, "headers": headers}
        content = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        is_last = headers.get("connection") == "close"
        writer.write(f"{head}Connection: {'close' if is_last else 'keep-alive'}\r\n\r\n".encode() + content)
        await writer.drain()
        if is_last:
            return


async def main() -> None:
    server = await asyncio.start_server(handle, "0.0.0.0", 8000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
