"""Checks before and after a deploy: the image tag, the placement, and a request through each proxy."""

import http.client
import re
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from urllib.error import URLError

from ops.swarm.docker import Node
from ops.swarm.errors import SwarmError
from ops.swarm.stack import Model, Stack

_CONSTRAINT = re.compile(r"node\.labels\.(\S+?)\s*(==|!=)\s*(\S+)")
SMOKE_SECONDS = 5


def version_of(stack: Stack) -> str:
    """Return the tag of the API's image. Raise SwarmError if a tag of the project names no version."""
    images: dict[str, str] = {name: stack.services[name]["image"] for name in sorted({*stack.built, "api"})}
    tags = {name: image.rpartition(":")[2] for name, image in images.items()}
    unnamed = [name for name, tag in tags.items() if tag in ("latest", "")]
    if unnamed:
        raise SwarmError(
            f"the image of {', '.join(unnamed)} has the tag latest: set IMAGE_TAG to a version;"
            " with the same tag as before, Swarm would see no change"
        )
    return tags["api"]


def check_places(stack: Stack, nodes: Sequence[Node]) -> None:
    """Raise SwarmError if a service has no machine, or if its data would be on more than one."""
    for name, service in stack.services.items():
        deploy = service.get("deploy", {})
        constraints = deploy.get("placement", {}).get("constraints", [])
        found = [node.name for node in nodes if node.is_usable and _satisfies(node, constraints)]
        label = next((match[1] for each in constraints if (match := _CONSTRAINT.search(each))), "NAME")
        if not found:
            raise SwarmError(
                f"service {name}: no machine that is ready satisfies {', '.join(constraints) or 'its placement'}:"
                f" docker node update --label-add {label}=true NODE"
            )
        if len(found) > 1 and deploy.get("mode", "replicated") == "replicated" and _keeps_data(name, service, stack):
            step = f"docker node update --label-rm {label} NODE" if constraints else "give it a placement"
            raise SwarmError(
                f"service {name}: its volumes are local to a machine, but {', '.join(found)} may run it: {step}"
            )


def _satisfies(node: Node, constraints: Sequence[str]) -> bool:
    for constraint in constraints:
        match = _CONSTRAINT.fullmatch(constraint.strip())
        # Other constraints (node.role and so on) are left to Swarm.
        if match and (node.labels.get(match[1], "") == match[3]) != (match[2] == "=="):
            return False
    return True


def _keeps_data(name: str, service: Model, stack: Stack) -> bool:
    """Return True if the service has a volume that no global service shares: data, and not metrics of a machine."""
    per_machine = {
        volume["source"]
        for other in stack.services.values()
        if other.get("deploy", {}).get("mode") == "global"
        for volume in other.get("volumes", [])
        if volume["type"] == "volume"
    }
    volumes = {volume["source"] for volume in service.get("volumes", []) if volume["type"] == "volume"}
    return bool(volumes - per_machine)


class Smoke:
    """A request through each proxy. `certificate` is what the proxies must present, in PEM; None: anything."""

    def __init__(self, certificate: str | None, port: int, path: str = "/readyz") -> None:
        self._expected = ssl.PEM_cert_to_DER_cert(first_certificate(certificate)) if certificate else None
        self._port = port
        self._path = path

    def problem(self, address: str) -> str | None:
        """Send a request to the proxy of a machine. Return what is wrong, or None."""
        # Not verified by name, since it is addressed as a machine: it must present this very certificate.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(address, self._port, timeout=SMOKE_SECONDS, context=context)
        try:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            if self._expected not in (None, connection.sock.getpeercert(binary_form=True)):
                return "presents another certificate than the stack's"
            connection.request("GET", self._path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        finally:
            connection.close()
        return None if status == 200 else f"GET {self._path}: {status}"


def first_certificate(pem: str) -> str:
    """Return the first certificate of a chain."""
    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", pem, re.DOTALL)
    if not found:
        raise SwarmError("the secret tls_certificate has no certificate in PEM")
    return found[0]


def url_problem(url: str) -> str | None:
    """Send a request to a URL, and verify its certificate. Return what is wrong, or None."""
    if not url.startswith("https://"):
        raise SwarmError(f"url: must begin with https://, got {url}")
    try:
        with urllib.request.urlopen(url, timeout=SMOKE_SECONDS):  # noqa: S310 - https only, see above
            return None
    except (URLError, OSError) as error:
        return str(error)


def https_port(proxy: Mapping[str, object]) -> int:
    """Return the port of a machine on which the proxy answers TLS."""
    ports = proxy.get("ports", [])
    assert isinstance(ports, list)
    [found] = [int(port["published"]) for port in ports if port["target"] == 8443]
    return found
