"""A randomised stress of the pool: faults at random on the way to the server, and every answer checked.

A proxy in front of the server cuts connections at a random byte, or makes them silent there. Backends are terminated,
and callers cancelled, at random. Each operation has a number, which its answer and its row have to contain.
"""

import asyncio
import math
import select
from asyncio import StreamReader, StreamWriter
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from time import monotonic
from typing import Any

import psycopg
from sqlalchemy import URL, BigInteger, Column, MetaData, Table, bindparam, insert
from sqlalchemy import select as sql_select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from app.database import Database, KeyedSelect, PoolOptions, make_engine
from app.database.error_mapping import translate
from app.database.pool import MIN_PING_SECONDS, BoundedPool
from app.errors import HeadroomError, OutcomeUnknown, PoolExhausted
from tests.support.postgres import connect
from tests.support.proxy import SSL_REQUEST, Proxy

APPLICATION_NAME = "headroom:stress"
OPTIONS = PoolOptions(
    size=3,
    max_overflow=3,
    timeout=1.0,
    statement_deadline=1.0,
    max_waiters=12,
    recycle=20,
    ping_after=0.02,
    shrink_after=0.2,
)
# The longest operation: a checkout, three waits for the server, and closing. The pool looks for overdue answers eight
# times in a deadline. The last seconds are for a busy machine.
LONGEST_SECONDS = OPTIONS.timeout + MIN_PING_SECONDS + 3 * 1.0 * 9 / 8 + 2 + 2
# psycopg cancels a statement within 4 s.
LONGEST_CANCEL_SECONDS = 4.0
CANCEL_REQUEST = 80877102
SMALLEST_LIMIT, LARGEST_LIMIT = 20, 200_000  # bytes

numbers = Table("stress_numbers", MetaData(), Column("number", BigInteger, primary_key=True))
ECHO = sql_select(bindparam("number", type_=BigInteger).label("echo"))
ECHO_OF_LIST = sql_select(bindparam("number", type_=BigInteger).label("echo")).where(
    bindparam("number", type_=BigInteger).in_(bindparam("list", expanding=True, type_=BigInteger))
)
BY_NUMBER = KeyedSelect(sql_select(numbers.c.number.label("echo")), numbers.c.number)
INSERT = insert(numbers).values(number=bindparam("number", type_=BigInteger)).returning(numbers.c.number.label("echo"))


class FaultyProxy(Proxy):
    """A proxy whose connections may be cut, or become silent, after a random number of bytes in both directions."""

    def __init__(self, target: URL, random: Random) -> None:
        super().__init__(target)
        self._random = random
        self._clients: dict[StreamWriter, int] = {}
        self._serving: dict[asyncio.Task[Any], StreamWriter] = {}
        self.faults: Counter[str] = Counter()
        self.most = 0

    @property
    def ports(self) -> set[int]:
        """Return the ports from which the open connections reach the server."""
        return {port for writer, port in self._clients.items() if not _is_closed_by_client(writer)}

    async def close(self) -> None:
        """Refuse new connections, close the open ones, and wait for their end."""
        await self.stop_listening()
        for writer in self._serving.values():
            writer.transport.abort()
        while self._serving:
            await asyncio.wait(set(self._serving))

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.opened += 1
        task: Any = asyncio.current_task()
        self._serving[task] = writer
        task.add_done_callback(self._serving.pop)
        fault = self._random.choices(["none", "cut", "silent"], [0.3, 0.5, 0.2])[0]
        limit = math.exp(self._random.uniform(math.log(SMALLEST_LIMIT), math.log(LARGEST_LIMIT)))
        left = [math.inf if fault == "none" else int(limit)]
        upstream: StreamWriter | None = None
        try:
            upstream_reader, upstream = await self._connect()
            name = upstream.get_extra_info("sockname")
            port = name[1] if isinstance(name, tuple) else -self.opened  # a Unix socket has no port
            pumps = {
                asyncio.create_task(self._forward(reader, upstream, left, partial(self._count, writer, port))),
                asyncio.create_task(self._forward(upstream_reader, writer, left)),
            }
            self._tasks |= pumps
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._tasks -= pumps
            if left[0] <= 0:
                self.faults[fault] += 1
                while fault == "silent" and await reader.read(65_536):  # until the client gives up
                    pass
        except ConnectionError:
            pass
        finally:
            self._clients.pop(writer, None)
            for each in (writer, upstream):
                if each is not None:
                    each.transport.abort()

    def _count(self, client: StreamWriter, port: int, sent: bytes) -> bool:
        """Count the connection if `sent`, its first bytes, are not a cancel request. Return True if that is decided."""
        if sent[4:8] == SSL_REQUEST.to_bytes(4, "big"):
            sent = sent[8:]
        if len(sent) < 8:
            return False
        if sent[4:8] != CANCEL_REQUEST.to_bytes(4, "big"):
            self._clients[client] = port
            self.most = max(self.most, len(self.ports))
        return True

    async def _forward(
        self,
        source: StreamReader,
        sink: StreamWriter,
        left: list[float],
        count: Callable[[bytes], bool] | None = None,
    ) -> None:
        sent = b""
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if count is not None:
                    sent += data
                    if count(sent):
                        count = None
                allowed = data if len(data) <= left[0] else data[: int(left[0])]
                left[0] -= len(data)
                if allowed:
                    sink.write(allowed)
                    await sink.drain()
                if left[0] <= 0:
                    return


def _is_closed_by_client(writer: StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP | select.POLLHUP)
    return bool(poll.poll(0))


@dataclass
class Report:
    """What a stress found. `violations` are the lines that must not be there."""

    operations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong_answers: int = 0
    late: int = 0
    longest: float = 0.0
    most_connections: int = 0
    most_on_server: int = 0
    missing: int = 0
    present: int = 0
    unknown: tuple[int, int] = (0, 0)
    left_on_server: int = 0
    violations: list[str] = field(default_factory=list)

    def check(self, condition: object, violation: str) -> None:
        """Record a violation unless the condition is true."""
        if not condition:
            self.violations.append(violation)


class _Stress:
    def __init__(self, database: Database, proxy: FaultyProxy, random: Random, total: int, *, pooled: bool) -> None:
        self.database = database
        self.proxy = proxy
        self.random = random
        self.total = total
        self.pooled = pooled
        self.report = Report()
        self.started = 0
        self.stored: set[int] = set()
        self.recent: deque[int] = deque(maxlen=3)
        self.refused: set[int] = set()
        self.unknown: set[int] = set()
        self.operations: list[tuple[Callable[[int], Awaitable[None]], bool]] = [
            (self.read, False),
            (self.read_on_the_ordinary_path, False),
            (self.read_by_key, False),
            (self.hold, False),
            (self.write, True),
            (self.write_one_statement, True),
            (self.roll_back, True),
        ]

    def check_answer(self, number: int, row: Any) -> None:
        if row is None or row["echo"] != number:
            self.report.wrong_answers += 1

    async def read(self, number: int) -> None:
        self.check_answer(number, await self.database.read.first(ECHO, number=number))

    async def read_on_the_ordinary_path(self, number: int) -> None:
        self.check_answer(number, await self.database.read.first(ECHO_OF_LIST, number=number, list=[number, -1]))

    async def read_by_key(self, number: int) -> None:
        """Read some numbers at once, most of them stored, a few of them stored a moment ago."""
        wanted = [*self.recent, *(self.random.randint(1, number) for _ in range(3)), -number]
        # Acknowledged before this read begins: it must find them.
        must_be_there = {each for each in wanted if each in self.stored}
        rows = await asyncio.gather(*(self.read_one(each) for each in wanted), return_exceptions=True)
        if errors := [row for row in rows if isinstance(row, BaseException)]:
            raise errors[0]
        for each, row in zip(wanted, rows, strict=True):
            if row is None:
                self.report.wrong_answers += each in must_be_there
            else:
                self.check_answer(each, row)

    async def read_one(self, number: int) -> Any:
        return await self.database.read.one(BY_NUMBER, number)

    async def hold(self, number: int) -> None:
        connection = await self.database.engine.raw_connection()
        try:
            await asyncio.sleep(0)
        finally:
            await asyncio.shield(greenlet_spawn(connection.close))

    async def write(self, number: int) -> None:
        async with self.database.write() as session:
            self.check_answer(number, (await session.execute(INSERT, {"number": number})).mappings().first())

    async def write_one_statement(self, number: int) -> None:
        self.check_answer(number, await self.database.statement.returned(INSERT, number=number))

    async def roll_back(self, number: int) -> None:
        with suppress(LookupError):
            async with self.database.write() as session:
                await session.execute(INSERT, {"number": number})
                raise LookupError
        raise LookupError  # an outcome of its own: the row must not be there

    async def call_in_turn(self) -> None:
        while self.started < self.total:
            self.started += 1
            if await self.call(self.started) == PoolExhausted.__name__:
                await asyncio.sleep(self.random.uniform(0, 0.2))  # otherwise most operations would be refused

    async def call(self, number: int) -> str:
        """Run one operation, and cancel some. Return and record its outcome."""
        operation, writes = self.random.choice(self.operations)
        task = asyncio.ensure_future(operation(number))
        started = monotonic()
        longest = LONGEST_SECONDS
        if self.random.random() < 0.1:
            await asyncio.wait({task}, timeout=self.random.choice([0, 0.0005, 0.002, 0.01, 0.05]))
            longest += LONGEST_CANCEL_SECONDS
            task.cancel()
            while self.random.random() < 0.3 and not task.done():  # as anyio does
                await asyncio.sleep(0)
                task.cancel()
        done, _ = await asyncio.wait({task}, timeout=longest)
        seconds = monotonic() - started
        self.report.longest = max(self.report.longest, seconds)
        if not done:
            self.report.late += 1
            task.cancel()
            await asyncio.wait({task})
        return self.record(number, task, writes=writes)

    def record(self, number: int, task: "asyncio.Future[None]", *, writes: bool) -> str:
        outcome, rows = "answered", self.stored
        if task.cancelled():
            outcome, rows = "cancelled", self.unknown
        elif (error := task.exception()) is not None:
            known = error if isinstance(error, HeadroomError | LookupError) else None
            if known is None and isinstance(error, DBAPIError | OSError | psycopg.Error):
                known = translate(error)
            outcome = type(known or error).__name__
            rows = self.unknown if isinstance(known, OutcomeUnknown) else self.refused
            self.report.check(known is not None, f"an error without a counterpart: {error!r}")
        self.report.operations += 1
        self.report.outcomes[outcome] += 1
        if writes:
            rows.add(number)
            if rows is self.stored:
                self.recent.append(number)
        return outcome

    async def terminate_backends(self, server: URL) -> None:
        """Terminate a backend of the pool now and then, and count those that are there."""
        query = "SELECT pid, client_port FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
        role = self.database.engine.url.username  # not the superuser's, who counts
        with connect(server) as admin:
            while True:
                await asyncio.sleep(self.random.uniform(0.01, 0.2))
                backends = admin.execute(query, (role,)).fetchall()
                # The server keeps a connection that the client has closed for up to a second: until its statement ends.
                ports = None if self.pooled else self.proxy.ports
                alive = [port for _, port in backends if ports is None or port in ports]
                self.report.most_on_server = max(self.report.most_on_server, len(alive))
                if backends and self.random.random() < 0.5:
                    pid, _ = self.random.choice(backends)
                    admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
                    self.report.faults["terminated"] += 1


async def stress(url: URL, server: URL, *, operations: int, pooled: bool, callers: int = 20, seed: int = 0) -> Report:
    """Run the stress on `url`. It leads to the database of `server`, a superuser's URL; by PgBouncer if `pooled`."""
    random = Random(seed)
    with connect(server) as admin:
        admin.execute("CREATE TABLE stress_numbers (number bigint PRIMARY KEY)")
        admin.execute("GRANT ALL ON stress_numbers TO headroom_app")
    async with FaultyProxy(url, random) as proxy:
        engine = make_engine(url=proxy.url, application_name=APPLICATION_NAME, pool=OPTIONS)
        run = _Stress(Database(engine), proxy, random, operations, pooled=pooled)
        pool: Any = engine.pool
        assert isinstance(pool, BoundedPool)
        terminating = asyncio.create_task(run.terminate_backends(server))
        try:
            await asyncio.gather(*(run.call_in_turn() for _ in range(callers)))
        finally:
            terminating.cancel()
            await asyncio.wait({terminating})
            if not terminating.cancelled():
                terminating.result()
        report = run.report
        report.faults.update(proxy.faults)
        report.most_connections = proxy.most
        # A silent connection that was being opened, or closed, has its deadline too.
        await _until(lambda: pool.state.used == 0, within=LONGEST_SECONDS)
        report.check(pool.state.used == 0, f"slots are not free at the end: {pool.state}")
        report.check(pool.state.waiting == 0, f"callers wait at the end: {pool.state}")
        report.check(not pool._holders, "the pool knows holders at the end")
        await engine.dispose()
        await _until(lambda: not proxy.ports, within=60)
        report.left_on_server = len(proxy.ports)
    _compare_rows(run, server)
    report.check(report.operations == operations, f"{report.operations} of {operations} operations")
    report.check(not report.wrong_answers, f"{report.wrong_answers} wrong answers")
    report.check(not report.late, f"{report.late} operations beyond their deadline")
    allowed = OPTIONS.max_size
    on_server = 0 if pooled else report.most_on_server  # PgBouncer's own number
    report.check(report.most_connections <= allowed, f"{report.most_connections} connections, {allowed} allowed")
    report.check(on_server <= allowed, f"{on_server} on the server, {allowed} allowed")
    report.check(not report.missing, f"{report.missing} acknowledged rows are missing")
    report.check(not report.present, f"{report.present} refused rows are present")
    report.check(not report.left_on_server, f"{report.left_on_server} connections are left")
    return report


def _compare_rows(run: _Stress, server: URL) -> None:
    with connect(server) as admin:
        rows = {row[0] for row in admin.execute("SELECT number FROM stress_numbers").fetchall()}
    run.report.missing = len(run.stored - rows)
    run.report.present = len(run.refused & rows)
    run.report.unknown = len(run.unknown & rows), len(run.unknown - rows)


async def _until(condition: Callable[[], object], *, within: float) -> None:
    deadline = monotonic() + within
    while not condition() and monotonic() < deadline:  # noqa: ASYNC110 - the pool has no event
        await asyncio.sleep(0.01)
