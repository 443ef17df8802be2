"""The whole stack as a user starts it, in containers or as local processes. Tests reach it by HTTP and signals."""

import csv
import json
import os
import signal
import ssl
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import URL, make_url

from app.paths import PROJECT_ROOT
from app.settings import Settings
from tests.support.ports import free_port, free_ports
from tests.support.waiting import check_running, eventually


class Exporting(Protocol):
    """A stack with an exporter."""

    exporter: str


class Stack(Exporting, Protocol):
    """What a black-box test may use of a stack."""

    api: str

    def database_url(self) -> URL:
        """Return the URL of the database for its superuser."""
        ...

    def seed(self, **rows: int) -> None:
        """Add rows to these tables."""
        ...

    def worker_pids(self) -> list[int]:
        """Return the process ids of Gunicorn's workers, in a container those of its namespace."""
        ...

    def kill_worker(self, pid: int) -> None:
        """Send SIGKILL to a worker."""
        ...

    def reload(self) -> None:
        """Tell Gunicorn to replace its workers."""
        ...


def _seed_options(rows: dict[str, int]) -> list[str]:
    return [f"--{table}={number}" for table, number in rows.items()]


EXPORTER_DEADLINE = "2.5"
"""Seconds, for the exporters of tests: a busy machine may pause for longer than the default. Prometheus allows 3 s."""


# Unlike httpx.get() it does not load the certificate authorities for each request, which takes 20 ms.
_client = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(stack: Exporting) -> Samples:
    """Return the exporter's samples by name and sorted labels."""
    families = text_string_to_metric_families(_client.get(f"{stack.exporter}/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def total(of: Exporting | Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels, of this scrape or of a new one."""
    samples = of if isinstance(of, dict) else scrape(of)
    return sum(
        value for (sample, has), value in samples.items() if sample == name and labels.items() <= dict(has).items()
    )


IMAGE = f"headroom:{os.environ.get('IMAGE_TAG') or 'latest'}"
"""The API's image, as both Compose files name it. Checkouts that run at the same time need different tags."""


VERSION, REVISION = "0.0.0+test", "0123456789abcdef"
"""What the labels of the images say that `build_images` builds."""


def build_images() -> None:
    """Build the images of both Compose files."""
    environment = os.environ | {"IMAGE_VERSION": VERSION, "IMAGE_REVISION": REVISION}
    for file in ("docker-compose.yml", "compose.prod.yml"):
        command = ["docker", "compose", "--env-file", os.devnull, "--file", file, "build"]
        built = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr


class LocalStack:
    """`headroom up` on free ports, with its data in `directory`."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        self.log = directory / "up.log"
        api_port, exporter_port = free_port(), free_port()
        self.api, self.exporter = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{exporter_port}"
        self.environment = os.environ | {
            "API_PORT": str(api_port),
            "EXPORTER_PORT": str(exporter_port),
            "DATA_DIR": str(directory),
            "EXPORTER_DEADLINE": EXPORTER_DEADLINE,
            "METRICS_DIR": str(directory / "metrics"),
            **environment,
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli.main", "up"],
                cwd=self.directory,  # the developer's .env must not be read
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as in a terminal, where Ctrl-C reaches the whole process group
            )

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def is_running(self, program: str) -> bool:
        check_running(self.process, self.log)
        return any(program.encode() in _cmdline(pid) for pid in self.descendants())

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            check_running(self.process, self.log)
            return httpx.get(f"{self.api}/readyz", timeout=5).status_code == 200

        eventually(ready, within=60)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, and return the exit status. Raise TimeoutExpired after 30 seconds."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """Kill `headroom up` if a failed test has left it, and reap it."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def running(self) -> Iterator["LocalStack"]:
        self.start()
        try:
            self.wait_until_ready()
            yield self
        finally:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(timeout=60)

    def database_url(self) -> URL:
        url = make_url(Settings(data_dir=self.directory).local_database_url_file.read_text())
        return url.set(username="postgres")

    def seed(self, **rows: int) -> None:
        command = [sys.executable, "-m", "app.cli.main", "seed", *_seed_options(rows)]
        subprocess.run(command, cwd=self.directory, env=self.environment, check=True, capture_output=True)

    def worker_pids(self) -> list[int]:
        master = self.master_pid()
        return [pid for pid in self.descendants() if _parent(pid) == master]

    def master_pid(self) -> int:
        """Return the process id of Gunicorn's master."""
        ours = self.process.pid
        [master] = [pid for pid in self.descendants() if b"gunicorn" in _cmdline(pid) and _parent(pid) == ours]
        return master

    def reload(self) -> None:
        os.kill(self.master_pid(), signal.SIGHUP)

    def kill_worker(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def descendants(self) -> list[int]:
        """Return every process of this stack, including PostgreSQL, which is not a child process."""
        ours = str(self.directory).encode()
        return [pid for pid in _pids() if pid != self.process.pid and (ours in _environment(pid) or ours in _cwd(pid))]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _environment(pid: int) -> bytes:
    return _read(pid, "environ")


def _cwd(pid: int) -> bytes:
    try:
        return bytes(Path(f"/proc/{pid}/cwd").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _cmdline(pid: int) -> bytes:
    return _read(pid, "cmdline")


def _parent(pid: int) -> int:
    stat = _read(pid, "stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else 0


class Compose(ABC):
    """A Compose file as a project of its own. With `build=False` the images must have been built before."""

    def __init__(self, name: str, file: str, *, build: bool = True, **environment: str) -> None:
        self.name = name
        self.files = [file]
        self.environment = environment
        self.build = ["--build"] if build else ["--no-build"]

    def compose(self, *arguments: str, check: bool = True) -> str:
        options = ["--env-file", os.devnull, "--project-name", self.name]
        options += [option for file in self.files for option in ("--file", file)]
        finished = subprocess.run(
            ["docker", "compose", *options, *arguments],
            cwd=PROJECT_ROOT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def inspect(self, service: str) -> dict[str, Any]:
        """Return `docker inspect` of the service's first container."""
        container = self.compose("ps", "--all", "--quiet", service).split()[0]
        output = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        return dict(json.loads(output)[0])

    @abstractmethod
    def up(self) -> None:
        """Start it and wait until it is ready."""

    def down(self) -> None:
        """Kill the containers; delete them with their volumes and networks."""
        self.compose("down", "--volumes", "--timeout", "0", check=False)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run it until the block ends. If it does not become ready, the error has the logs."""
        try:
            try:
                self.up()
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.compose('logs', check=False)}") from None
            yield self
        finally:
            self.down()


def replicas_in(statistics: str) -> int | None:
    """Return to how many replicas the proxy sends requests, after a check, according to its statistics.

    Return None while its backends differ.
    """
    servers = [row for row in csv.DictReader(statistics.splitlines()) if row["status"].startswith("UP")]
    checked = Counter(row["# pxname"] for row in servers if "L7" in row["check_status"])
    return checked["reads"] if checked["reads"] == checked["writes"] else None


class ProdStack(Compose):
    """`docker compose -f compose.prod.yml up`: two replicas behind a proxy on a free port, with new secrets.

    The proxy's limits of requests per client are off: all requests come from one address.
    """

    def __init__(self, name: str, secrets: Path, *, build: bool = True, **environment: str) -> None:
        http, https, exporter, prometheus, alertmanager = (free_port() for _ in range(5))
        self.api, self.plain_api = f"https://127.0.0.1:{https}", f"http://127.0.0.1:{http}"
        self.exporter, self.prometheus = f"http://127.0.0.1:{exporter}", f"http://127.0.0.1:{prometheus}"
        self.alertmanager = f"http://127.0.0.1:{alertmanager}"
        super().__init__(
            name,
            "compose.prod.yml",
            build=build,
            **{
                "SECRETS_DIR": str(secrets),
                "PROXY_ADDRESS": "127.0.0.1",
                "PROXY_HTTP_PORT": str(http),
                "PROXY_HTTPS_PORT": str(https),
                "PROXY_REQUEST_LIMIT": "1000000",
                "PROXY_SIGN_IN_LIMIT": "1000000",
                "EXPORTER_PORT": str(exporter),
                "EXPORTER_DEADLINE": EXPORTER_DEADLINE,
                "PROMETHEUS_PORT": str(prometheus),
                "ALERTMANAGER_PORT": str(alertmanager),
                **environment,
            },
        )
        subprocess.run([PROJECT_ROOT / "ops/make-secrets.sh", secrets], check=True, capture_output=True)
        self.tls = ssl.create_default_context(cafile=secrets / "tls_ca_certificate")
        self.client = httpx.Client(base_url=self.api, verify=self.tls, timeout=30)

    def up(self) -> None:
        self.compose("up", *self.build, "--detach")
        eventually(lambda: self.replicas_in_proxy() == 2, within=120)

    def down(self) -> None:
        self.client.close()
        super().down()

    def replicas_in_proxy(self) -> int | None:
        """Return the number of replicas to which the proxy sends requests."""
        return replicas_in(self.compose("exec", "-T", "proxy", "console", "show stat"))

    def sql(self, query: str) -> list[list[str]]:
        """Run a query as the superuser, inside the container: the port is not published. Return rows of text."""
        output = self.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "headroom", "-Atc", query)
        return [line.split("|") for line in output.splitlines()]


class ComposeStack(Compose):
    """`docker compose up` on free ports, with this many replicas of the API."""

    def __init__(self, name: str, replicas: int = 1, *, build: bool = True, **environment: str) -> None:
        ports = {f"{service}_PORT": str(free_port()) for service in ("EXPORTER", "POSTGRES", "PROMETHEUS")}
        apis = free_ports(replicas)
        ports["API_PORT"] = str(apis[0]) if replicas == 1 else f"{apis[0]}-{apis[-1]}"
        own = {"API_REPLICAS": str(replicas), "EXPORTER_DEADLINE": EXPORTER_DEADLINE, **ports, **environment}
        super().__init__(name, "docker-compose.yml", build=build, **own)
        self.ports = ports
        self.apis = [f"http://127.0.0.1:{port}" for port in apis]
        self.api = self.apis[0]
        self.exporter = f"http://127.0.0.1:{ports['EXPORTER_PORT']}"
        self.prometheus = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}"

    def up(self) -> None:
        self.compose("up", *self.build, "--detach", "--wait", "--wait-timeout", "120")

    def database_url(self) -> URL:
        return make_url(f"postgresql+asyncpg://headroom:headroom@127.0.0.1:{self.ports['POSTGRES_PORT']}/headroom")

    def seed(self, **rows: int) -> None:
        self.compose("exec", "-T", "api", "headroom", "seed", *_seed_options(rows))

    def worker_pids(self) -> list[int]:
        # Workers are the gunicorn processes whose parent is a gunicorn process.
        program = (
            "from pathlib import Path\n"
            "stats = [p.read_text() for p in Path('/proc').glob('[0-9]*/stat')]\n"
            "parents = {int(s.split()[0]): int(s.rpartition(')')[2].split()[1]) for s in stats if '(gunicorn' in s}\n"
            "print(*(pid for pid, parent in parents.items() if parent in parents))"
        )
        return [int(pid) for pid in self.compose("exec", "-T", "api", "python", "-c", program).split()]

    def kill_worker(self, pid: int) -> None:
        self.compose("exec", "-T", "api", "sh", "-c", f"kill -KILL {pid}")

    def reload(self) -> None:
        self.compose("kill", "--signal", "HUP", "api")
