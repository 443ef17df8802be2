"""The name server of the fault harness."""

import socket

import pytest

from benchmarks.fault.dns import NameServer
from tests.support.ports import free_port

NAME = b"\x08database\x05fault\x04test\x00"


def question(kind: int) -> bytes:
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + NAME + kind.to_bytes(2, "big") + b"\x00\x01"


def ask(server: NameServer, kind: int, seconds: float = 5.0) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        client.sendto(question(kind), (server.host, server.port))
        return client.recv(512)


@pytest.mark.parametrize(("kind", "answers"), [(1, 1), (28, 0)])
def test_name_server_answers_with_an_ipv4_address_only(kind: int, answers: int) -> None:
    with NameServer(free_port()) as server:
        answer = ask(server, kind)

    assert answer[:2] == question(kind)[:2]
    assert answer[6:8] == answers.to_bytes(2, "big")
    assert answer.endswith(b"\x7f\x00\x00\x01") == bool(answers)


def test_name_server_falls_silent_and_frees_its_port() -> None:
    port = free_port()
    for _ in range(2):
        with NameServer(port) as server:
            assert ask(server, 1)
            server.is_silent = True
            with pytest.raises(TimeoutError):
                ask(server, 1, seconds=0.2)
