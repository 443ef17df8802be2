"""How a worker leaves its replica: no request is lost."""

import asyncio
import os
import select
import socket
import subprocess
import sys
from typing import Any

import pytest

from app.replica import Replica
from app.server import fair_server, keep_alive
from app.server.fair_server import FairServer
from app.server.master import Turn
from tests.support.load import Connection, connect, get
from tests.unit.server.conftest import OTHER_SLOT, OWN_SLOT, serve_in_other_slot, wait_until


@pytest.fixture
def port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


async def leave(server: FairServer) -> None:
    """Tell the server to stop, and wait until it does not listen any more."""
    server.should_exit = True
    await wait_until(lambda: server._has_left)


async def idle_connection(port: int) -> Connection:
    connection = await connect(port)
    answer = await connection.ask(get("/"))
    assert (answer.status, answer.is_last) == (200, False)
    return connection


def protocol_of(server: FairServer, connection: Connection) -> Any:
    """Return the server's end of a connection."""
    address = connection._transport.get_extra_info("sockname")
    protocols: list[Any] = list(server.server_state.connections)
    [protocol] = [each for each in protocols if each.client == address]
    return protocol


async def test_request_on_a_kept_connection_of_a_leaving_worker_succeeds(server: FairServer, port: int) -> None:
    connection = await idle_connection(port)
    await leave(server)

    answer = await connection.ask(get("/"))

    assert (answer.status, answer.body, answer.is_last) == (200, b"ok", True)
    await wait_until(lambda: connection.is_closed)


async def test_first_request_of_a_connection_of_a_leaving_worker_succeeds(server: FairServer, port: int) -> None:
    connection = await connect(port)
    await wait_until(lambda: server.server_state.connections)
    await leave(server)

    answer = await connection.ask(get("/"))

    assert (answer.status, answer.is_last) == (200, True)


async def test_request_in_progress_of_a_leaving_worker_finishes(
    server: FairServer, port: int, go_on: asyncio.Event
) -> None:
    connection = await connect(port)
    response = connection.ask(get("/wait"))
    await wait_until(lambda: server.server_state.tasks)
    await leave(server)
    assert not response.done()
    go_on.set()

    answer = await response

    assert (answer.status, answer.is_last) == (200, True)


async def test_response_begun_before_the_leave_is_followed_by_another(
    server: FairServer, port: int, go_on: asyncio.Event
) -> None:
    """Its headers did not announce the close, so the client may send the next request at once."""
    connection = await connect(port)
    response = connection.ask(get("/stream"))
    await wait_until(lambda: connection._buffer.endswith(b"o"))
    await leave(server)
    go_on.set()
    first = await response

    second = await connection.ask(get("/"))

    assert (first.status, first.is_last) == (200, False)
    assert (second.status, second.is_last) == (200, True)


async def test_idle_connection_of_a_leaving_worker_is_closed_after_the_grace(
    server: FairServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_server, "IDLE_GRACE_SECONDS", 0.3)
    connection = await idle_connection(port)
    loop = asyncio.get_running_loop()
    await leave(server)
    since = loop.time()

    await wait_until(lambda: connection.is_closed)

    assert loop.time() - since >= 0.3 - fair_server.TICK_SECONDS


async def test_partial_request_of_a_leaving_worker_is_not_cut(
    server: FairServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_server, "IDLE_GRACE_SECONDS", 0.1)
    bystander = await idle_connection(port)
    connection = await idle_connection(port)
    request = get("/")
    response = connection.ask(request[:10])
    protocol = protocol_of(server, connection)
    await wait_until(lambda: protocol.scope is not protocol.cycle.scope)
    await leave(server)
    await wait_until(lambda: bystander.is_closed)

    connection._transport.write(request[10:])

    assert (await response).is_last


async def test_connection_with_unread_bytes_is_not_closed(server: FairServer, port: int) -> None:
    connection = await idle_connection(port)
    protocol = protocol_of(server, connection)
    protocol.transport.pause_reading()
    response = connection.ask(get("/"))
    descriptor = protocol.transport.get_extra_info("socket").fileno()
    await wait_until(lambda: select.select([descriptor], [], [], 0)[0])

    assert not keep_alive.close_if_unread_is_empty(protocol)
    protocol.transport.resume_reading()
    assert (await response).status == 200
    assert keep_alive.close_if_unread_is_empty(protocol)
    await wait_until(lambda: connection.is_closed)


async def test_unfinished_request_is_cancelled_at_the_deadline(server: FairServer, port: int) -> None:
    server.config.timeout_graceful_shutdown = 1
    connection = await connect(port)
    response = connection.ask(get("/wait"))
    await wait_until(lambda: server.server_state.tasks)
    await leave(server)

    await wait_until(response.done)

    assert response.exception() is not None or response.result().status == 500


async def test_worker_that_waits_for_background_tasks_gives_signs_of_life(
    server: FairServer, replica: Replica, port: int, go_on: asyncio.Event
) -> None:
    connection = await connect(port)
    await connection.ask(get("/background"))
    connection.close()
    await leave(server)
    await wait_until(lambda: not server.server_state.connections)

    without_connections = replica._ticks[OWN_SLOT]
    # Longer than the tick that was under way when the last connection was closed.
    await wait_until(lambda: replica._ticks[OWN_SLOT] > without_connections + 500)
    go_on.set()


async def test_queued_connections_of_a_stopping_replica_are_served(
    server: FairServer, replica: Replica, port: int
) -> None:
    [listener] = server._listeners
    listener.close()  # as a worker that is too busy to accept
    connections = [await connect(port) for _ in range(20)]
    responses = [connection.ask(get("/")) for connection in connections]
    replica.stop()
    await leave(server)

    answers = await asyncio.gather(*responses)

    assert {(answer.status, answer.is_last) for answer in answers} == {(200, True)}


async def test_worker_goes_on_serving_while_its_successors_start(
    server: FairServer, replica: Replica, port: int
) -> None:
    replica.add_slot(OTHER_SLOT)
    server.should_exit = True
    await wait_until(lambda: server._is_leaving)

    assert not (await (await connect(port)).ask(get("/"))).is_last
    assert replica.connections[OWN_SLOT] == 1

    serve_in_other_slot(server, replica, 0)
    await wait_until(lambda: server._has_left)


async def test_worker_leaves_if_its_successors_do_not_start(
    server: FairServer, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_server, "HANDOVER_SECONDS", 0.2)
    replica.add_slot(OTHER_SLOT)

    await leave(server)


async def test_worker_of_a_stopping_replica_serves_until_the_announced_time(
    server: FairServer, replica: Replica, port: int
) -> None:
    """A process manager may send SIGTERM to the workers too."""
    replica.stop(after=60)
    server.should_exit = True
    await wait_until(lambda: server._is_leaving)

    assert not (await (await connect(port)).ask(get("/"))).is_last

    replica.stop(after=0)
    await wait_until(lambda: server._has_left)


async def test_worker_that_is_signalled_before_its_master_waits_for_the_announcement(
    server: FairServer, replica: Replica
) -> None:
    """A signal to the process group reaches the workers at the same time as the master."""
    server.should_exit = True
    await wait_until(lambda: server._is_leaving)

    replica.stop(after=60)
    waits_until = asyncio.get_running_loop().time() + 2 * fair_server.ANNOUNCEMENT_SECONDS
    await wait_until(lambda: server._has_left or asyncio.get_running_loop().time() > waits_until)

    assert not server._has_left
    replica.stop(after=0)
    await wait_until(lambda: server._has_left)


async def test_worker_at_max_requests_waits_for_its_turn(server: FairServer, replica: Replica, port: int) -> None:
    turn = Turn()
    server._turn, server._max_requests = turn, 1
    # Another process holds the lock, as a worker that is being recycled.
    holder = _holder_of(turn)
    serve_in_other_slot(server, replica, 0)
    await idle_connection(port)
    assert not await on_next_tick(server, replica)
    holder.communicate("exit")

    replica.clear_slot(OTHER_SLOT)
    assert not await on_next_tick(server, replica), "the recycled worker's successor does not serve yet"
    serve_in_other_slot(server, replica, 0)

    await wait_until(lambda: server._is_leaving)


def _holder_of(turn: Turn) -> "subprocess.Popen[str]":
    descriptor = turn._descriptor
    program = f"import fcntl; fcntl.lockf({descriptor}, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", program]
    holder = subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


async def on_next_tick(server: FairServer, replica: Replica) -> bool:
    """Return True if the server begins to leave at its next tick."""
    replica._ticks[OWN_SLOT] = 0
    await wait_until(lambda: replica._ticks[OWN_SLOT])
    return server._is_leaving


async def test_worker_without_its_master_leaves(server: FairServer, replica: Replica) -> None:
    server._parent = os.getpid()

    await wait_until(lambda: server._is_leaving)

    assert replica.is_stopping


async def test_worker_gets_signs_of_life_while_it_leaves(server: FairServer, port: int, monkeypatch: Any) -> None:
    notified = asyncio.Event()

    async def notify() -> None:
        notified.set()

    await connect(port)
    await wait_until(lambda: server.server_state.connections)
    await leave(server)
    server.config.timeout_notify = 0
    server.config.callback_notify = notify

    await asyncio.wait_for(notified.wait(), 30)


async def test_worker_gives_signs_of_life_after_the_clock_was_set_back(
    server: FairServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs: list[float] = []
    now = 1_000_000.0

    async def notify() -> None:
        signs.append(now)

    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr(server.config, "callback_notify", notify)
    monkeypatch.setattr(server.config, "timeout_notify", 1)
    server.last_notified = 0.0
    await server.on_tick(0)

    now -= 3600
    await server.on_tick(0)
    now += 1.5
    await server.on_tick(0)

    assert signs == [1_000_000.0, 1_000_000.0 - 3600 + 1.5]
