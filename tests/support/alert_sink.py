"""A mail server and a web server that accept alerts, in a container. They print what they get, one JSON object a line.

SMTP with AUTH PLAIN and the certificate in /run/secrets: STARTTLS on port 2525, TLS from the first byte on port 465.
HTTP on port 8080: 204, or 500 for a path that begins with /broken.
"""

import asyncio
import base64
import json
import ssl


def show(**got: object) -> None:
    print(json.dumps(got), flush=True)


def certificate() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("/run/secrets/tls_certificate", "/run/secrets/tls_key")
    return context


async def smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    tls, signed_in = writer.get_extra_info("ssl_object") is not None, ""

    async def reply(*lines: str) -> None:
        writer.write("".join(f"{line}\r\n" for line in lines).encode())
        await writer.drain()

    await reply("220 sink")
    while line := (await reader.readline()).decode().strip():
        verb, _, rest = line.partition(" ")
        match verb.upper():
            case "EHLO":
                await reply("250-sink", "250 AUTH PLAIN" if tls else "250 STARTTLS")
            case "STARTTLS":
                await reply("220 go ahead")
                await writer.start_tls(certificate())
                tls = True
            case "AUTH":
                signed_in = base64.b64decode(rest.split()[1]).decode().lstrip("\0").replace("\0", ":")
                await reply("235 welcome")
            case "DATA":
                await reply("354 go ahead")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                show(mail=text, tls=tls, signed_in=signed_in)
                await reply("250 accepted")
            case "QUIT":
                await reply("221 bye")
                break
            case _:
                await reply("250 ok")
    writer.close()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    path = head.split()[1]
    [length] = [line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length:")]
    show(path=path, body=json.loads(await reader.readexactly(int(length))))
    status = "500 Broken" if path.startswith("/broken") else "204 No Content"
    writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
    await writer.drain()
    writer.close()


async def main() -> None:
    servers = [
        await asyncio.start_server(smtp, port=2525),
        await asyncio.start_server(smtp, port=465, ssl=certificate()),
        await asyncio.start_server(http, port=8080),
    ]
    show(ready=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
