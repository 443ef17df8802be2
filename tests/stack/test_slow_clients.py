"""Clients that take their time, and the connections that nobody holds meanwhile: shown by the pool's own gauge."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.postgres import connect
from tests.support.stacks import Stack, total
from tests.support.waiting import eventually

PASSWORD = "correct horse"


@contextmanager
def raw_connection(stack: Stack) -> Iterator[socket.socket]:
    address = urlsplit(stack.api)
    assert address.hostname
    assert address.port
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the server has to wait for us
        connection.settimeout(10)
        connection.connect((address.hostname, address.port))
        yield connection


def nothing_is_held(stack: Stack, *, while_doing: float) -> None:
    """At every look, for as long as it takes the gauges to be published several times."""
    looks: list[float] = []

    def look() -> bool:
        looks.append(total(stack, "db_pool_connections", state="used"))
        return len(looks) * 0.1 >= while_doing

    eventually(look, within=while_doing + 10, every=0.1)
    assert max(looks) == 0


@pytest.fixture
def large_page(stack: Stack) -> Iterator[str]:
    """A page of 2 MB."""
    with connect(stack.database_url()) as connection:
        user = connection.execute(
            "INSERT INTO users (email, name, password_hash) VALUES ('large@example.com', 'L', '') RETURNING id"
        ).fetchone()
        assert user is not None
        connection.execute(
            "INSERT INTO posts (author_id, title, content) SELECT %s, 'Large', repeat('x', 100000)"
            " FROM generate_series(1, 20)",
            user,
        )
        yield f"/users/{user[0]}/posts?limit=20"
        connection.execute("DELETE FROM users WHERE id = %s", user)


def test_no_connection_is_held_while_a_client_reads_slowly(stack: Stack, large_page: str) -> None:
    with raw_connection(stack) as client:
        client.sendall(f"GET {large_page} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(1024).startswith(b"HTTP/1.1 200 OK")

        nothing_is_held(stack, while_doing=2)

        assert client.recv(1024), "the answer is still on its way"


def test_no_connection_is_held_while_a_body_trickles_in(stack: Stack) -> None:
    """Of a request that is signed in: who asks is looked up when the body is there, and not before."""
    email = "trickle@example.com"
    httpx.post(f"{stack.api}/users", json={"email": email, "name": "T", "password": PASSWORD}, timeout=30)
    token = httpx.post(f"{stack.api}/auth/token", data={"username": email, "password": PASSWORD}, timeout=30).json()
    body = b'{"title": "Slow", "content": "Slow"}'
    head = (
        f"POST /posts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: Bearer {token['access_token']}\r\n\r\n"
    )
    eventually(lambda: total(stack, "db_pool_connections", state="used") == 0, within=5)
    with raw_connection(stack) as client:
        client.sendall(head.encode() + body[:10])

        nothing_is_held(stack, while_doing=2)

        client.sendall(body[10:])
        assert client.recv(1024).startswith(b"HTTP/1.1 201 Created")
