"""A DNS server that can fall silent, and the command that makes one program use it."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Self

NAME = "database.fault.test"
_ANSWER_IPV4, _CLASS_INTERNET, _SECONDS = 1, 1, 1
_HEADER = 12


class NameServer:
    """Answers every question for an IPv4 address with 127.0.0.1. Port 53 requires root."""

    def __init__(self, port: int = 53) -> None:
        self.port = port
        number = os.getpid()
        self.host = f"127.53.{number // 250 % 250}.{number % 250 + 1}"
        self.is_silent = False

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.host, self.port))
        self._thread = Thread(target=self._serve, name="name server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # An empty datagram ends the thread. The port stays in use while a thread waits on a closed socket.
        self._socket.sendto(b"", (self.host, self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(512)
            if not question:
                return
            if not self.is_silent:
                with suppress(OSError):  # the client has gone
                    self._socket.sendto(answer_to(question), client)


def answer_to(question: bytes) -> bytes:
    """Return the answer to a DNS question: 127.0.0.1 for an IPv4 address, and nothing for anything else."""
    end = question.index(b"\0", _HEADER) + 5  # the name's end, then two bytes each for type and class
    kind = int.from_bytes(question[end - 4 : end - 2], "big")
    is_found = kind == _ANSWER_IPV4
    counts = b"\x00\x01" + (b"\x00\x01" if is_found else b"\x00\x00") + b"\x00\x00\x00\x00"
    answer = question[:2] + b"\x85\x80" + counts + question[_HEADER:end]
    if is_found:
        fields = ((0xC00C, 2), (_ANSWER_IPV4, 2), (_CLASS_INTERNET, 2), (_SECONDS, 4), (4, 2))
        answer += b"".join(value.to_bytes(size, "big") for value, size in fields) + bytes([127, 0, 0, 1])
    return answer


def resolving_with(server: NameServer, directory: Path) -> list[str]:
    """Return a command that runs another one with `server` as its only DNS server. The machine's files stay as is."""
    file = directory / "resolv.conf"
    file.write_text(f"nameserver {server.host}\n")
    script = f'mount --bind {file} /etc/resolv.conf && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]
