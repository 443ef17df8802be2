"""No database connection is held while a client sends or reads slowly: the pool's gauge stays at 0.

The limits of clients are tested in tests/unit/server/test_protocol.py. One test shows that every stack has them.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support import sample
from tests.support.postgres import connect
from tests.support.stacks import Stack, total
from tests.support.waiting import eventually


@contextmanager
def raw_connection(stack: Stack) -> Iterator[socket.socket]:
    address = urlsplit(stack.api)
    assert address.hostname
    assert address.port
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a small buffer makes the server wait
        connection.settimeout(10)
        connection.connect((address.hostname, address.port))
        yield connection


def assert_no_connection_is_used(stack: Stack) -> None:
    """Read the gauge for 2 seconds. The workers publish it several times in that time."""
    eventually(lambda: total(stack, "db_pool_connections", state="used") == 0, within=60)  # as of the last publication
    until = monotonic() + 2
    while monotonic() < until:
        assert total(stack, "db_pool_connections", state="used") == 0
        sleep(0.1)


@pytest.fixture
def large_page(stack: Stack) -> Iterator[str]:
    """Store twenty posts of 100 kB. Return the path of the page with all of them."""
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


def test_slow_reader_of_a_response_holds_no_connection(stack: Stack, large_page: str) -> None:
    with raw_connection(stack) as client:
        client.sendall(f"GET {large_page} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(1024).startswith(b"HTTP/1.1 200 OK")

        assert_no_connection_is_used(stack)

        assert client.recv(1024), "the response must not be complete yet"


def test_slow_sender_of_a_body_holds_no_connection(stack: Stack) -> None:
    """The route queries the database, for example for the user of a token, after the body has arrived."""
    with httpx.Client(base_url=stack.api, timeout=30) as client:
        row = sample.create(client, "trickle")
    body = b'{"name": "Slow"}'
    head = (
        f"PATCH {row.path} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in row.headers.items())
        + "\r\n"
    )
    eventually(lambda: total(stack, "db_pool_connections", state="used") == 0, within=60)
    with raw_connection(stack) as sender:
        sender.sendall(head.encode() + body[:10])

        assert_no_connection_is_used(stack)

        sender.sendall(body[10:])
        assert sender.recv(1024).startswith(b"HTTP/1.1 200 OK")


def test_limits_of_clients_are_in_force(stack: Stack) -> None:
    headers = {f"x-{number}": "x" for number in range(100)}
    response = httpx.get(f"{stack.api}/livez", headers=headers, timeout=30)

    assert (response.status_code, response.json()["type"]) == (431, "/problems/request-header-fields-too-large")
