"""What is known of a connection without asking, on a pair of sockets instead of a server."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from app.database.liveness import SocketProbe, ping, shut_down


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def asyncpg_like(ours: socket.socket, *, closing: bool = False) -> Any:
    transport = SimpleNamespace(get_extra_info=lambda _: ours, is_closing=lambda: closing)
    return SimpleNamespace(is_closed=lambda: False, _transport=transport)


def psycopg_like(ours: socket.socket) -> Any:
    return SimpleNamespace(closed=False, pgconn=SimpleNamespace(socket=ours.fileno()))


@pytest.mark.parametrize("like", [asyncpg_like, psycopg_like])
def test_the_end_of_the_stream_is_noticed_and_silence_is_not_mistaken_for_it(
    pair: tuple[socket.socket, socket.socket], like: Any
) -> None:
    ours, theirs = pair
    line = SocketProbe(like(ours))
    assert not line.closed_by_server()
    assert not line.closed_by_server()

    theirs.close()
    assert line.closed_by_server()


@pytest.mark.parametrize("like", [asyncpg_like, psycopg_like])
def test_hanging_up_wakes_whoever_waits_for_an_answer(pair: tuple[socket.socket, socket.socket], like: Any) -> None:
    ours, theirs = pair
    shut_down(like(ours))

    assert ours.recv(1) == theirs.recv(1) == b""


def test_a_descriptor_that_may_be_somebody_elses_by_now_is_left_alone(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    closing = asyncpg_like(ours, closing=True)

    assert SocketProbe(closing).closed_by_server()
    shut_down(closing)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"


def pinged(ping: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """A dialect that does this for a ping."""
    return SimpleNamespace(
        driver="psycopg",
        get_driver_connection=lambda connection: connection,
        do_ping=lambda _: await_only(ping()),
    )


async def test_an_answer_that_is_there_when_the_process_goes_on_is_one_though_time_is_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair

    async def answered_while_we_stood_still() -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(ours, readable.set)
        theirs.sendall(b"x")
        time.sleep(0.02)  # noqa: ASYNC251 - as a process does that gets no processor
        await readable.wait()
        loop.remove_reader(ours)

    assert await greenlet_spawn(ping, pinged(answered_while_we_stood_still), psycopg_like(ours), within=0.01)


async def test_an_answer_that_came_as_time_ran_out_is_none_for_it_was_hung_up_on(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair

    async def answered_after_all() -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, theirs.recv, 1) == b"", "was hung up on"

    assert not await greenlet_spawn(ping, pinged(answered_after_all), psycopg_like(ours), within=0)
