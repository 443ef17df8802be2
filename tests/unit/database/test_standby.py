"""The position and the lag of a standby, and the routing of reads."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, literal, select
from sqlalchemy.util import greenlet_spawn

from app.database import KeyedSelect, PoolOptions
from app.database.deadline import left_of
from app.database.engine import OtherServer, make_engine
from app.database.read_after import (
    UNKNOWN_POSITION,
    ReadAfter,
    note_commit,
    note_commits,
    note_written,
    position,
    read_after,
)
from app.database.standby import Replay, Route, Standby, _NotedStatements, _RoutedReads, read_pool_options
from app.errors import (
    DatabaseUnavailable,
    InvalidInput,
    OutcomeUnknown,
    PoolExhausted,
    StatementTimeout,
    TransactionConflict,
)
from app.lanes import LaneSpec
from tests.support.clock import Clock
from tests.support.contacts import Contact
from tests.unit.conftest import SQLITE

ONE = select(literal(1).label("one"))
KEYED = KeyedSelect(select(Contact.id), Contact.id)


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    token = read_after.set(None)
    yield
    read_after.reset(token)


def new_standby(**options: Any) -> Standby:
    primary: Any = None  # it is not polled
    return Standby(
        primary,
        url=SQLITE.set(drivername="postgresql+asyncpg"),
        application_name="test",
        pool=PoolOptions(),
        **{"max_lag": 10.0} | options,
    )


def usable(standby: Standby, replayed: int = 100) -> Standby:
    standby._replay.replayed(replayed)
    standby._replay.flushed(time.monotonic(), replayed)
    standby._failure = None
    return standby


def test_position_of_a_later_timeline_is_beyond_every_earlier_one() -> None:
    assert position(2, 0) > position(1, (1 << 64) - 1)
    assert position(1, 17) > position(1, 16)
    assert position((1 << 32) - 1, (1 << 64) - 1) == UNKNOWN_POSITION


def test_lag_is_unknown_before_the_standby_has_a_known_position() -> None:
    replay = Replay()
    replay.flushed(1.0, 100)
    replay.replayed(99)

    assert replay.lag(2.0) == math.inf


def test_lag_of_an_idle_primary_stays_short() -> None:
    replay = Replay()
    replay.replayed(100)
    for second in range(100):
        replay.flushed(second, 100)

    assert replay.lag(99.5) == 0.5


def test_standby_of_the_old_timeline_lags_however_far_it_is() -> None:
    replay = Replay()
    replay.flushed(1.0, position(1, 500))
    replay.replayed(position(1, 900))
    replay.flushed(2.0, position(2, 600))
    replay.replayed(position(1, 950))

    assert replay.lag(30.0) == 29.0


@given(st.lists(st.tuples(st.sampled_from(["flushed", "replayed"]), st.integers(0, 20)), max_size=60))
def test_lag_is_the_age_of_what_the_standby_has(events: list[tuple[str, int]]) -> None:
    """Compared with a model that keeps every sample. Positions of the primary only grow."""
    replay, samples, primary, replayed = Replay(), [(-math.inf, -1)], 0, 0
    for now, (event, grows) in enumerate(events):
        if event == "flushed":
            primary += grows
            replay.flushed(now, primary)
            samples.append((now, primary))
        else:
            replayed = max(replayed, grows * 5)
            replay.replayed(grows * 5)

        assert replay.lag(now) == now - max(at for at, flushed in samples if flushed <= replayed)
        assert replay.position == replayed


def test_read_without_a_position_goes_to_a_standby_that_lags_a_little() -> None:
    assert usable(new_standby()).route() == "standby"


@pytest.mark.parametrize(("needed", "expected"), [(0, "standby"), (100, "standby"), (101, "behind")])
def test_read_after_a_write_goes_to_a_standby_that_has_replayed_it(needed: int, expected: Route) -> None:
    """The watch polls a standby that has not replayed it again soon."""
    read_after.set(ReadAfter(needed))
    standby = usable(new_standby())

    assert standby.route() == expected
    assert standby._is_urgent.is_set() == (expected == "behind")


def test_read_after_a_write_of_unknown_position_goes_to_the_primary() -> None:
    note_written(UNKNOWN_POSITION)

    assert usable(new_standby(), replayed=UNKNOWN_POSITION - 1).route() == "behind"


def test_standby_beyond_its_greatest_lag_gets_no_reads() -> None:
    standby = usable(new_standby(max_lag=2.0))
    standby._replay._current_at -= 3.0

    assert standby.route() == "lagging"


def test_standby_that_was_not_polled_gets_no_reads() -> None:
    assert new_standby().route() == "unavailable"


class Session:
    """Stands for a read session. Each read raises `error`, or returns the name."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error, self.reads = name, error, 0

    async def one(self, *_: object) -> str:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.name

    all = first = entities = one


def routed(standby: Standby, error: Exception | None = None) -> tuple[Any, list[Route]]:
    routes: list[Route] = []
    standby.routed = routes.append
    standby.session = Session("standby", error)  # type: ignore[assignment]
    primary: Any = Session("primary")
    return _RoutedReads(standby.engine, primary, standby), routes


@pytest.mark.parametrize("read", ["all", "first", "one", "entities"])
async def test_every_kind_of_read_is_routed(read: str) -> None:
    session, routes = routed(usable(new_standby()))
    arguments = (KEYED, 1) if read == "one" else (ONE,)

    assert await getattr(session, read)(*arguments) == "standby"
    note_written(101)
    assert await getattr(session, read)(*arguments) == "primary"
    assert routes == ["standby", "behind"]


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("gone"), TransactionConflict("with recovery"), RuntimeError("no such table")]
)
async def test_read_that_fails_on_the_standby_is_repeated_on_the_primary(error: Exception) -> None:
    session, routes = routed(usable(new_standby()), error)

    assert await session.first(ONE) == "primary"
    assert routes == ["unavailable"]


async def test_standby_that_was_lost_gets_no_reads_until_it_is_polled() -> None:
    standby = usable(new_standby())
    session, _ = routed(standby, DatabaseUnavailable("gone"))
    await session.first(ONE)
    await session.first(ONE)

    assert standby.session.reads == 1  # type: ignore[attr-defined]


async def test_trouble_that_comes_back_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a standby that accepts no further connection, but answers the polls on the one that is open."""
    caplog.set_level("INFO", "app.database.standby")
    standby = usable(new_standby())
    session, _ = routed(standby, DatabaseUnavailable("too many clients"))
    monkeypatch.setattr(standby, "_query_standby", lambda: answered(standby))
    for _ in range(3):
        await session.first(ONE)
        await standby._poll_standby()
    monkeypatch.setattr("app.database.standby.SETTLED_SECONDS", 0)
    await standby._poll_standby()

    assert [record.getMessage() for record in caplog.records] == [
        "reads go to the primary, not to the standby: too many clients",
        "reads go to the standby again",
    ]


async def answered(standby: Standby) -> None:
    usable(standby)


@pytest.mark.parametrize("error", [StatementTimeout("10 s"), InvalidInput("NUL"), PoolExhausted("busy")])
async def test_read_that_the_primary_would_refuse_too_is_not_repeated(error: Exception) -> None:
    """And a pool in full use does not load the primary."""
    session, _ = routed(usable(new_standby()), error)

    with pytest.raises(type(error)):
        await session.first(ONE)


async def test_waiter_for_a_standby_that_is_gone_reads_on_the_primary() -> None:
    standby = usable(new_standby())
    session, _ = routed(standby)

    async def lose(*_: object) -> None:
        standby.failed(DatabaseUnavailable("gone"))
        raise PoolExhausted("no connection")

    standby.session.first = lose  # type: ignore[method-assign, assignment]

    assert await session.first(ONE) == "primary"


@pytest.mark.parametrize(("waited", "left"), [(0, 4), (1, 3), (60, 2)])
async def test_read_that_waited_for_the_standby_has_the_rest_of_its_time(
    monkeypatch: pytest.MonkeyPatch, waited: float, left: float
) -> None:
    """At least the half that the standby's pool leaves over: a standby that vanished may have held it for longer."""
    standby, clock = usable(new_standby()), Clock()
    session, _ = routed(standby)
    found = []

    async def fail(*_: object) -> None:
        clock.now += waited
        raise DatabaseUnavailable("gone")

    async def succeed(*_: object) -> None:
        found.append(left_of(4))

    monkeypatch.setattr("app.database.standby.time", SimpleNamespace(monotonic=clock.monotonic))
    standby._replay.flushed(clock.now, 100)
    standby.session.first = fail  # type: ignore[method-assign, assignment]
    session._primary.first = succeed
    await session.first(ONE)

    assert (found, left_of(4)) == ([left], 4)


def written() -> int:
    current = read_after.get()
    assert current is not None
    return current.written


def lose(*_: object) -> Any:
    raise OutcomeUnknown("lost")


def test_commit_whose_outcome_is_unknown_sends_its_client_to_the_primary() -> None:
    engine = make_engine(url=SQLITE.set(drivername="postgresql+asyncpg"), application_name="test")
    dialect: Any = engine.dialect
    dialect.do_commit = lose
    note_commits(engine)

    with pytest.raises(OutcomeUnknown):
        dialect.do_commit(None)
    assert written() == UNKNOWN_POSITION


async def test_statement_whose_outcome_is_unknown_sends_its_client_to_the_primary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(url=SQLITE.set(drivername="postgresql+asyncpg"), application_name="test")
    statements = _NotedStatements(engine)
    monkeypatch.setattr(statements, "_run", lose)

    with pytest.raises(OutcomeUnknown):
        await statements.returned(insert(Contact).returning(Contact.id))
    assert written() == UNKNOWN_POSITION


async def test_commit_whose_position_cannot_be_queried_succeeds() -> None:
    async def fetchrow(_: str) -> None:
        raise OSError("lost")

    await note_commit(SimpleNamespace(fetchrow=fetchrow))

    assert written() == UNKNOWN_POSITION


def connection(server: str, lsn: int, *, is_standby: bool = True) -> Any:
    async def fetchrow(_: str) -> tuple[bool, int, int, str]:
        return is_standby, 1, lsn, server

    return SimpleNamespace(fetchrow=fetchrow, closed=False)


async def test_connection_to_a_second_standby_is_refused_while_the_first_is_connected() -> None:
    """Behind a name that stands for both. What is known of the one says nothing about the other."""
    standby = new_standby()
    first = connection("a", 100)
    await greenlet_spawn(standby._admit, first)

    with pytest.raises(OtherServer):
        await greenlet_spawn(standby._admit, connection("b", 200))
    first.closed = True
    await greenlet_spawn(standby._admit, connection("b", 200))
    assert standby._server == "b"


async def test_standby_that_starts_behind_its_known_position_is_refused() -> None:
    standby = new_standby()
    standby._replay.replayed(position(1, 100))

    with pytest.raises(DatabaseUnavailable, match="not replayed"):
        await greenlet_spawn(standby._admit, connection("a", 99))
    await greenlet_spawn(standby._admit, connection("a", 100))


async def test_server_that_is_no_standby_is_refused() -> None:
    with pytest.raises(DatabaseUnavailable, match="no standby"):
        await greenlet_spawn(new_standby()._admit, connection("a", 100, is_standby=False))


@pytest.mark.parametrize(("size", "share"), [(5, 4), (2, 1), (1, 0.5)])
def test_lanes_of_the_read_pool_leave_a_connection_to_others(size: int, share: float) -> None:
    reports = LaneSpec("reports", share=7, queue=3, deadline=2)
    primary = PoolOptions(size=10, max_overflow=5, timeout=4, expensive_share=8, own_lanes=(reports,))

    options = read_pool_options(primary, size)

    assert (options.size, options.max_overflow, options.timeout) == (size, 0, 2)
    assert (options.expensive_share, options.own_lanes) == (share, (replace(reports, share=share, deadline=1),))
    assert options.expensive_timeout == primary.expensive_timeout / 2


def test_small_shares_of_lanes_are_those_of_the_primary() -> None:
    primary = PoolOptions(expensive_share=0.25, own_lanes=(LaneSpec("reports", share=2, queue=3, deadline=2),))

    options = read_pool_options(primary, 5)

    assert options.expensive_share == primary.expensive_share
    assert [lane.share for lane in options.own_lanes] == [2]
