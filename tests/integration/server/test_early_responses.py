"""Clients and proxies that send a large body get the response that the API sends before it has read the body.

Uvicorn alone closes such a connection with unread bytes in it, which resets it: urllib lost each of eight responses,
and nginx answered 32 of 40 requests with 502 (docs/decisions/0017-client-limits.md).
"""

import asyncio
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.postgres import Server, as_role
from tests.support.serving import gunicorn, running

MEGABYTES = (1.1, 3, 10)
# Answered by the limit of bodies, by the router, and by the router again: none of them reads the body.
TARGETS = (("/test-contacts", 413), ("/nowhere", 404), ("/livez", 405))
REPEATS = 4


@pytest.fixture(scope="module")
def api(postgres: Server, migrated_template: str, new_directory: Callable[[], Path]) -> Iterator[int]:
    """Run the API; yield its port."""
    with postgres.database(template=migrated_template) as url:
        url = as_role(url, "headroom_app").set(drivername="postgresql+asyncpg")
        with gunicorn("tests.support.contacts:create()", url, new_directory(), WEB_CONCURRENCY="1") as served:
            yield served.port


def post_with_urllib(url: str, body: bytes) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            error.read()
            return error.code


def post_with_httpx(url: str, body: bytes) -> int:
    return httpx.post(url, content=body, timeout=30).status_code


def post_with_requests(url: str, body: bytes) -> int:
    requests = pytest.importorskip("requests")
    return int(requests.post(url, data=body, timeout=30).status_code)


def post_with_aiohttp(url: str, body: bytes) -> int:
    aiohttp = pytest.importorskip("aiohttp")

    async def post() -> int:
        async with aiohttp.ClientSession() as session, session.post(url, data=body) as response:
            await response.read()
            return int(response.status)

    return asyncio.run(post())


def post_with_curl(url: str, body: bytes, *options: str) -> int:
    command = [program("curl"), "--silent", "--show-error", "--max-time", "30", *options]
    command += ["--output", "/dev/null", "--write-out", "%{http_code}", "--data-binary", "@-", url]
    return int(subprocess.run(command, input=body, capture_output=True, check=True).stdout)


def post_with_curl_http_1_0(url: str, body: bytes) -> int:
    return post_with_curl(url, body, "--http1.0")


def post_with_curl_without_100_continue(url: str, body: bytes) -> int:
    return post_with_curl(url, body, "--header", "Expect:")


def program(name: str) -> str:
    """Return the path of a program. Skip the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package: {name})")
    return path


def statuses(post: Callable[[str, bytes], int], port: int, megabytes: float) -> dict[str, set[int]]:
    """Return the statuses of several requests to each target."""
    body = b"x" * int(megabytes * 1_000_000)
    return {target: {post(f"http://127.0.0.1:{port}{target}", body) for _ in range(REPEATS)} for target, _ in TARGETS}


EXPECTED = {target: {status} for target, status in TARGETS}


@pytest.mark.parametrize("megabytes", MEGABYTES)
@pytest.mark.parametrize(
    "post",
    [
        post_with_urllib,
        post_with_httpx,
        post_with_requests,
        post_with_aiohttp,
        post_with_curl,
        post_with_curl_http_1_0,
        post_with_curl_without_100_continue,
    ],
)
def test_early_response_reaches_client(api: int, post: Callable[[str, bytes], int], megabytes: float) -> None:
    assert statuses(post, api, megabytes) == EXPECTED


NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream api {{
        server 127.0.0.1:{api};
        keepalive 8;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://api;
            proxy_http_version {version};
            proxy_set_header Connection {connection};
            proxy_request_buffering {buffering};
        }}
    }}
}}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    option {option}
listen api
    bind 127.0.0.1:{port}
    server api 127.0.0.1:{api}
"""


@contextmanager
def nginx(directory: Path, **values: object) -> Iterator[int]:
    """Run nginx in front of the API; yield its port."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, **values))
    command = [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with running(command, directory, {}, lambda: connects(port)):
        yield port


@contextmanager
def haproxy(directory: Path, **values: object) -> Iterator[int]:
    """Run HAProxy in front of the API; yield its port."""
    port = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, **values))
    with running([program("haproxy"), "-db", "-f", str(config)], directory, {}, lambda: connects(port)):
        yield port


def connects(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    return True


@pytest.mark.parametrize("megabytes", MEGABYTES)
@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize(("version", "connection"), [("1.0", "close"), ("1.1", "close"), ("1.1", '""')])
def test_early_response_passes_through_nginx(
    api: int, tmp_path: Path, version: str, connection: str, buffering: str, megabytes: float
) -> None:
    with nginx(tmp_path, api=api, version=version, connection=connection, buffering=buffering) as port:
        assert statuses(post_with_httpx, port, megabytes) == EXPECTED


@pytest.mark.parametrize("megabytes", MEGABYTES)
@pytest.mark.parametrize("post", [post_with_httpx, post_with_curl_http_1_0])
@pytest.mark.parametrize("option", ["http-keep-alive", "http-server-close"])
def test_early_response_passes_through_haproxy(
    api: int, tmp_path: Path, option: str, post: Callable[[str, bytes], int], megabytes: float
) -> None:
    with haproxy(tmp_path, api=api, option=option) as port:
        assert statuses(post, port, megabytes) == EXPECTED
