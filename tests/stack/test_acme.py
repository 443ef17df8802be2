"""compose.acme.yml: certbot obtains a certificate from an ACME authority, and the running proxy gets it."""

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.paths import PROJECT_ROOT
from tests.support.docker import require_engine
from tests.support.ports import free_port
from tests.support.proxied import docker, scrape_proxy
from tests.support.stacks import Compose
from tests.support.waiting import eventually

# The container is the authority `ca`, and also the machine of site.test, whose port 80 leads to the proxy.
CADDYFILE = """
{
    skip_install_trust
    pki {
        ca local {
            root {
                cert /ca/tls_ca_certificate
                key /ca/tls_ca_key
            }
        }
    }
}
https://ca {
    tls internal
    acme_server
}
http://site.test {
    reverse_proxy proxy:8080
}
"""
# The authority's own certificate is not from a public one.
TRUST = """
services:
  acme:
    environment:
      REQUESTS_CA_BUNDLE: /ca.pem
    volumes: ["{certificate}:/ca.pem:ro"]
"""


class ProxyWithAcme(Compose):
    """Only the proxy and certbot, on the network `front`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.secrets = folder / "secrets"
        subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", self.secrets], check=True, capture_output=True)
        self.port = free_port()
        (folder / "Caddyfile").write_text(CADDYFILE)
        trust = folder / "trust.yml"
        trust.write_text(TRUST.format(certificate=self.secrets / "tls_ca_certificate"))
        super().__init__(
            name,
            "compose.prod.yml",
            build=False,
            SECRETS_DIR=str(self.secrets),
            PROXY_ADDRESS="127.0.0.1",
            PROXY_HTTP_PORT=str(free_port()),
            PROXY_HTTPS_PORT=str(self.port),
            TLS_NAMES="site.test",
            ACME_EMAIL="ops@example.com",
            ACME_SERVER="https://ca/acme/local/directory",
        )
        self.folder = folder
        self.files += ["compose.acme.yml", str(trust)]

    def up(self) -> None:
        """Start certbot before its authority: the first attempt fails."""
        self.compose("up", "--no-deps", "--detach", "proxy")
        mounts = [f"--volume={self.folder / 'Caddyfile'}:/etc/caddy/Caddyfile:ro", f"--volume={self.secrets}:/ca:ro"]
        names = ["--network-alias=ca", "--network-alias=site.test"]
        docker("create", f"--name={self.name}-ca", f"--network={self.name}_front", *names, *mounts, "caddy:2.11.7")
        self.compose("up", "--no-deps", "--detach", "acme")
        eventually(lambda: "the attempt failed" in self.compose("logs", "acme"), within=120)
        docker("start", f"{self.name}-ca")

    def down(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", f"{self.name}-ca"], capture_output=True, check=False)
        super().down()

    def certificate(self) -> dict[str, Any]:
        """Return the certificate of site.test. Raise SSLError if it is not valid."""
        context = ssl.create_default_context(cafile=self.secrets / "tls_ca_certificate")
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="site.test") as connection,
        ):
            return dict(connection.getpeercert() or {})


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyWithAcme]:
    require_engine()
    with ProxyWithAcme(f"headroom-acme-{os.getpid()}", tmp_path_factory.mktemp("acme")).running() as stack:
        yield stack


def test_proxy_gets_certificates_while_it_runs_and_keeps_them(acme: ProxyWithAcme) -> None:
    obtained = eventually(acme.certificate, within=150)
    assert obtained["subjectAltName"] == (("DNS", "site.test"),)

    renew = "import certificates; assert certificates.obtain('--force-renewal'); certificates.install()"
    acme.compose("exec", "-T", "--workdir", "/usr/local/bin", "acme", "python", "-c", renew)
    renewed = acme.certificate()
    assert renewed["serialNumber"] != obtained["serialNumber"]

    metrics = scrape_proxy(f"{acme.name}_proxy-metrics", "--network-alias=prometheus")
    names = {line.partition("} ")[0] for line in metrics if line.startswith("proxy_certificate_expiry")}
    assert names == {
        'proxy_certificate_expiry_timestamp_seconds{certificate="@own/site",names="DNS:localhost"',
        'proxy_certificate_expiry_timestamp_seconds{certificate="/var/lib/haproxy/acme.pem",names="DNS:site.test"',
    }

    acme.compose("restart", "proxy")
    kept = eventually(acme.certificate, within=60)
    assert kept["serialNumber"] == renewed["serialNumber"]
