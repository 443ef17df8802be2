"""Deploys and migrations of compose.prod.yml under load: `make bench-deploy`, `make bench-ddl`.

`deploys`: two replicas; the product's own deploys, with a schema change among them, and its rollbacks.
`failures`: deploys of releases that do not become ready, crash later, or cannot migrate. Each must undo itself.
`rotation`: every secret is rotated once.
`ddl`: schema changes while a transaction holds the table.

For `deploys`, the release before is built from a commit (`--previous`), or from this tree without its newest revision
(`--without`). By default it is this tree, and the next release has one more revision, which adds a column.
"""

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic, time_ns
from typing import NamedTuple
from urllib.parse import urlsplit

import uvloop

from app.database.schema_version import scripts
from app.paths import PROJECT_ROOT
from benchmarks.tables import print_header, print_row
from tests.old_release.run import extract
from tests.support.deployed import REPLICAS, DeployedStack
from tests.support.load import Answer, Connection, connect, get, percentile, post
from tests.support.stacks import ProdStack
from tests.support.waiting import eventually

HELD_SECONDS = 35
PAUSE_SECONDS = 0.02
# Longer than any deadline of the API.
PATIENCE_SECONDS = 20.0
STEADY_SECONDS = 10.0
PASSWORD = "correct horse"
THIS = "headroom-deploy:this"
# The benchmark deletes its database, so these revisions are never reverted.
REVISION = """
import sqlalchemy as sa
from alembic import op
from migrations.concurrently import create_index
revision = {revision!r}
down_revision = {before!r}
def upgrade():
    {upgrade}
def downgrade():
    pass
"""
SECRETS = (
    "app_password",
    "secret_key",
    "secret_key_fallbacks",
    "owner_password",
    "monitor_password",
    "superuser_password",
    "pgbouncer_password",
    "console_password",
    "tls_certificate",
)
ADD_COLUMN = "op.add_column('posts', sa.Column('deploy_column', sa.Text()))"
# Each is a revision of its own, in this order. A name of two is one case.
DDL = {
    "ADD COLUMN": [ADD_COLUMN],
    "ADD CONSTRAINT NOT VALID, VALIDATE": [
        "op.create_check_constraint(op.f('ck_posts_deploy'), 'posts', 'id > 0', postgresql_not_valid=True)",
        "op.execute('ALTER TABLE posts VALIDATE CONSTRAINT ck_posts_deploy')",
    ],
    "CREATE INDEX CONCURRENTLY": ["create_index('ix_posts_updated_at', 'posts', ['updated_at'])"],
    "ALTER TYPE": ["op.alter_column('posts', 'title', type_=sa.Text(), existing_type=sa.String(200))"],
}


class Exchange(NamedTuple):
    """A request: its start (as monotonic() has it), its duration, and its status; 0 if it got no answer."""

    started: float
    seconds: float
    is_write: bool
    status: int

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status < 300


class Traffic:
    """Clients of the proxy with kept connections. Half of them write posts, half read users, lists and those posts."""

    def __init__(self, stack: ProdStack, pause: float = PAUSE_SECONDS) -> None:
        self._pause = pause
        self._port = urlsplit(stack.api).port or 0
        self._tls: ssl.SSLContext = stack.tls
        self._stack = stack
        self._numbers = count()
        self._posts: list[tuple[str, str]] = []
        self._stopped = asyncio.Event()
        self.exchanges: list[Exchange] = []
        self.wrong = 0
        name = f"deploy-{time_ns()}"
        account = {"email": f"{name}@example.com", "name": name, "password": PASSWORD}
        self._user = stack.client.post("/users", json=account).raise_for_status().headers["location"]
        self._form = {"username": account["email"], "password": PASSWORD}
        self._headers: dict[str, str] = {}
        self.sign_in()

    def sign_in(self) -> None:
        """Get an access token for the requests from now on."""
        token = self._stack.client.post("/auth/token", data=self._form).raise_for_status().json()["access_token"]
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    async def run(self, clients: int, choreography: Callable[[], None]) -> None:
        """Send requests until the choreography, which runs in a thread, has ended. Raise its error."""
        tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            await asyncio.to_thread(choreography)
        finally:
            self._stopped.set()
            await asyncio.gather(*tasks)

    def lost(self) -> int:
        """Return the number of acknowledged posts that the database does not have."""
        [[stored]] = self._stack.sql(f"SELECT count(*) FROM posts WHERE title LIKE '{self._title(0)[:-2]} %'")
        return max(0, len(self._posts) - int(stored))

    def _title(self, number: int) -> str:
        return f"deploy {os.getpid()} {number}"

    async def _client(self, number: int) -> None:
        connection: Connection | None = None
        await asyncio.sleep(self._pause * number / 10)  # not all at once
        for turn in count():
            if self._stopped.is_set():
                break
            connection = await (self._write(connection) if number % 2 else self._read(connection, turn))
            await asyncio.sleep(self._pause)
        if connection is not None:
            connection.close()

    async def _write(self, connection: Connection | None) -> Connection | None:
        title = self._title(next(self._numbers))
        body = f'{{"title": "{title}", "content": "{"x" * 500}"}}'.encode()
        connection, answer = await self._send(connection, post("/posts", body, **self._headers), is_write=True)
        if answer is not None and answer.status == 201:
            location = next(line for line in answer.head.split(b"\r\n") if line.lower().startswith(b"location:"))
            self._posts.append((location.partition(b":")[2].strip().decode(), title))
        return connection

    async def _read(self, connection: Connection | None, turn: int) -> Connection | None:
        title = None
        path = (self._user, "/posts?cursor=&limit=10")[turn % 2]
        if turn % 3 == 0 and self._posts:
            path, title = self._posts[-1 - turn % min(100, len(self._posts))]
        connection, answer = await self._send(connection, get(path), is_write=False)
        if answer is not None and title is not None and f'"{title}"'.encode() not in answer.body:
            self.wrong += 1
        return connection

    async def _send(
        self, connection: Connection | None, request: bytes, *, is_write: bool
    ) -> tuple[Connection | None, Answer | None]:
        started = monotonic()
        answer = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if connection is None or connection.is_closed:
                    connection = await connect(self._port, self._tls)
                answer = await connection.ask(request)
        except (OSError, TimeoutError):
            pass
        if connection is not None and (answer is None or answer.is_last):
            connection.close()
            connection = None
        status = answer.status if answer is not None else 0
        self.exchanges.append(Exchange(started, monotonic() - started, is_write, status))
        return connection, answer


class DeployStack(DeployedStack):
    """compose.prod.yml with a first release, and what the benchmark does with its images and its database."""

    def migrate(self, image: str, revision: str = "head") -> None:
        """Run the migration job of an image that is not deployed."""
        docker("tag", image, f"headroom:{self._tag}")
        self.compose("run", "--rm", "--no-deps", "migrate", "alembic", "upgrade", revision)

    def seed(self, posts: int) -> None:
        self.compose(
            "run", "--rm", "--no-deps", "migrate", "headroom", "seed", "--users", "1000", "--posts", str(posts)
        )

    def containers(self) -> list[str]:
        """Return the ids of the running replicas."""
        return self.compose("ps", "--quiet", "api").split()

    @contextmanager
    def most_connections(self) -> Iterator[list[int]]:
        """Count the server's client connections from time to time. The list has the counts after the block."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        [container] = self.compose("ps", "--quiet", "postgres").split()
        psql = ["docker", "exec", "--interactive", container, "psql", "-U", "postgres", "-d", "headroom", "-qAt"]
        counts: list[int] = []
        with subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{query} \\watch 0.1\n")
            process.stdin.flush()
            output = process.stdout
            reader = threading.Thread(target=lambda: counts.extend(int(line) for line in output if line.strip()))
            reader.start()
            try:
                yield counts
            finally:
                process.terminate()
                reader.join()

    @contextmanager
    def held_table(self) -> Iterator[None]:
        """Hold the table of posts in a transaction for HELD_SECONDS, from before the block on."""
        statement = f"BEGIN; LOCK TABLE posts IN ROW EXCLUSIVE MODE; SELECT pg_sleep({HELD_SECONDS}); COMMIT"
        [container] = self.compose("ps", "--quiet", "postgres").split()
        psql = ["docker", "exec", container, "psql", "-U", "postgres", "-d", "headroom", "-qAtc", statement]
        with subprocess.Popen(psql, stdout=subprocess.DEVNULL) as holder:
            asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            eventually(lambda: self.sql(asleep) == [["1"]], within=30)
            yield
            assert holder.wait(HELD_SECONDS * 2) == 0


class Phase(NamedTuple):
    """A part of the choreography, with its start and end as monotonic() has them."""

    name: str
    started: float
    ended: float


class Phases:
    """The phases of a choreography, in their order."""

    def __init__(self) -> None:
        self.all: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = monotonic()
        try:
            yield
        finally:
            self.all.append(Phase(name, started, monotonic()))
            print(f"{name}: {monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, stdout=subprocess.DEVNULL)


def build(
    base: str,
    tag: str,
    *,
    revisions: dict[str, str] | None = None,
    without: str | None = None,
    command: Sequence[str] = (),
) -> str:
    """Build an image with more revisions, without the file of one, or with another command. Return its tag."""
    with tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        lines = [f"FROM {base}"]
        for revision, text in (revisions or {}).items():
            (context / f"{revision}.py").write_text(text)
            lines.append(f"COPY {revision}.py migrations/versions/")
        if without is not None:
            lines += ["USER 0", f"RUN rm migrations/versions/*_{without}_*.py", "USER 10001:10001"]
        if command:
            lines.append(f"CMD {json.dumps(command)}")
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        docker("build", "--quiet", "--tag", tag, directory)
    return tag


def revision_files(cases: dict[str, list[str]]) -> dict[str, str]:
    """Return the texts of revisions after the newest one, by id: deploy_1, deploy_2 and so on."""
    [before] = scripts().get_heads()
    files: dict[str, str] = {}
    for statement in (each for statements in cases.values() for each in statements):
        revision = f"deploy_{len(files) + 1}"
        files[revision] = REVISION.format(revision=revision, before=before, upgrade=statement)
        before = revision
    return files


def releases(previous: str | None, *, without: bool) -> tuple[str, str]:
    """Return the images of the release before and of the next one."""
    if previous is not None:
        with tempfile.TemporaryDirectory() as directory:
            extract(PROJECT_ROOT, previous, Path(directory))
            docker("build", "--quiet", "--tag", "headroom-deploy:before", directory)
        return "headroom-deploy:before", THIS
    if without:
        [newest] = scripts().get_heads()
        return build(THIS, "headroom-deploy:before", without=newest), THIS
    return THIS, build(THIS, "headroom-deploy:next", revisions=revision_files({"": [ADD_COLUMN]}))


def deploys(stack: DeployStack, before: str, after: str, options: argparse.Namespace) -> tuple[Traffic, Phases]:
    """Deploy two releases in turn, one of which changes the schema, and roll back, under load."""
    traffic, phases = Traffic(stack, options.pause), Phases()

    def choreography() -> None:
        for number in range(options.deploys):
            traffic.sign_in()  # on a busy machine, all of it takes longer than a token is valid
            # The first half has the release before only; then the schema changes, and both run on it.
            image = after if number >= options.deploys // 2 and number % 2 else before
            with phases.phase(f"deploy {number + 1}" + (", other settings" if number == 1 else "")):
                stack.run("deploy", "--image", image, environment={"DB_POOL_SIZE": "4"} if number == 1 else {})
        for number in range(options.rollbacks):
            traffic.sign_in()
            with phases.phase(f"rollback {number + 1}"):
                stack.run("rollback")

    uvloop.run(traffic.run(options.clients, choreography))
    return traffic, phases


def failures(stack: DeployStack, options: argparse.Namespace) -> tuple[Traffic, Phases]:
    """Deploy releases that fail, under load. Raise AssertionError if one of them is not undone."""
    traffic, phases = Traffic(stack, options.pause), Phases()

    def choreography() -> None:
        for name, image in broken_releases().items():
            expected = set(stack.containers())
            with phases.phase(name):
                ready = "30" if name == "never ready" else "120"
                limits = {"DEPLOY_READY_SECONDS": ready, "DEPLOY_SETTLE_SECONDS": "90"}
                finished = stack.run("deploy", "--image", image, check=False, environment=limits)
            print(f"{name}: exit status {finished.returncode}: {finished.stderr.splitlines()[-1]}", flush=True)
            assert finished.returncode == 1, finished.stdout
            assert "serves as before" in finished.stderr
            assert name != "the migration fails" or set(stack.containers()) == expected
            eventually(lambda: stack.replicas_in_proxy() == REPLICAS, within=30)

    uvloop.run(traffic.run(options.clients, choreography))
    return traffic, phases


def broken_releases() -> dict[str, str]:
    """Build releases that fail. Return their images by what happens."""
    # Without a shell: `docker stop` would end the shell, and with it the container, while the replica still drains.
    minute = ["60", "headroom", "api"]
    fails = revision_files({"": ["op.execute('SELECT 1 / 0')"]})
    return {
        "the migration fails": build(THIS, "headroom-deploy:fails", revisions=fails),
        "never ready": build(THIS, "headroom-deploy:never", command=["sleep", "infinity"]),
        "ends after a minute (SIGTERM)": build(THIS, "headroom-deploy:ends", command=["timeout", *minute]),
        "crashes after a minute (SIGKILL)": build(
            THIS, "headroom-deploy:crashes", command=["timeout", "--signal", "KILL", *minute]
        ),
    }


def rotation(stack: DeployStack, options: argparse.Namespace) -> tuple[Traffic, Phases]:
    """Rotate every secret once, under load."""
    traffic, phases = Traffic(stack, options.pause), Phases()

    def choreography() -> None:
        for secret in SECRETS:
            if secret == "secret_key_fallbacks":
                traffic.sign_in()  # the token of the old key is about to become invalid
            with phases.phase(secret):
                stack.run("rotate", secret)

    uvloop.run(traffic.run(options.clients, choreography))
    return traffic, phases


def ddl(stack: DeployStack, image: str, options: argparse.Namespace) -> tuple[Traffic, Phases]:
    """Run each schema change while a transaction holds the table."""
    traffic, phases = Traffic(stack, options.pause), Phases()

    def choreography() -> None:
        number = 0
        for name, statements in DDL.items():
            with phases.phase(f"{name}: before"):
                asyncio.run(asyncio.sleep(STEADY_SECONDS))
            number += len(statements)
            with stack.held_table(), phases.phase(f"{name}: during"):
                stack.migrate(image, f"deploy_{number}")
            with phases.phase(f"{name}: after"):
                asyncio.run(asyncio.sleep(STEADY_SECONDS))

    uvloop.run(traffic.run(options.clients, choreography))
    return traffic, phases


def summary(traffic: Traffic, phase: Phase) -> tuple[list[Exchange], list[Exchange]]:
    """Return the requests that started in the phase, and those of them that failed."""
    during = [each for each in traffic.exchanges if phase.started <= each.started < phase.ended]
    return during, [each for each in during if not each.succeeded]


def show(traffic: Traffic, phases: Phases) -> None:
    """Print a row for each phase, and what was lost."""
    print_header(
        ("phase", "seconds", "requests", "reads p99 ms", "writes p99 ms", "slowest ms", "503", "other failures")
    )
    for phase in phases.all:
        during, failed = summary(traffic, phase)
        statuses = Counter(each.status for each in failed)
        reads, writes = (sorted(each.seconds for each in during if each.is_write == kind) for kind in (False, True))
        slowest = max((each.seconds for each in during), default=0.0)
        others = {status: number for status, number in statuses.items() if status != 503}
        print_row(
            (
                phase.name,
                f"{phase.ended - phase.started:.0f}",
                len(during),
                *(f"{percentile(each, 0.99) * 1000:.0f}" for each in (reads, writes)),
                f"{slowest * 1000:.0f}",
                statuses[503],
                ", ".join(f"{number} x {status or 'no answer'}" for status, number in others.items()) or 0,
            )
        )
    failed = [each for each in traffic.exchanges if not each.succeeded]
    slowest = max(each.seconds for each in traffic.exchanges)
    print(
        f"\n{len(failed)} of {len(traffic.exchanges)} requests failed, the slowest took {slowest:.1f} s; "
        f"{traffic.wrong} wrong answers, {traffic.lost()} acknowledged posts lost; "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Run one of the shows, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("show", choices=("deploys", "failures", "rotation", "ddl"))
    parser.add_argument("--clients", type=int, default=50, help="default: 50")
    parser.add_argument("--deploys", type=int, default=20, help="default: 20")
    parser.add_argument("--rollbacks", type=int, default=5, help="default: 5")
    parser.add_argument("--pause", type=float, default=PAUSE_SECONDS, help="seconds between requests of a client")
    parser.add_argument("--posts", type=int, default=20_000, help="posts in the table (default: 20000)")
    parser.add_argument("--workers", type=int, default=2, help="per replica (default: 2)")
    parser.add_argument("--settle", type=float, default=2, help="DEPLOY_SETTLE_SECONDS (default: 2)")
    releases_of = parser.add_mutually_exclusive_group()
    releases_of.add_argument("--previous", metavar="COMMIT", help="the release before")
    releases_of.add_argument("--without", action="store_true", help="the release before lacks the newest revision")
    options = parser.parse_args()
    docker("build", "--quiet", "--tag", THIS, str(PROJECT_ROOT))
    docker("compose", "--file", str(PROJECT_ROOT / "compose.prod.yml"), "build", "--quiet", "postgres", "pgbouncer")
    before, after = releases(options.previous, without=options.without) if options.show == "deploys" else (THIS, THIS)
    if options.show == "ddl":
        after = build(THIS, "headroom-deploy:ddl", revisions=revision_files(DDL))
    keep = str(options.rollbacks + 2)
    with (
        tempfile.TemporaryDirectory() as directory,
        DeployStack(
            Path(directory), before, workers=options.workers, settle=options.settle, DEPLOY_KEEP=keep
        ).running() as stack,
        stack.most_connections() as counts,
    ):
        stack.seed(options.posts)
        match options.show:
            case "deploys":
                show(*deploys(stack, before, after, options))
            case "failures":
                show(*failures(stack, options))
            case "rotation":
                show(*rotation(stack, options))
            case _:
                show(*ddl(stack, after, options))
        budget = json.loads(stack.compose("exec", "-T", "api", "headroom", "budget", "--json"))
        print(f"server connections: at most {max(counts)}; budget with the surge: {budget['demand']}")


if __name__ == "__main__":
    main()
