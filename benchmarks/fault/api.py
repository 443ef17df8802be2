"""The API of a checkout under Gunicorn, as a process or as a container, and its exporter."""

import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.paths import PROJECT_ROOT
from benchmarks.fault.containers import Container, build_image
from benchmarks.fault.traffic import Account
from benchmarks.processes import process_ids
from tests.support.ports import free_port
from tests.support.waiting import check_running, eventually

SECRET_KEY = "for tests only, for tests only, for tests only"
WORKERS = 4
READY_WITHIN_SECONDS = 60


def python_of(checkout: Path) -> str:
    """Return the interpreter of a checkout's own environment, or this one's."""
    own = checkout / ".venv/bin/python"
    return sys.executable if checkout == PROJECT_ROOT or not own.exists() else str(own)


class Program:
    """A program of a checkout, in a session of its own. Its output goes to `log`."""

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.log = directory / f"{Path(command[-1]).name}-{free_port()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """Terminate the program, then kill what is left of its processes."""
        pids = process_ids(self.process.pid)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=12)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)


def environment_of(checkout: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which only these settings are set, and in which `app` is the checkout's."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", **settings}


class Api(ABC):
    """An API on `port` of 127.0.0.1 that started its workers."""

    def __init__(self, settings: Mapping[str, str], directory: Path) -> None:
        self.port = free_port()
        self.metrics = directory / "metrics"
        self.settings = {
            "SECRET_KEY": SECRET_KEY,
            "API_PORT": str(self.port),
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "warning",
            "STARTUP_TIMEOUT": "30",
            **settings,
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def check(self) -> None:
        """Raise an error if the API has ended."""

    @abstractmethod
    def output(self) -> str:
        """Return what the API has logged."""

    def wait_until_ready(self) -> None:
        """Wait until the API says that it is ready."""

        def ready() -> bool:
            self.check()
            return httpx.get(f"{self.address}/readyz", timeout=5).status_code == 200

        try:
            eventually(ready, within=READY_WITHIN_SECONDS, every=0.1)
        except AssertionError as error:
            raise RuntimeError(f"the API did not become ready: {self.output()[-2000:]}") from error

    def sign_up(self) -> Account:
        """Create a user who writes, and sign in."""
        person = {"email": "writer@example.com", "name": "Writer", "password": "correct horse"}
        with httpx.Client(base_url=self.address, timeout=20) as client:
            created = client.post("/users", json=person)
            login = {"username": person["email"], "password": person["password"]}
            token = client.post("/auth/token", data=login).raise_for_status().json()["access_token"]
            return Account(created.raise_for_status().headers["location"], token)

    def tracebacks(self) -> int:
        """Return the number of logged errors with a traceback."""
        return sum(_has_traceback(line) for line in self.output().splitlines())


def _has_traceback(line: str) -> bool:
    if not line.startswith("{"):
        return line.startswith("Traceback (most recent call last)")
    with suppress(ValueError):
        return "Traceback (most recent call last)" in json.dumps(json.loads(line))
    return False


class ApiProcess(Api):
    """Gunicorn with its workers as processes. `wrapper`: a command that starts another one, as `unshare` does."""

    def __init__(
        self, checkout: Path, directory: Path, settings: Mapping[str, str], wrapper: Sequence[str] = ()
    ) -> None:
        super().__init__(settings, directory)
        self._directory = directory
        self._environment = environment_of(checkout, self.settings | {"METRICS_DIR": str(self.metrics)})
        config = checkout / "ops/gunicorn/gunicorn.conf.py"
        self._command = [*wrapper, python_of(checkout), "-m", "gunicorn", "-c", str(config), "app.main:create_app()"]

    def __enter__(self) -> Self:
        self._program = Program(self._command, self._directory, self._environment)
        try:
            self.wait_until_ready()
            eventually(lambda: len(self.workers()) == WORKERS, within=READY_WITHIN_SECONDS)
        except BaseException:
            self._program.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()

    def check(self) -> None:
        check_running(self._program.process, self._program.log)

    def output(self) -> str:
        return self._program.log.read_text(errors="replace")

    @property
    def master(self) -> int:
        """Return the process id of Gunicorn's master."""
        return self._program.process.pid

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return process_ids(self.master)[1:]


class ApiContainer(Api):
    """The image of a checkout."""

    def __init__(self, checkout: Path, directory: Path, settings: Mapping[str, str]) -> None:
        super().__init__(settings, directory)
        self.metrics.mkdir(exist_ok=True)
        self.metrics.chmod(0o777)
        options = ["--volume", f"{self.metrics}:/var/lib/headroom/metrics"]
        for name, value in (self.settings | {"API_HOST": "127.0.0.1", "API_REPLICA": f"fault-{self.port}"}).items():
            options += ["--env", f"{name}={value}"]
        self.container = Container(build_image(checkout), options, [])

    def __enter__(self) -> Self:
        self.container.__enter__()
        try:
            self.wait_until_ready()
        except BaseException:
            self.container.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.container.__exit__()

    def check(self) -> None:
        pass  # the wait is bounded, and its error has the log

    def output(self) -> str:
        return self.container.log()


class Exporter:
    """The checkout's exporter, which knows how many connections the API's pools hold."""

    def __init__(self, checkout: Path, directory: Path, api: Api, settings: Mapping[str, str], url: str) -> None:
        port = free_port()
        self._address = f"http://127.0.0.1:{port}"
        own = {"METRICS_DIR": str(api.metrics), "EXPORTER_PORT": str(port), "EXPORTER_DATABASE_URL": url}
        self._command = [str(Path(python_of(checkout)).parent / "headroom"), "exporter"]
        self._directory = directory
        self._environment = environment_of(checkout, {**settings, **own})

    def __enter__(self) -> Self:
        self._program = Program(self._command, self._directory, self._environment)
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stop()

    def connections(self) -> dict[str, float]:
        """Return the connections of all pools by state: idle, used."""
        states: dict[str, float] = {"idle": 0.0, "used": 0.0}
        text = httpx.get(f"{self._address}/metrics", timeout=5).raise_for_status().text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "db_pool_connections" and sample.labels["pool"] == "api":
                    states[sample.labels["state"]] += sample.value
        return states
