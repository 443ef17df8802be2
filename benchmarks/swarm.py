"""compose.prod.yml on three machines under load: `make bench-swarm` (needs Docker, as root).

The machines are containers, each with a Docker Engine of its own, in one swarm with three managers. Clients connect to
the proxies of all machines and change to another one when a connection fails, as clients do whose name has several
addresses. Half of them write; in the end, what they were told is compared with the database.

A first deploy, and who reaches what. Then under load: a rolling update, a killed machine, a rollback, and a version
that never becomes ready.
"""

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic

import httpx
import uvloop

from app.paths import PROJECT_ROOT
from benchmarks.deploy import ADD_COLUMN, PASSWORD, Exchange, Phases, build, docker, revision_files
from benchmarks.tables import print_header, print_row
from tests.support.connecting import CONNECT
from tests.support.load import Answer, Connection, connect, get, post
from tests.support.stacks import replicas_in
from tests.support.waiting import eventually

MACHINE = "headroom-swarm-machine"
# Debian's package has the engine, containerd and runc.
DOCKERFILE = """
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends docker.io docker-cli iptables iproute2 \\
 && rm -rf /var/lib/apt/lists/*
# After a kill, files say that the engine runs.
CMD ["sh", "-c", "rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid; \\
 exec dockerd --host=unix:///var/run/docker.sock --host=unix:///sockets/docker.sock"]
"""
REGISTRY = "registry:5000"
# Debian's configuration wants a password. The certificate is for the name in the network of the machines.
REGISTRY_DOCKERFILE = """
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends apache2-utils docker-registry openssl \\
 && rm -rf /var/lib/apt/lists/*
RUN htpasswd -Bbc /etc/docker/registry/htpasswd operator registry-password \\
 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 7 -subj /CN=registry \\
    -addext subjectAltName=DNS:registry -keyout /key.pem -out /ca.pem
ENV REGISTRY_HTTP_TLS_CERTIFICATE=/ca.pem REGISTRY_HTTP_TLS_KEY=/key.pem
CMD ["docker-registry", "serve", "/etc/docker/registry/config.yml"]
"""
STACK = "headroom"
REPLICAS = 3
PORT = 443
IMAGE_TEMPLATE = "{{.Spec.TaskTemplate.ContainerSpec.Image}}"
# Of all services, the proxy's console, and those of the swarm itself.
CONTROL_PORT = 1  # a host on which this port answers is not there: something between answers for every address
PORTS = (CONTROL_PORT, 80, 443, 2377, 5432, 6432, 7946, 8000, 8080, 8405, 8443, 9090, 9093, 9464, 9999)
CONNECT_SECONDS = 2.0
# Longer than any deadline of the API and of the proxy for a machine that has vanished.
PATIENCE_SECONDS = 30.0
WAIT_SECONDS = 600.0
STEADY_SECONDS = 10.0


class Machine:
    """A container with a Docker Engine."""

    def __init__(self, name: str, network: str, directory: Path) -> None:
        self.name = name
        self.sockets = directory / name
        self.sockets.mkdir()
        self.host = f"unix://{self.sockets}/docker.sock"
        # The engine's data is on a volume: an overlay cannot be on another overlay.
        mounts = [f"--volume={name}:/var/lib/docker", f"--volume={self.sockets}:/sockets"]
        place = ["--network", network, "--name", name, "--hostname", name.rpartition("-")[2]]
        docker("run", "--detach", "--privileged", *place, *mounts, MACHINE)
        self.wait_for_engine()

    def wait_for_engine(self) -> None:
        eventually(lambda: bool(self.docker("info", "--format", "{{.ServerVersion}}", check=False).strip()), within=300)

    @property
    def address(self) -> str:
        [found] = json.loads(_output("docker", "inspect", self.name))
        [network] = found["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run a command of Docker on this machine. Return its output."""
        return _output("docker", "--host", self.host, *arguments, check=check)

    def containers(self, service: str) -> list[str]:
        """Return the ids of the running containers of a service on this machine."""
        return self.docker("ps", "--quiet", f"--filter=label=com.docker.swarm.service.name={STACK}_{service}").split()

    def gateway_addresses(self, sandbox: str) -> list[str]:
        """Return the address by which a container leaves this machine."""
        [bridge] = json.loads(self.docker("network", "inspect", "docker_gwbridge"))
        endpoints = bridge["Containers"].values()
        return [
            each["IPv4Address"].partition("/")[0] for each in endpoints if each["Name"] == f"gateway_{sandbox[:12]}"
        ]

    def kill(self) -> None:
        """Let the machine vanish, with everything on it."""
        docker("kill", self.name)

    def start(self) -> None:
        docker("start", self.name)
        self.wait_for_engine()

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self.name)
        docker("volume", "rm", self.name)


class Registry:
    """A container with a registry, which only the first machine may use: it hands its credentials on with a deploy."""

    def __init__(self, network: str) -> None:
        self.name = f"{network}-registry"
        _build(f"{network}:registry", REGISTRY_DOCKERFILE)
        place = ["--network", network, "--network-alias", REGISTRY.partition(":")[0], "--name", self.name]
        docker("run", "--detach", *place, f"{network}:registry")
        self._authority = _output("docker", "exec", self.name, "cat", "/ca.pem")

    def introduce(self, machine: "Machine") -> None:
        """Let a machine trust the registry's certificate."""
        folder = f"/etc/docker/certs.d/{REGISTRY}"
        write = f"mkdir -p {folder} && cat > {folder}/ca.crt"
        _output("docker", "exec", "--interactive", machine.name, "sh", "-c", write, stdin=self._authority)

    def push(self, machine: "Machine") -> int:
        """Push the images of the project from a machine. Return their number."""
        login = ("login", "--username=operator", "--password-stdin", REGISTRY)
        _output("docker", "--host", machine.host, *login, stdin="registry-password")
        images = machine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"{REGISTRY}/*").split()
        for image in images:
            machine.docker("push", "--quiet", image)
        return len(images)

    def remove(self) -> None:
        _output("docker", "logout", REGISTRY)
        docker("rm", "--force", "--volumes", self.name)


class Swarm:
    """Three machines in one swarm. The first one has the data."""

    def __init__(self, directory: Path, environment: dict[str, str], machines: int = 3) -> None:
        self.name = f"headroom-swarm-{os.getpid()}"
        self.directory = directory
        self.secrets = directory / "secrets"
        self.environment = {
            "SECRETS_DIR": str(self.secrets),
            "PROXY_REQUEST_LIMIT": "1000000",
            "PROXY_SIGN_IN_LIMIT": "1000000",
            **environment,
        }
        self._number = machines
        self._has_registry = "IMAGE_REGISTRY" in environment
        self.registry: Registry | None = None
        self.machines: list[Machine] = []

    @contextmanager
    def running(self) -> Iterator["Swarm"]:
        """Start the machines. Remove them when the block ends."""
        _build(MACHINE, DOCKERFILE)
        subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", self.secrets], check=True, capture_output=True)
        docker("network", "create", self.name)
        try:
            for number in range(1, self._number + 1):
                self.machines.append(Machine(f"{self.name}-node{number}", self.name, self.directory))
            if self._has_registry:
                self.registry = Registry(self.name)
                for machine in self.machines:
                    self.registry.introduce(machine)
            first = self.machines[0]
            first.docker("swarm", "init", "--advertise-addr", first.address)
            token = first.docker("swarm", "join-token", "--quiet", "manager").strip()
            for machine in self.machines[1:]:
                machine.docker("swarm", "join", "--token", token, f"{first.address}:2377")
            first.docker(
                "node", "update", "--label-add=headroom.data=true", "--label-add=headroom.monitoring=true", "node1"
            )
            yield self
        finally:
            for machine in self.machines:
                machine.remove()
            if self.registry is not None:
                self.registry.remove()
            docker("network", "rm", self.name)

    def run(
        self, *arguments: str, tag: str, check: bool = True, on_first: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run `python3 -m ops.swarm`, by default with the engine of the first machine."""
        engine = {"DOCKER_HOST": self.machines[0].host} if on_first else {}
        environment = os.environ | self.environment | engine | {"IMAGE_TAG": tag}
        finished = subprocess.run(
            [sys.executable, "-m", "ops.swarm", *arguments],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or finished.returncode == 0, finished.stdout + finished.stderr
        return finished

    def load(self, images: Sequence[str], machines: Sequence[Machine]) -> None:
        """Copy images to machines."""
        with tempfile.NamedTemporaryFile() as archive:
            docker("save", "--output", archive.name, *images)
            loads = [
                subprocess.Popen(
                    ["docker", "--host", machine.host, "load", "--quiet", "--input", archive.name],
                    stdout=subprocess.DEVNULL,
                )
                for machine in machines
            ]
            assert [each.wait() for each in loads] == [0] * len(machines)

    def sql(self, query: str) -> list[list[str]]:
        [postgres] = self.machines[0].containers("postgres")
        command = ("psql", "-U", "postgres", "-d", "headroom", "-Atc", query)
        return [line.split("|") for line in self.machines[0].docker("exec", postgres, *command).splitlines()]

    def replicas(self, machine: Machine) -> int:
        """Return to how many replicas the proxy of a machine sends requests."""
        for proxy in machine.containers("proxy"):
            statistics = machine.docker("exec", proxy, "console", "show stat", check=False)
            return (replicas_in(statistics) or 0) if statistics else 0
        return 0

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.secrets / "tls_ca_certificate")


class Client:
    """A client with a kept connection to one of several addresses. A failed connection leads to the next address."""

    def __init__(self, number: int, addresses: Sequence[str], tls: ssl.SSLContext) -> None:
        self._at = number
        self._addresses = addresses
        self._tls = tls
        self._connection: Connection | None = None
        self.address = ""

    async def ask(self, request: bytes) -> Answer | None:
        """Return the answer, or None if there was none. A connection that was not opened got no request: try on."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if self._connection is None or self._connection.is_closed:
                    self._connection = await self._open()
                answer = await self._connection.ask(request)
        except (OSError, TimeoutError):
            self.close()
            self._at += 1
            return None
        if answer.is_last:
            self.close()
        return answer

    async def _open(self) -> Connection:
        while True:
            self.address = self._addresses[self._at % len(self._addresses)]
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await connect(PORT, self._tls, self.address)
            except (OSError, TimeoutError):
                self._at += 1
                await asyncio.sleep(0.05)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Traffic:
    """Clients of all proxies. Half of them write posts, half read users, lists and those posts."""

    def __init__(self, swarm: Swarm, clients: int, pause: float) -> None:
        self._swarm = swarm
        self._tls = swarm.tls()
        self._addresses = [machine.address for machine in swarm.machines]
        self._clients = clients
        self._pause = pause
        self._numbers = count()
        self._stopped = asyncio.Event()
        self.exchanges: list[tuple[Exchange, str]] = []
        self.posts: list[tuple[str, str]] = []
        self.wrong = 0
        name = f"swarm-{os.getpid()}"
        account = {"email": f"{name}@example.com", "name": name, "password": PASSWORD}
        # The certificate is valid for localhost.
        name_of_server = {"sni_hostname": "localhost"}
        with httpx.Client(base_url=f"https://{self._addresses[0]}:{PORT}", verify=self._tls, timeout=30) as client:
            created = client.post("/users", json=account, extensions=name_of_server).raise_for_status()
            self._user = created.headers["location"]
            form = {"username": account["email"], "password": PASSWORD}
            signed_in = client.post("/auth/token", data=form, extensions=name_of_server).raise_for_status()
        token = signed_in.json()["access_token"]
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    async def run(self, choreography: Callable[[], None]) -> None:
        """Send requests until the choreography, which runs in a thread, has ended. Raise its error."""
        tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        try:
            await asyncio.to_thread(choreography)
        finally:
            self._stopped.set()
            await asyncio.gather(*tasks)

    def ledger(self) -> tuple[int, int, int]:
        """Return the number of acknowledged posts, of those that are missing, and of those that are stored twice."""
        rows = self._swarm.sql(f"SELECT title, count(*) FROM posts WHERE title LIKE '{self._prefix} %' GROUP BY title")
        stored = {title: int(number) for title, number in rows}
        missing = sum(title not in stored for _, title in self.posts)
        return len(self.posts), missing, sum(number > 1 for number in stored.values())

    @property
    def _prefix(self) -> str:
        return f"swarm {os.getpid()}"

    async def _client(self, number: int) -> None:
        client = Client(number, self._addresses, self._tls)
        await asyncio.sleep(self._pause * number / self._clients)  # not all at once
        for turn in count():
            if self._stopped.is_set():
                break
            await (self._write(client) if number % 2 else self._read(client, turn))
            await asyncio.sleep(self._pause)
        client.close()

    async def _write(self, client: Client) -> None:
        title = f"{self._prefix} {next(self._numbers)}"
        body = f'{{"title": "{title}", "content": "{"x" * 500}"}}'.encode()
        answer = await self._send(client, post("/posts", body, **self._headers), is_write=True)
        if answer is not None and answer.status == 201:
            location = next(line for line in answer.head.split(b"\r\n") if line.lower().startswith(b"location:"))
            self.posts.append((location.partition(b":")[2].strip().decode(), title))

    async def _read(self, client: Client, turn: int) -> None:
        title = None
        path = (self._user, "/posts?cursor=&limit=10")[turn % 2]
        if turn % 3 == 0 and self.posts:
            path, title = self.posts[-1 - turn % min(100, len(self.posts))]
        answer = await self._send(client, get(path), is_write=False)
        if (
            answer is not None
            and answer.status == 200
            and title is not None
            and f'"{title}"'.encode() not in answer.body
        ):
            self.wrong += 1

    async def _send(self, client: Client, request: bytes, *, is_write: bool) -> Answer | None:
        started = monotonic()
        answer = await client.ask(request)
        status = answer.status if answer is not None else 0
        self.exchanges.append((Exchange(started, monotonic() - started, is_write, status), client.address))
        return answer


def reached(swarm: Swarm) -> dict[str, set[str]]:
    """Return what each service connects to, as SERVICE:PORT, among all addresses and ports of all services.

    `machine:PORT` is a port of a machine itself. A container with Python joins the network of each container.
    """
    targets: dict[str, str] = {}
    sources: list[tuple[str, Machine, str]] = []
    for machine in swarm.machines:
        targets |= {f"{machine.address}:{port}": f"machine:{port}" for port in PORTS}
        for container in json.loads(machine.docker("inspect", *machine.docker("ps", "--quiet").split())):
            service = container["Config"]["Labels"]["com.docker.swarm.service.name"].removeprefix(f"{STACK}_")
            sources.append((service, machine, container["Id"]))
            hosts = [network["IPAddress"] for network in container["NetworkSettings"]["Networks"].values()]
            hosts += machine.gateway_addresses(container["NetworkSettings"]["SandboxID"])
            targets |= {f"{host}:{port}": f"{service}:{port}" for host in hosts if host for port in PORTS}
    found: dict[str, set[str]] = {}
    image = swarm.machines[0].docker("service", "inspect", f"{STACK}_api", "--format", IMAGE_TEMPLATE).strip()
    for service, machine, container in sources:
        command = ["docker", "--host", machine.host, "run", "--rm", "--interactive", f"--network=container:{container}"]
        output = subprocess.run(
            [*command, image, "python", "-", *targets], input=CONNECT, capture_output=True, text=True, check=True
        ).stdout
        connected = output.split()
        absent = {target.rpartition(":")[0] for target in connected if target.endswith(f":{CONTROL_PORT}")}
        reaches = {targets[target] for target in connected if target.rpartition(":")[0] not in absent}
        found.setdefault(service, set()).update(each for each in reaches if each.partition(":")[0] != service)
    return found


def rollouts(swarm: Swarm, traffic: Traffic, releases: Sequence[str], phases: Phases) -> None:
    """Update; kill a machine, and start it again; roll back; deploy a version that never becomes ready."""
    first, second, broken = releases
    others, last = swarm.machines[:-1], swarm.machines[-1]

    def whole(machines: Sequence[Machine]) -> bool:
        return all(swarm.replicas(machine) == REPLICAS for machine in machines)

    def choreography() -> None:
        with phases.phase("before"):
            asyncio.run(asyncio.sleep(STEADY_SECONDS))
        with phases.phase("update, with a migration"):
            print(swarm.run("deploy", "--no-build", tag=second).stdout, flush=True)
        with phases.phase("after it"):
            eventually(lambda: whole(swarm.machines), within=WAIT_SECONDS)
            asyncio.run(asyncio.sleep(STEADY_SECONDS))
        with phases.phase("a machine killed, until whole again"):
            last.kill()
            # Not whole before the proxies have noticed.
            eventually(lambda: not whole(others), within=WAIT_SECONDS, every=0.2)
            eventually(lambda: whole(others), within=WAIT_SECONDS, every=0.2)
        with phases.phase("without the machine"):
            asyncio.run(asyncio.sleep(STEADY_SECONDS))
        with phases.phase("the machine returns"):
            last.start()
            eventually(lambda: whole(swarm.machines), within=WAIT_SECONDS)
            asyncio.run(asyncio.sleep(STEADY_SECONDS))
        with phases.phase("rollback"):
            print(swarm.run("rollback", tag=first).stdout, flush=True)
        with phases.phase("a version that never is ready"):
            failed = swarm.run("deploy", "--no-build", tag=broken, check=False)
            print(failed.stdout, failed.stderr[-300:], flush=True)
            assert failed.returncode == 1, failed.stderr
        with phases.phase("after it"):
            asyncio.run(asyncio.sleep(STEADY_SECONDS))

    uvloop.run(traffic.run(choreography))


def show(traffic: Traffic, phases: Phases, lost: str) -> None:
    """Print a row for each phase, and what was lost. `lost` is the address of the machine that was killed."""
    print_header(("phase", "seconds", "requests", "slowest s", "failed at its proxy", "failed at other proxies"))
    for phase in phases.all:
        during = [each for each in traffic.exchanges if phase.started <= each[0].started < phase.ended]
        failed = [each for each in during if not each[0].succeeded]
        columns = [
            Counter((exchange.status, exchange.is_write) for exchange, address in failed if (address == lost) is there)
            for there in (True, False)
        ]
        print_row(
            (
                phase.name,
                f"{phase.ended - phase.started:.0f}",
                len(during),
                f"{max((exchange.seconds for exchange, _ in during), default=0.0):.1f}",
                *(
                    ", ".join(
                        f"{number} {'writes' if is_write else 'reads'} {status or 'no answer'}"
                        for (status, is_write), number in sorted(column.items())
                    )
                    or 0
                    for column in columns
                ),
            )
        )
    acknowledged, missing, twice = traffic.ledger()
    print(
        f"\n{acknowledged} acknowledged posts: {missing} missing, {twice} stored twice; {traffic.wrong} wrong answers; "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Run it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="default: 50")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between requests of a client (default: 0.1)")
    parser.add_argument("--workers", type=int, default=2, help="per replica (default: 2)")
    parser.add_argument("--registry", action="store_true", help="let the machines fetch the images from a registry")
    options = parser.parse_args()
    settings = {"API_REPLICAS": str(REPLICAS), "WEB_CONCURRENCY": str(options.workers), "UPDATE_MONITOR": "15s"}
    prefix = f"{REGISTRY}/" if options.registry else ""
    if options.registry:
        settings["IMAGE_REGISTRY"] = prefix
    releases = [f"swarm-{os.getpid()}-{name}" for name in ("1", "2", "broken")]
    with (
        tempfile.TemporaryDirectory() as directory,
        Swarm(Path(directory), settings).running() as swarm,
    ):
        first, *others = swarm.machines
        swarm.run("load", first.host, tag=releases[0], on_first=False)
        images = [f"{prefix}headroom:{release}" for release in releases]
        build(images[0], images[1], revisions=revision_files({"": [ADD_COLUMN]}))
        _build(images[2], f'FROM {images[0]}\nCMD ["sleep", "600"]\n')
        swarm.load(images[1:], [first])
        if swarm.registry is None:
            swarm.load(images, others)
        else:
            print(f"{swarm.registry.push(first)} images pushed\n")
        swarm.load(["haproxy:3.0"], others)
        print(swarm.run("deploy", "--no-build", tag=releases[0]).stdout, flush=True)
        lost = swarm.machines[-1].address
        print_header(("from", "to"))
        for service, reaches in sorted(reached(swarm).items()):
            print_row((service, ", ".join(sorted(reaches)) or "nothing"))
        traffic, phases = Traffic(swarm, options.clients, options.pause), Phases()
        try:
            rollouts(swarm, traffic, releases, phases)
        finally:
            show(traffic, phases, lost)


def _build(image: str, dockerfile: str) -> None:
    _output("docker", "build", "--quiet", "--tag", image, "-", stdin=dockerfile)


def _output(*command: str, check: bool = True, stdin: str | None = None) -> str:
    finished = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert not check or finished.returncode == 0, finished.stderr
    return finished.stdout


if __name__ == "__main__":
    main()
