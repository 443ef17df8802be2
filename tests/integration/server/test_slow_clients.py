"""The API ends slow clients, as its settings say, and meanwhile serves the others."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import URL

from tests.support.serving import Served, exporter_of, gunicorn
from tests.support.waiting import eventually

CLIENTS = 20
LIMITS = {
    "HEADER_TIMEOUT": "1",
    "BODY_TIMEOUT": "2",
    "SEND_TIMEOUT": "2",
    "KEEP_ALIVE_TIMEOUT": "4",
    "MAX_HEADER_BYTES": "1024",
    "MAX_HEADERS": "10",
}

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW_HEADERS = GET[:-2] % b"/livez"
SLOW_BODY = b"POST /test-contacts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
SLOW_READER = GET % b"/openapi.json" * 200  # more than the buffers of the system hold
IDLE = b""


@pytest.fixture
def served(database_url: URL, tmp_path: Path) -> Iterator[Served]:
    with gunicorn("tests.support.contacts:create()", database_url, tmp_path, WEB_CONCURRENCY="1", **LIMITS) as served:
        yield served


@pytest.fixture
def refused(served: Served, database_url: URL, tmp_path: Path) -> Iterator[Callable[[], dict[str, int]]]:
    """Return a function that reads from the exporter how many clients were refused, by reason."""

    def read() -> dict[str, int]:
        families = text_string_to_metric_families(httpx.get(f"{exporter}/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {
            sample.labels["reason"]: int(sample.value)
            for sample in samples
            if sample.name == "http_refused_clients_total"
        }

    with exporter_of(served.address, database_url, tmp_path) as exporter:
        yield read


def test_slow_clients_are_ended_while_others_are_served(served: Served, refused: Callable[[], dict[str, int]]) -> None:
    with ExitStack() as stack:

        def connect(sent: bytes) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(("127.0.0.1", served.port))
            client.sendall(sent)
            return client

        slow_headers, slow_bodies, _, idle = [
            [connect(sent) for _ in range(CLIENTS)] for sent in (SLOW_HEADERS, SLOW_BODY, SLOW_READER, IDLE)
        ]
        assert httpx.get(f"{served.address}/livez", timeout=30).status_code == 200

        assert {client.recv(12) for client in slow_headers + slow_bodies} == {b"HTTP/1.1 408"}
        assert {client.recv(1) for client in idle} == {b""}
        expected = {"header_timeout": CLIENTS, "body_timeout": CLIENTS, "send_timeout": CLIENTS}
        eventually(lambda: refused() == expected, within=60)
        assert httpx.get(f"{served.address}/livez", timeout=30).status_code == 200


def test_settings_of_headers_reach_the_worker(served: Served) -> None:
    for headers in ({f"x-{number}": "x" for number in range(10)}, {"x": "x" * 1024}):
        assert httpx.get(f"{served.address}/livez", headers=headers, timeout=30).status_code == 431
