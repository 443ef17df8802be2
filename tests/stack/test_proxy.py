"""The proxy of compose.prod.yml in front of stand-ins for replicas, which fail on demand."""

import csv
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.proxied import ProxiedReplicas, access_log, docker, run_client, scrape_proxy, subnet
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedReplicas]:
    require_engine()
    proxied = ProxiedReplicas(
        f"headroom-proxy-{os.getpid()}",
        tmp_path_factory.mktemp("secrets") / "proxy",
        HEADER_TIMEOUT="2",
        BODY_TIMEOUT="2",
        PROXY_REQUEST_LIMIT="100000",
    )
    try:
        proxied.start()
        yield proxied
    finally:
        proxied.stop()


@pytest.fixture
def proxied(running: ProxiedReplicas) -> ProxiedReplicas:
    """Return the proxy with two replicas that serve."""
    while len(running.replicas) < 2:
        running.add_replica()
    for replica in running.replicas:
        replica.set("serve")
    running.wait_for(len(running.replicas))
    return running


def statuses(proxied: ProxiedReplicas, method: str, number: int) -> Counter[int]:
    return Counter(proxied.client.request(method, "/things").status_code for _ in range(number))


def executed(proxied: ProxiedReplicas) -> int:
    return sum(replica.executed for replica in proxied.replicas)


def received(proxied: ProxiedReplicas) -> int:
    """Return the number of requests whose headers the proxy has read."""
    rows = csv.DictReader(proxied.console("show stat").splitlines())
    [total] = [row["req_tot"] for row in rows if (row["# pxname"], row["svname"]) == ("https", "FRONTEND")]
    return int(total)


def test_read_that_a_replica_drops_is_sent_again(proxied: ProxiedReplicas) -> None:
    proxied.replicas[0].set("drop")

    assert statuses(proxied, "GET", 20) == {200: 20}


def test_write_that_a_replica_drops_gets_502_and_is_not_repeated(proxied: ProxiedReplicas) -> None:
    before = executed(proxied)
    proxied.replicas[0].set("drop")

    answers = [proxied.client.post("/things", content=b"{}") for _ in range(20)]

    assert Counter(answer.status_code for answer in answers) == {200: 10, 502: 10}
    assert executed(proxied) - before == 20
    failed = next(answer for answer in answers if answer.status_code == 502)
    assert failed.headers["content-type"] == "application/problem+json"
    assert "retry-after" not in failed.headers
    assert failed.json()["request_id"] == failed.headers["x-request-id"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_on_a_stale_kept_connection_is_answered(proxied: ProxiedReplicas, method: str) -> None:
    """The replica closes a kept connection as soon as another request arrives on it."""
    proxied.replicas[0].set("stale")

    assert statuses(proxied, method, 40) == {200: 40}


def test_write_to_a_replica_that_is_gone_goes_to_another_one(proxied: ProxiedReplicas) -> None:
    proxied.remove(proxied.replicas[0])

    assert statuses(proxied, "POST", 20) == {200: 20}


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
def test_request_in_progress_on_a_vanished_machine_ends_soon(
    proxied: ProxiedReplicas, method: str, status: int
) -> None:
    """Its connections are not closed, and `timeout server` is 60 s. Only a read is sent again."""
    before = {replica.name: replica.executed for replica in proxied.replicas}
    for replica in proxied.replicas:
        replica.set("hang")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(proxied.client.request, method, "/things", timeout=50)
        eventually(lambda: executed(proxied) > sum(before.values()), within=60)
        [vanished] = [replica for replica in proxied.replicas if replica.executed > before[replica.name]]
        [other] = [replica for replica in proxied.replicas if replica is not vanished]
        other.set("serve")
        docker("network", "disconnect", "--force", proxied.name, vanished.name)
        try:
            found = answer.result(timeout=40)
        finally:
            proxied.remove(vanished)

    assert found.status_code == status
    assert other.executed - before[other.name] == (method == "GET")


@contextmanager
def sending(proxied: ProxiedReplicas, method: str, *options: str) -> Iterator[None]:
    """Send a request in the block. Its client leaves at the end of the block, without an answer."""
    certificate = str(proxied.secrets / "tls_ca_certificate")
    command = ["curl", "--silent", "--cacert", certificate, "--request", method, *options, f"{proxied.url}/things"]
    before = executed(proxied)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
        try:
            eventually(lambda: executed(proxied) == before + 1, within=60)
            yield
        finally:
            client.kill()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_replica_learns_that_the_client_of_a_read_has_left(proxied: ProxiedReplicas, version: str) -> None:
    """It goes on with a write: a client may send one and leave."""
    for replica in proxied.replicas:
        replica.set("hang")
    before = sum(replica.left for replica in proxied.replicas)

    with sending(proxied, "POST", version):
        pass
    with sending(proxied, "GET", version):
        assert sum(replica.left for replica in proxied.replicas) == before

    eventually(lambda: sum(replica.left for replica in proxied.replicas) > before, within=60)
    assert sum(replica.left for replica in proxied.replicas) == before + 1, "of the read"


def test_new_replica_gets_requests_within_seconds(proxied: ProxiedReplicas) -> None:
    replica = proxied.add_replica()

    eventually(lambda: proxied.client.get("/things").json()["name"] == replica.name, within=60)


def test_replica_that_is_not_ready_gets_no_more_requests(proxied: ProxiedReplicas) -> None:
    replica = proxied.replicas[0]
    replica.set("unready")
    proxied.wait_for(len(proxied.replicas) - 1, within=60)

    names = {proxied.client.request(method, "/things").json()["name"] for method in ("GET", "POST") for _ in range(10)}

    assert replica.name not in names


def test_replicas_that_are_all_not_ready_still_answer_themselves(proxied: ProxiedReplicas) -> None:
    """Without a database they answer honest problems, and /livez."""
    for replica in proxied.replicas:
        replica.set("unready")
    proxied.wait_for(0, within=60)

    assert statuses(proxied, "GET", 5) == {200: 5}
    assert statuses(proxied, "POST", 5) == {200: 5}


def test_reload_of_the_proxy_loses_no_request(proxied: ProxiedReplicas) -> None:
    docker("exec", f"{proxied.name}-proxy", "reload")
    seen: Counter[int] = Counter()
    for _ in range(300):
        seen[httpx.get(f"{proxied.url}/things", verify=proxied.tls).status_code] += 1

    assert seen == {200: 300}


@pytest.fixture
def holding(proxied: ProxiedReplicas) -> Iterator[httpx.Client]:
    """Return a client with new connections: the process before a reload, which holds nothing, may serve older ones."""
    with httpx.Client(base_url=proxied.url, verify=proxied.tls, timeout=30) as client:
        yield client
    proxied.console("release")


def test_held_requests_wait_and_are_answered_after_the_release(proxied: ProxiedReplicas, holding: httpx.Client) -> None:
    """ops/restart.py holds them while the database restarts. The replicas get none of them meanwhile."""
    before = executed(proxied)
    with ThreadPoolExecutor(20) as threads:
        assert proxied.console("hold 20") == "held"
        arrived = received(proxied)
        answers = [threads.submit(holding.request, ("GET", "POST")[i % 2], "/things") for i in range(20)]
        eventually(lambda: received(proxied) == arrived + 20, within=60)
        assert (any(answer.done() for answer in answers), executed(proxied) - before) == (False, 0)
        assert proxied.console("hold 20") == "hold: requests are already held"
        assert proxied.console("release") == "released 20"

        assert {answer.result(timeout=30).status_code for answer in answers} == {200}
    assert executed(proxied) - before == 20


def test_hold_without_a_release_ends_by_itself(proxied: ProxiedReplicas, holding: httpx.Client) -> None:
    began = monotonic()
    assert proxied.console("hold 5") == "held"

    assert holding.get("/things").status_code == 200
    assert monotonic() - began > 1
    assert statuses(proxied, "GET", 5) == {200: 5}
    assert proxied.console("release") == "released 1", "later requests do not wait"
    assert proxied.console("hold 1") == "held"
    assert proxied.console("release") == "released 0"


def test_forwarded_headers_of_a_client_are_replaced(proxied: ProxiedReplicas) -> None:
    claims = {
        "X-Forwarded-For": "203.0.113.7",
        "x_forwarded_for": "203.0.113.7",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Real-IP": "203.0.113.7",
        "Forwarded": "for=203.0.113.7",
        "Request-Timeout": "2.5",
    }
    for method in ("GET", "POST"):
        seen = proxied.client.request(method, "/things", headers=claims).json()["headers"]
        assert seen["x-forwarded-for"] == str(subnet(proxied.name)[1]), "the gateway: this process"
        assert seen["x-forwarded-proto"] == "https"
        assert seen["request-timeout"] == "2.5"
        assert "203.0.113.7" not in str(seen)
        assert "evil.example" not in str(seen)


def test_log_line_has_the_request_id_and_no_secret(proxied: ProxiedReplicas) -> None:
    answer = proxied.client.get(
        "/things?token=secret-in-query", headers={"authorization": "Bearer secret-in-header", "x-request-id": "r-17"}
    )
    own = proxied.client.get("/things")

    assert answer.json()["headers"]["x-request-id"] == "r-17"
    ids = {"r-17", own.json()["headers"]["x-request-id"]}

    def lines() -> list[dict[str, Any]]:
        found = [line for line in access_log(f"{proxied.name}-proxy") if line["request_id"] in ids]
        return found if len(found) == 2 else []

    logged = {line["request_id"]: (line["path"], line["status"]) for line in eventually(lines, within=60)}
    assert {logged[each] for each in ids} == {("/things", 200)}
    assert "secret-in" not in docker("logs", f"{proxied.name}-proxy")


ATTACK = """
import http.client, ssl, sys
paths, number = sys.argv[1].split(), int(sys.argv[2])
context = ssl._create_unverified_context()
connection = http.client.HTTPSConnection("proxy", 8443, context=context)
statuses = []
for i in range(number):
    headers = {"X-Forwarded-For": f"203.0.113.{i % 250}", "Content-Length": "0"}
    connection.request("POST", paths[i % len(paths)], headers=headers)
    answer = connection.getresponse()
    answer.read()
    statuses.append(answer.status)
print(*statuses)
"""


def test_sign_ins_of_one_client_are_limited_and_no_other_clients(proxied: ProxiedReplicas) -> None:
    attacked = run_client(proxied.name, 1, ATTACK, "/auth/token /auth/%74oken", "70").split()
    assert attacked == ["200"] * 60 + ["429"] * 10

    assert run_client(proxied.name, 2, ATTACK, "/auth/token", "3").split() == ["200"] * 3
    assert proxied.client.post("/auth/token").status_code == 200


def test_body_above_the_limit_gets_413(proxied: ProxiedReplicas) -> None:
    refused = proxied.client.post("/things", content=b"x" * (1_048_576 + 1))

    assert refused.status_code == 413
    assert refused.json()["type"] == "/problems/content-too-large"
    assert proxied.client.post("/things", content=b"x" * 1_048_576).status_code == 200


def raw(proxied: ProxiedReplicas, data: bytes) -> bytes:
    """Send bytes over TLS. Return the first bytes of the response."""
    with (
        socket.create_connection(("127.0.0.1", proxied.https), timeout=20) as plain,
        proxied.tls.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(data)
        return connection.recv(65_536)


@pytest.mark.parametrize(
    "sent", [b"GET /things HTTP/1.1\r\nHost: x\r\n", b"POST /things HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]
)
def test_slow_client_gets_408_and_reaches_no_replica(proxied: ProxiedReplicas, sent: bytes) -> None:
    before = executed(proxied)

    assert raw(proxied, sent).startswith(b"HTTP/1.1 408 ")
    assert executed(proxied) == before


def test_headers_up_to_the_limit_of_the_api_pass(proxied: ProxiedReplicas) -> None:
    headers = {f"x-{number}": "v" * 300 for number in range(90)}

    assert proxied.client.get("/things", headers=headers).json()["headers"]["x-89"] == "v" * 300


def test_response_is_compressed_for_a_client_that_accepts_it(proxied: ProxiedReplicas) -> None:
    assert proxied.client.get("/things", headers={"accept-encoding": "gzip"}).headers["content-encoding"] == "gzip"
    assert "content-encoding" not in proxied.client.get("/things", headers={"accept-encoding": ""}).headers


def test_plain_http_is_redirected_to_https(proxied: ProxiedReplicas) -> None:
    answer = httpx.post(f"http://127.0.0.1:{proxied.http}/things?q=1")

    assert answer.status_code == 308
    assert answer.headers["location"] == f"{proxied.url}/things?q=1"


def test_every_answer_over_tls_has_hsts(proxied: ProxiedReplicas) -> None:
    for answer in (proxied.client.get("/things"), proxied.client.post("/things", content=b"x" * 1_048_577)):
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_protocol_is_accepted(proxied: ProxiedReplicas, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=proxied.secrets / "tls_ca_certificate")
    context.minimum_version = context.maximum_version = version

    assert httpx.get(f"{proxied.url}/things", verify=context).status_code == 200


@pytest.mark.parametrize(
    "options",
    [
        ["-tls1", "-cipher", "ALL@SECLEVEL=0"],
        ["-tls1_1", "-cipher", "ALL@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES128-SHA:AES128-GCM-SHA256"],
    ],
)
def test_old_protocol_or_cipher_is_refused(proxied: ProxiedReplicas, options: list[str]) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxied.https}", *options]

    tried = subprocess.run(command, input="", capture_output=True, text=True, check=False)

    assert tried.returncode != 0
    assert re.search("alert (protocol version|handshake failure)", tried.stderr), tried.stderr


def test_only_prometheus_gets_the_metrics_of_the_proxy(proxied: ProxiedReplicas) -> None:
    assert scrape_proxy(proxied.name) == ["/metrics 403", "/certificates 403", "/other 403"]

    lines = scrape_proxy(proxied.name, "--network-alias=prometheus")

    ready = [line for line in lines if line.startswith('haproxy_backend_active_servers{proxy="writes"}')]
    assert [line.split()[-1] for line in ready] == [str(len(proxied.replicas))]
    assert lines[-1] == "/other 404"
    [certificate] = [line for line in lines if line.startswith("proxy_certificate_expiry_timestamp_seconds")]
    show = ["openssl", "x509", "-in", str(proxied.secrets / "tls_certificate"), "-noout", "-enddate"]
    ends = subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip().removeprefix("notAfter=")
    # About: the proxy may have a newer one, from another test.
    name, _, value = certificate.rpartition(" ")
    assert name.endswith('{certificate="@own/site",names="DNS:localhost"}')
    assert abs(float(value) - ssl.cert_time_to_seconds(ends)) < 3600


def test_only_ciphers_with_forward_secrecy_are_accepted(proxied: ProxiedReplicas) -> None:
    """Try each cipher of TLS 1.2 that OpenSSL knows. The certificate has an ECDSA key."""
    known = ["openssl", "ciphers", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"]
    ciphers = subprocess.run(known, capture_output=True, text=True, check=True).stdout.strip().split(":")
    assert len(ciphers) > 50

    def accepted(cipher: str) -> bool:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxied.https}", "-tls1_2"]
        tried = subprocess.run(
            [*command, "-cipher", f"{cipher}:@SECLEVEL=0"], input="", capture_output=True, text=True, check=False
        )
        return tried.returncode == 0

    assert {cipher for cipher in ciphers if not cipher.startswith("TLS_") and accepted(cipher)} == {
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    }


def test_client_cannot_renegotiate_and_gets_no_session_ticket(proxied: ProxiedReplicas) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxied.https}", "-tls1_2", "-legacy_renegotiation"]

    tried = subprocess.run(command, input="R\n", capture_output=True, text=True, check=False)

    assert "Secure Renegotiation IS supported" in tried.stdout
    assert "session ticket" not in tried.stdout
    assert "no renegotiation" in tried.stderr


def test_session_ticket_of_tls_1_3_contains_no_state(proxied: ProxiedReplicas) -> None:
    """It is the number of a session in the proxy's memory. One with state is longer than 32 bytes."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{proxied.https}", "-tls1_3", "-ign_eof"]
    request = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

    tried = subprocess.run(command, input=request, capture_output=True, text=True, check=False, timeout=30)

    tickets = re.findall(r"TLS session ticket:\n((?: +[0-9a-f]{4} - .*\n)+)", tried.stdout)
    assert tickets
    assert {ticket.count("\n") for ticket in tickets} == {2}, "lines of 16 bytes"


def test_another_certificate_is_used_without_a_restart(proxied: ProxiedReplicas, tmp_path: Path) -> None:
    def serial() -> str:
        with (
            socket.create_connection(("127.0.0.1", proxied.https), timeout=20) as plain,
            proxied.tls.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return str((connection.getpeercert() or {})["serialNumber"])

    for name in ("tls_ca_certificate", "tls_ca_key"):
        shutil.copy(proxied.secrets / name, tmp_path)
    subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", tmp_path], check=True, capture_output=True)
    files = ["awk", "1", str(tmp_path / "tls_certificate"), str(tmp_path / "tls_key")]  # as in the Makefile
    pem = subprocess.run(files, capture_output=True, text=True, check=True).stdout
    before = serial()

    with pytest.raises(AssertionError, match="the proxy refused the certificate"):
        docker("exec", "-i", f"{proxied.name}-proxy", "certificate", stdin="no certificate")
    assert serial() == before
    docker("exec", "-i", f"{proxied.name}-proxy", "certificate", stdin=pem)
    assert serial() != before


def test_client_can_use_http_2(proxied: ProxiedReplicas) -> None:
    command = ["curl", "--silent", "--cacert", str(proxied.secrets / "tls_ca_certificate"), "--output", os.devnull]

    answer = subprocess.run(
        [*command, "--write-out", "%{http_version} %{http_code}", f"{proxied.url}/things"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert answer.stdout == "2 200"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedReplicas]:
    """Run a proxy behind a load balancer (this process), with a limit of 5 requests."""
    require_engine()
    proxied = ProxiedReplicas(
        f"headroom-behind-{os.getpid()}",
        tmp_path_factory.mktemp("secrets") / "behind",
        PROXY_LOAD_BALANCERS="192.0.2.1 198.18.0.0/16",
        PROXY_REQUEST_LIMIT="5",
    )
    try:
        proxied.start(replicas=1)
        yield proxied
    finally:
        proxied.stop()


def test_load_balancer_names_the_client_in_its_last_entry(behind: ProxiedReplicas) -> None:
    answer = behind.client.get("/things", headers={"x-forwarded-for": "203.0.113.7, 203.0.113.8"})

    assert answer.json()["headers"]["x-forwarded-for"] == "203.0.113.8"


def test_requests_of_one_client_are_limited(behind: ProxiedReplicas) -> None:
    """An IPv6 client can use every address of its /64."""

    def ask(address: str) -> httpx.Response:
        return behind.client.get("/things", headers={"x-forwarded-for": address})

    limited = [ask(f"2001:db8::{number}") for number in range(1, 8)][-1]

    assert limited.status_code == 429
    assert limited.headers["retry-after"] == "10"
    assert limited.json()["type"] == "/problems/too-many-attempts"
    assert ask("2001:db8:0:1::1").status_code == 200
