"""`make restart-postgres` and `make restart-pgbouncer`: a new container, image or configuration, without an error.

The proxy holds new requests, the API finishes those in progress, and PgBouncer pauses. Then the service is replaced. At
the end, and after every failure, PgBouncer resumes and the requests go on. If this program is killed, the pause ends at
once and the hold after HOLD_SECONDS (docs/decisions/0030-planned-restarts.md).
"""

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ops.deploy.errors import DeployFailed
from ops.deploy.lock import locked
from ops.deploy.remote import unpacked
from ops.deploy.stack import Stack, is_set

PROJECT = Path(__file__).resolve().parent.parent
PAUSE_SCRIPT = PROJECT / "ops/pgbouncer/pause.sh"
# A request that is still in progress after this time, such as a download or a WebSocket, needs the database rarely.
DRAIN_SECONDS = 3.0
# After this time, clients get the API's 503 instead of waiting. Many give up after 30 s.
HOLD_SECONDS = 30
# After a reload, a process with the old configuration answers on the connections that it has, at most for this time
# (hard-stop-after in ops/proxy/haproxy.cfg, and one more second). It holds nothing.
RELOAD_SECONDS = 11
# Time for open transactions to end before the pause, and the longest pause.
PAUSE_SECONDS = 5
MAX_PAUSE_SECONDS = 120
START_SECONDS = 90.0
SERVE_SECONDS = 10.0
# Of the role that looks up passwords, and of the API's role.
TRIAL_CONNECTIONS = 2
# The proxy's health checks find a replica ready again within about a second.
READY_SECONDS = 5.0
POLL_SECONDS = 0.2

# In a replica: connect as the API does, but to the PgBouncer of this address.
CONNECT = """
import sys
import psycopg
from app.settings import Settings
url = Settings().known_database_url().set(drivername="postgresql", host=sys.argv[1])
psycopg.connect(url.render_as_string(hide_password=False), connect_timeout=3).execute("SELECT 1")
"""


class Failure(Exception):
    """The restart failed. The message says why."""


class Interrupted(Exception):
    """A signal arrived before the service was touched."""


class Interrupts:
    """A signal ends the program until it is committed. From then on, it finishes what it has begun."""

    def __init__(self) -> None:
        self._is_committed = False
        self._is_deferred = False
        self._has_come = False

    def listen(self) -> None:
        """Raise Interrupted at the first signal."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def commit(self) -> None:
        """Ignore further signals."""
        self._is_committed = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise Interrupted at the end of the block instead of in it."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self._has_come:
            self._raise_once()

    def _handle(self, *_: object) -> None:
        self._has_come = True
        if not self._is_deferred:
            self._raise_once()

    def _raise_once(self) -> None:
        if not self._is_committed:
            self._is_committed = True  # a second signal must not interrupt what undoes the first steps
            raise Interrupted


interrupts = Interrupts()
started = time.monotonic()


def log(text: str) -> None:
    """Print a line of the timeline."""
    with suppress(BrokenPipeError):
        print(f"{time.monotonic() - started:5.1f} s  {text}", flush=True)


def run(*command: str, fails: bool = False) -> str:
    """Run a command and return its output. Raise Failure with its messages if it fails, unless `fails`."""
    # A session of its own: Ctrl-C in a terminal must not reach it.
    finished = subprocess.run(
        command,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if finished.returncode != 0 and not fails:
        raise Failure(f"{' '.join(command[:4])} ...: {(finished.stderr or finished.stdout).strip()}")
    return finished.stdout.strip()


def compose(*arguments: str, fails: bool = False) -> str:
    """Run `docker compose` with the files of production: compose.prod.yml, or COMPOSE_FILE if it is set."""
    files = () if is_set(PROJECT, "COMPOSE_FILE") else ("--file", "compose.prod.yml")
    return run("docker", "compose", *files, *arguments, fails=fails)


def container(service: str) -> str | None:
    """Return the id of the running container of a service, or of its first replica."""
    ids = compose("ps", "--status", "running", "--quiet", service, fails=True).split()
    return ids[0] if ids else None


def running(service: str) -> str:
    """Return the id of the running container of a service. Raise Failure if there is none."""
    if (found := container(service)) is None:
        raise Failure(f"the service {service} is not running: docker compose up --detach {service}")
    return found


def inspect(identifier: str) -> dict[str, Any]:
    """Return `docker inspect` of a container."""
    [found] = json.loads(run("docker", "inspect", identifier))
    return dict(found)


def wait_until(condition: Callable[[], bool], within: float) -> bool:
    """Wait until the condition holds. Return False if it does not within these seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def console(proxy: str, command: str) -> str:
    """Run a command of the proxy's console."""
    return run("docker", "exec", proxy, "console", *command.split())


def statistics(proxy: str) -> list[dict[str, str]]:
    """Return the rows of the proxy's statistics that concern the API."""
    rows = csv.DictReader(console(proxy, "show stat").splitlines())
    return [row for row in rows if row["# pxname"] in ("reads", "writes", "not_ready")]


def in_progress(proxy: str) -> int:
    """Return the number of requests that the replicas are answering."""
    return sum(int(row["scur"]) for row in statistics(proxy) if row["svname"] == "BACKEND")


def ready(proxy: str) -> int:
    """Return the number of replicas that the proxy has found ready, once for each backend that checks it."""
    rows = statistics(proxy)
    return sum(
        row["status"].startswith("UP") for row in rows if row["# pxname"] != "not_ready" and "L7" in row["check_status"]
    )


def await_reload(proxy: str) -> None:
    """Wait until only one process of the proxy serves."""

    def is_over() -> bool:
        uptime = [line for line in console(proxy, "show info").splitlines() if line.startswith("Uptime_sec:")]
        return not uptime or int(uptime[0].split()[1]) >= RELOAD_SECONDS

    if not is_over():
        log("the proxy was started or reloaded seconds ago; waiting until no old process of it answers")
        wait_until(is_over, RELOAD_SECONDS)


@contextmanager
def held_requests() -> Iterator[None]:
    """Have the proxy hold new requests, and wait for those in progress. At the end, let the held ones go on."""
    proxy = container("proxy")
    if proxy is None:
        log("no proxy is running: requests are not held, and may get 503")
        yield
        return
    await_reload(proxy)
    before = ready(proxy)
    began = time.monotonic()
    is_ours = True
    try:
        answer = console(proxy, f"hold {HOLD_SECONDS}")
        if answer != "held":
            is_ours = False
            hint = "" if answer.startswith("hold:") else "; load its configuration: docker compose exec proxy reload"
            raise Failure(f"the proxy does not hold requests: {answer.partition(chr(10))[0]}{hint}")
        drained = wait_until(lambda: in_progress(proxy) == 0, DRAIN_SECONDS)
        log("new requests wait" + ("" if drained else f"; {in_progress(proxy)} requests are still in progress"))
        yield
    finally:
        with suppress(Failure):  # the proxy has gone, and the hold with it
            if is_ours:
                if not wait_until(lambda: ready(proxy) >= before, READY_SECONDS):
                    log(f"not every replica is ready after {READY_SECONDS:g} s: docker compose ps api")
                log(f"{console(proxy, 'release')} requests; the hold took {time.monotonic() - began:.1f} s")


@contextmanager
def paused(pgbouncer: str) -> Iterator[None]:
    """Pause PgBouncer. Raise Failure if a transaction does not end in time."""
    command = ["docker", "exec", "--interactive", pgbouncer, "bash", "-c", PAUSE_SCRIPT.read_text()]
    process: subprocess.Popen[str] | None = None
    try:
        with interrupts.deferred():
            process = subprocess.Popen(
                [*command, "pause", str(PAUSE_SECONDS), str(MAX_PAUSE_SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert process.stdout is not None
        if process.stdout.readline() != "paused\n":
            raise Failure(f"PgBouncer did not pause: {process.communicate()[1].strip()}")
        log("PgBouncer is paused")
        yield
    finally:
        if process is not None:
            process.communicate()  # the end of its input resumes
    log("PgBouncer has resumed")


def restart_postgres() -> None:
    """Replace the container of PostgreSQL."""
    postgres, pgbouncer = running("postgres"), running("pgbouncer")
    configuration = ["postgres", "-c", "config_file=/etc/postgresql/postgresql.conf", "-C", "max_connections"]
    compose("run", "--rm", "--no-deps", "-T", "postgres", *configuration)  # fails on a value that is not valid
    run("docker", "exec", postgres, "psql", "-U", "postgres", "-d", "headroom", "-qc", "CHECKPOINT")
    log("the configuration is valid, and a checkpoint is written")
    with held_requests(), paused(pgbouncer):
        interrupts.commit()
        began = time.monotonic()
        compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "postgres")
        wait_for_postgres()
        log(f"PostgreSQL serves again after {time.monotonic() - began:.1f} s")
    compose("up", "--detach", "--no-deps", "--no-build", "backup")  # the same image


def wait_for_postgres() -> None:
    """Wait until PostgreSQL accepts connections. Raise Failure with its messages if it crashes or takes too long."""
    [postgres] = compose("ps", "--all", "--quiet", "postgres").split()
    probe = ["docker", "exec", postgres, "pg_isready", "-q", "-h", "127.0.0.1", "-U", "postgres", "-d", "headroom"]

    def serves_or_crashed() -> bool:
        if subprocess.run(probe, capture_output=True, check=False, start_new_session=True).returncode == 0:
            return True
        return has_crashed(inspect(postgres))

    in_time = wait_until(serves_or_crashed, START_SECONDS)
    if not in_time or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        raise Failure(
            f"PostgreSQL does not start; requests get 503 until it does. Its last messages:\n{logs(postgres)}"
        )


def has_crashed(state: dict[str, Any]) -> bool:
    """Return True if the program of a new container has ended."""
    return bool(state["RestartCount"] > 0 or state["State"]["Status"] not in ("running", "created"))


def restart_pgbouncer(project: str) -> None:
    """Replace the container of PgBouncer. Try its image and its configuration first, in a container of their own."""
    api = running("api")
    running("pgbouncer")
    check_budget(api)
    # Not `--scale pgbouncer=2`: Compose would see another configuration in that container, and replace it and all that
    # depend on it the next time.
    trial = f"{project}-pgbouncer-trial"
    run("docker", "rm", "--force", trial, fails=True)  # of a restart that was killed
    try:
        with interrupts.deferred():
            compose("run", "--detach", "--no-deps", "--name", trial, "pgbouncer")
        wait_for_pgbouncer(trial, api)
    finally:
        run("docker", "rm", "--force", trial, fails=True)
    log("the new PgBouncer has run a statement")
    with held_requests():
        interrupts.commit()
        began = time.monotonic()
        compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "pgbouncer")
        wait_for_pgbouncer(running("pgbouncer"), api)
        log(f"PgBouncer serves again after {time.monotonic() - began:.1f} s")


def check_budget(api: str) -> None:
    """Check that the server has room for the connections of the trial. Raise Failure."""
    checks = json.loads(run("docker", "exec", api, "headroom", "budget", "--json"))["checks"]
    [server] = [check for check in checks if check["name"] == "server connections"]
    if server["headroom"] < TRIAL_CONNECTIONS:
        raise Failure(
            f"a trial of PgBouncer needs {TRIAL_CONNECTIONS} server connections, but {server['headroom']} are left: "
            "lower max_db_connections in ops/pgbouncer/pgbouncer.ini, or raise max_connections"
        )


def wait_for_pgbouncer(new: str, api: str) -> None:
    """Wait until the API's role can run a statement through the new container. Raise Failure with its messages."""
    reason: Failure | None = None

    def serves_or_crashed() -> bool:
        nonlocal reason
        state = inspect(new)
        networks = state["NetworkSettings"]["Networks"]
        [address] = [each["IPAddress"] for name, each in networks.items() if name.endswith("pool")]
        try:
            run("docker", "exec", api, "python", "-c", CONNECT, address)
            reason = None
        except Failure as error:
            reason = error
        return reason is None or has_crashed(state)

    wait_until(serves_or_crashed, SERVE_SECONDS)
    if reason is not None:
        error = [line for line in str(reason).splitlines() if not line.startswith(("\t", " "))][-1]
        raise Failure(f"the new PgBouncer does not serve: {error}\n{logs(new)}")


def logs(identifier: str) -> str:
    """Return the last messages of a container."""
    command = ["docker", "logs", "--tail", "8", identifier]
    merged = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return merged.stdout.strip()


def main() -> int:
    """Restart the service that the first argument names."""
    parser = argparse.ArgumentParser(description="Restart a service of compose.prod.yml without an error for a client.")
    parser.add_argument("service", choices=("postgres", "pgbouncer"))
    parser.add_argument("--no-build", action="store_true", help="use the image that is there")
    options = parser.parse_args()
    service = options.service
    try:
        interrupts.listen()
        stack = Stack(PROJECT)
        with unpacked(""), locked(stack, f"restart-{service}"):
            if not options.no_build:
                compose("build", "--quiet", service)
            if service == "postgres":
                restart_postgres()
            else:
                restart_pgbouncer(stack.project)
    except (Failure, DeployFailed) as error:
        print(f"restart-{service}: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print(f"restart-{service}: interrupted; nothing was restarted", file=sys.stderr)
        return 130
    log("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
