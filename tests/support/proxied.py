"""The proxy of compose.prod.yml in front of stand-ins for replicas, in containers on a network of their own."""

import json
import re
import ssl
import subprocess
from contextlib import suppress
from functools import cached_property
from ipaddress import IPv4Network
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import yaml

from app.paths import PROJECT_ROOT
from tests.support.ports import free_port
from tests.support.stacks import replicas_in
from tests.support.waiting import eventually

# Addresses for benchmarks (RFC 2544): no network has them, and to the API they are public.
SUBNETS = IPv4Network("198.18.0.0/16").subnets(new_prefix=28)
PYTHON = "python:3.13-slim-trixie"


def docker(*arguments: str, stdin: str | None = None) -> str:
    """Run a command of Docker. Return its output."""
    finished = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def create_network(name: str) -> None:
    """Create a network whose addresses are not private."""
    for subnet in SUBNETS:
        with suppress(AssertionError):  # another run has it
            docker("network", "create", "--subnet", str(subnet), name)
            return
    raise AssertionError("no free subnet")


def subnet(network: str) -> IPv4Network:
    [found] = json.loads(docker("network", "inspect", network))
    return IPv4Network(found["IPAM"]["Config"][0]["Subnet"])


def run_client(network: str, number: int, program: str, *arguments: str) -> str:
    """Run a Python program in a container with an address of its own. Return its output.

    It reaches the proxy by its name. Docker assigns the lowest addresses itself, so the number counts from the highest.
    """
    options = ["--rm", "--interactive", f"--network={network}", f"--ip={subnet(network)[-1 - number]}"]
    return docker("run", *options, PYTHON, "python", "-", *arguments, stdin=program)


def access_log(proxy: str) -> list[dict[str, Any]]:
    """Return the lines of the access log of a proxy's container."""
    return [json.loads(line) for line in docker("logs", proxy).splitlines() if line.startswith("{")]


SCRAPE = """
import urllib.error, urllib.request
for path in ("/metrics", "/certificates", "/other"):
    try:
        print(urllib.request.urlopen("http://proxy:8405" + path).read().decode())
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


def scrape_proxy(network: str, *options: str) -> list[str]:
    """Return the metrics of the proxy for a container of the network, line by line."""
    run = ["run", "--rm", "--interactive", f"--network={network}", *options, PYTHON, "python", "-"]
    return docker(*run, stdin=SCRAPE).splitlines()


def compose_service(name: str, file: str = "compose.prod.yml") -> dict[str, Any]:
    """Return a service of a Compose file with its defaults."""
    text = (PROJECT_ROOT / file).read_text(encoding="utf-8")
    service: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text))["services"][name]
    return service


class Replica:
    """A container with tests/support/stub_replica.py."""

    def __init__(self, network: str, name: str) -> None:
        self.name = name
        self.network = network
        program = PROJECT_ROOT / "tests/support/stub_replica.py"
        mount = ["--volume", f"{program}:/stub_replica.py:ro"]
        place = ["--network", network, "--network-alias", "api", "--name", name, "--hostname", name]
        docker("run", "--detach", "--init", *place, *mount, PYTHON, "python", "/stub_replica.py")
        eventually(lambda: self.executed == 0, within=60)

    @cached_property
    def address(self) -> str:
        [found] = json.loads(docker("inspect", self.name))
        return str(found["NetworkSettings"]["Networks"][self.network]["IPAddress"])

    def set(self, mode: str) -> None:
        """Set what it does with requests."""
        httpx.get(f"http://{self.address}:8000/stub?mode={mode}").raise_for_status()

    @property
    def executed(self) -> int:
        """Return the number of requests that it has executed."""
        return self._count("executed")

    @property
    def left(self) -> int:
        """Return the number of requests whose connection the proxy has closed before an answer."""
        return self._count("left")

    def _count(self, name: str) -> int:
        return int(httpx.get(f"http://{self.address}:8000/stub").json()[name])


class ProxiedReplicas:
    """The proxy, with the environment of compose.prod.yml and these changes, and its replicas."""

    def __init__(self, name: str, secrets: Path, **environment: str) -> None:
        self.name = name
        self.secrets = secrets
        self.replicas: list[Replica] = []
        self.numbers = count(1)
        self.https, self.http = free_port(), free_port()
        self.environment = {
            **compose_service("proxy")["environment"],
            "PROXY_HTTPS_PORT": str(self.https),
            **environment,
        }
        self.url = f"https://127.0.0.1:{self.https}"
        subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", secrets], check=True, capture_output=True)
        self.tls = ssl.create_default_context(cafile=secrets / "tls_ca_certificate")
        self.client = httpx.Client(base_url=self.url, verify=self.tls)

    def start(self, replicas: int = 2) -> None:
        create_network(self.name)
        self.start_proxy()
        for _ in range(replicas):
            self.add_replica()
        self.wait_for(replicas)

    def start_proxy(self) -> None:
        service = compose_service("proxy")
        variables = [f"--env={name}={value}" for name, value in self.environment.items()]
        files = [volume.replace("./", f"{PROJECT_ROOT}/", 1) for volume in service["volumes"]]
        files += [f"{self.secrets / name}:/run/secrets/{name}:ro" for name in service["secrets"]]
        mounts = [f"--volume={file}" for file in files]
        ports = [f"--publish=127.0.0.1:{self.https}:8443", f"--publish=127.0.0.1:{self.http}:8080"]
        limits = [
            "--init",
            "--read-only",
            f"--tmpfs={service['tmpfs'][0]}",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges:true",
        ]
        place = [f"--network={self.name}", "--network-alias=proxy", f"--name={self.name}-proxy"]
        docker("run", "--detach", *place, *ports, *limits, *variables, *mounts, service["image"])

    def add_replica(self) -> Replica:
        replica = Replica(self.name, f"{self.name}-{next(self.numbers)}")
        self.replicas.append(replica)
        return replica

    def remove(self, replica: Replica) -> None:
        """Kill a replica."""
        self.replicas.remove(replica)
        docker("rm", "--force", replica.name)

    def console(self, command: str) -> str:
        return docker("exec", f"{self.name}-proxy", "console", command)

    def wait_for(self, replicas: int, within: float = 30) -> None:
        """Wait until the proxy sends requests to this number of replicas."""
        eventually(lambda: replicas_in(self.console("show stat")) == replicas, within=within)

    def stop(self) -> None:
        self.client.close()
        containers = docker("ps", "--all", "--quiet", f"--filter=network={self.name}").split()
        if containers:
            docker("rm", "--force", *containers)
        docker("network", "rm", self.name)
