"""Deploys and migrations of compose.prod.yml under load: `make bench-deploy`, `make bench-ddl`.

`rollout`: two replicas of the release before; migrate; restart one of them on the new schema; roll out, roll back, roll
forward. Then kill a replica, which is counted apart: a crash ends the requests in progress.
`ddl`: schema changes while a transaction holds the table.

The release before is built from a commit (`--previous`), or from this tree without its newest revision (`--without`).
By default it is this tree, and the next release has one more revision, which adds a column.
"""

import argparse
import asyncio
import os
import ssl
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

import uvloop

from app.database.schema_version import scripts
from app.paths import PROJECT_ROOT
from benchmarks.tables import print_header, print_row
from tests.old_release.run import extract
from tests.support.load import Answer, Connection, connect, get, percentile, post
from tests.support.stacks import ProdStack
from tests.support.waiting import eventually

REPLICAS = 2
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

    def __init__(self, stack: ProdStack) -> None:
        self._port = urlsplit(stack.api).port or 0
        self._tls: ssl.SSLContext = stack.tls
        self._stack = stack
        self._numbers = count()
        self._posts: list[tuple[str, str]] = []
        self._stopped = asyncio.Event()
        self.exchanges: list[Exchange] = []
        self.wrong = 0
        name = f"deploy-{os.getpid()}"
        account = {"email": f"{name}@example.com", "name": name, "password": PASSWORD}
        self._user = stack.client.post("/users", json=account).raise_for_status().headers["location"]
        form = {"username": account["email"], "password": PASSWORD}
        token = stack.client.post("/auth/token", data=form).raise_for_status().json()["access_token"]
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
        await asyncio.sleep(PAUSE_SECONDS * number / 10)  # not all at once
        for turn in count():
            if self._stopped.is_set():
                break
            connection = await (self._write(connection) if number % 2 else self._read(connection, turn))
            await asyncio.sleep(PAUSE_SECONDS)
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


class DeployStack(ProdStack):
    """compose.prod.yml, with the image of a release that can change: `image` is for new containers."""

    def __init__(self, directory: Path, image: str, *, workers: int = 2, **environment: str) -> None:
        override = directory / "image.yml"
        services = "\n".join(f"  {name}: {{ image: '${{DEPLOY_IMAGE}}' }}" for name in ("api", "migrate", "exporter"))
        override.write_text(f"services:\n{services}\n")
        super().__init__(
            f"headroom-deploy-{os.getpid()}",
            directory / "secrets",
            build=False,
            DEPLOY_IMAGE=image,
            API_REPLICAS=str(REPLICAS),
            WEB_CONCURRENCY=str(workers),
            **environment,
        )
        self.files.append(str(override))

    def migrate(self, image: str, revision: str = "head") -> None:
        """Run the migration job of a release."""
        self.environment["DEPLOY_IMAGE"] = image
        self.compose("run", "--rm", "--no-deps", "migrate", "alembic", "upgrade", revision)

    def seed(self, posts: int) -> None:
        self.compose(
            "run", "--rm", "--no-deps", "migrate", "headroom", "seed", "--users", "1000", "--posts", str(posts)
        )

    def containers(self) -> list[str]:
        """Return the ids of the running replicas."""
        return self.compose("ps", "--quiet", "api").split()

    def restart_one(self) -> None:
        """Stop a replica as a deploy does, and start it again."""
        replica = self.containers()[0]
        docker("stop", replica)
        docker("start", replica)
        self.wait_for(REPLICAS)

    def crash_one(self) -> None:
        """Kill a replica with its requests, and start it again."""
        replica = self.containers()[0]
        docker("kill", replica)
        eventually(lambda: self.replicas_in_proxy() == REPLICAS - 1, within=60)
        docker("start", replica)
        self.wait_for(REPLICAS)

    def roll(self, image: str, replicas: int = REPLICAS) -> None:
        """Replace replicas one by one: start a new one, wait until the proxy has it, stop an old one."""
        self.environment["DEPLOY_IMAGE"] = image
        for old in self.containers()[:replicas]:
            up = ("up", "--no-build", "--no-deps", "--no-recreate", "--detach", "--scale", f"api={REPLICAS + 1}", "api")
            self.compose(*up)
            self.wait_for(REPLICAS + 1)
            docker("stop", old)
            docker("rm", old)
            self.wait_for(REPLICAS)

    def wait_for(self, replicas: int) -> None:
        """Wait until the proxy sends requests to this many replicas."""
        eventually(lambda: self.replicas_in_proxy() == replicas, within=120, every=0.5)

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


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, stdout=subprocess.DEVNULL)


def build(base: str, tag: str, *, revisions: dict[str, str] | None = None, without: str | None = None) -> str:
    """Build an image with more revisions, or without the file of one. Return its tag."""
    with tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        lines = [f"FROM {base}"]
        for revision, text in (revisions or {}).items():
            (context / f"{revision}.py").write_text(text)
            lines.append(f"COPY {revision}.py migrations/versions/")
        if without is not None:
            lines += ["USER 0", f"RUN rm migrations/versions/*_{without}_*.py", "USER 10001:10001"]
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


def rollout(stack: DeployStack, before: str, after: str, clients: int, requests: int) -> tuple[Traffic, Phases]:
    """Migrate, restart, roll out, back and forward under load; then crash a replica."""
    traffic, phases = Traffic(stack), Phases()

    def choreography() -> None:
        with phases.phase("before"):
            asyncio.run(asyncio.sleep(STEADY_SECONDS))
        with phases.phase("migrate"):
            stack.migrate(after)
        with phases.phase("restart a replica of before"):
            stack.restart_one()
        for name, image in (("roll out", after), ("roll back", before), ("roll forward", after)):
            with phases.phase(name):
                stack.roll(image)
        with phases.phase("after"):
            eventually(lambda: len(traffic.exchanges) >= requests, within=600, every=1)
        with phases.phase("crash (SIGKILL)"):
            stack.crash_one()

    uvloop.run(traffic.run(clients, choreography))
    return traffic, phases


def ddl(stack: DeployStack, image: str, clients: int) -> tuple[Traffic, Phases]:
    """Run each schema change while a transaction holds the table."""
    traffic, phases = Traffic(stack), Phases()

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

    uvloop.run(traffic.run(clients, choreography))
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
    total = [summary(traffic, phase) for phase in phases.all if not phase.name.startswith("crash")]
    requests, failures = (sum(len(each[part]) for each in total) for part in (0, 1))
    print(
        f"\nwithout the crash: {failures} of {requests} requests failed; {traffic.wrong} wrong answers, "
        f"{traffic.lost()} acknowledged posts lost; load average {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Run one of the two, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("show", choices=("rollout", "ddl"))
    parser.add_argument("--clients", type=int, default=50, help="default: 50")
    parser.add_argument("--requests", type=int, default=50_000, help="at least, for rollout (default: 50000)")
    parser.add_argument("--posts", type=int, default=20_000, help="posts in the table (default: 20000)")
    parser.add_argument("--workers", type=int, default=2, help="per replica (default: 2)")
    releases_of = parser.add_mutually_exclusive_group()
    releases_of.add_argument("--previous", metavar="COMMIT", help="the release before")
    releases_of.add_argument("--without", action="store_true", help="the release before lacks the newest revision")
    options = parser.parse_args()
    docker("build", "--quiet", "--tag", THIS, str(PROJECT_ROOT))
    docker("compose", "--file", str(PROJECT_ROOT / "compose.prod.yml"), "build", "--quiet", "postgres", "pgbouncer")
    with tempfile.TemporaryDirectory() as directory:
        if options.show == "rollout":
            before, after = releases(options.previous, without=options.without)
        else:
            before = THIS
            after = build(THIS, "headroom-deploy:ddl", revisions=revision_files(DDL))
        with DeployStack(Path(directory), before, workers=options.workers).running() as stack:
            stack.seed(options.posts)
            if options.show == "rollout":
                show(*rollout(stack, before, after, options.clients, options.requests))
            else:
                show(*ddl(stack, after, options.clients))


if __name__ == "__main__":
    main()
