"""A worker with more than its share moves clients to the others, between their requests."""

import asyncio
import socket

import pytest

from app.replica import Replica
from app.server import balance
from app.server.fair_server import FairServer
from tests.support.load import Connection, connect, get
from tests.unit.server.conftest import OTHER_SLOT, OWN_SLOT, serve_in_other_slot, wait_until


@pytest.fixture
async def connections(server: FairServer, sock: socket.socket) -> list[Connection]:
    """Return 40 connections, all of which have had a request."""
    connections = [await connect(sock.getsockname()[1]) for _ in range(40)]
    await asyncio.gather(*(connection.ask(get("/")) for connection in connections))
    server._balancer.find_idle(asyncio.get_running_loop().time())
    return connections


async def test_worker_moves_clients_until_each_worker_has_its_share(
    server: FairServer, replica: Replica, connections: list[Connection]
) -> None:
    async def use(connection: Connection) -> None:
        """Send requests until the server says that it closes the connection. Then the client goes to the other."""
        while not (answer := await connection.ask(get("/"))).is_last:
            assert answer.status == 200
            await asyncio.sleep(0.02)
        replica.connections[OTHER_SLOT] += 1

    serve_in_other_slot(server, replica, 0)
    clients = [asyncio.create_task(use(connection)) for connection in connections]

    await wait_until(lambda: replica.connections[OWN_SLOT] <= 1.25 * replica.connections[OTHER_SLOT] + 1, clients)
    for _ in range(10):
        assert server._balancer.move() == 0, "the shares are even"
    # The server has closed a connection a moment before its client reads that.
    await wait_until(lambda: replica.connections[OWN_SLOT] + replica.connections[OTHER_SLOT] == 40, clients)
    assert replica.connections[OWN_SLOT] >= 20, "no more than its excess was moved"
    for client in clients:
        client.cancel()


@pytest.mark.parametrize(("other", "moved"), [(40, 0), (32, 0), (31, 4), (0, 4)])
async def test_worker_moves_a_tenth_at_once_if_it_is_clearly_ahead(
    server: FairServer, replica: Replica, connections: list[Connection], other: int, moved: int
) -> None:
    serve_in_other_slot(server, replica, other)

    assert server._balancer.move() == moved


async def test_worker_marks_no_more_clients_than_it_has_to_move(
    server: FairServer, replica: Replica, connections: list[Connection]
) -> None:
    """A marked client that sends nothing still counts as moved."""
    serve_in_other_slot(server, replica, 20)

    assert [server._balancer.move() for _ in range(5)] == [4, 4, 2, 0, 0]


async def test_marked_clients_stay_if_the_imbalance_has_ended(
    server: FairServer, replica: Replica, connections: list[Connection]
) -> None:
    serve_in_other_slot(server, replica, 0)
    assert server._balancer.move() == 4
    replica.connections[OTHER_SLOT] = 40

    server._balancer.move()

    answers = await asyncio.gather(*(connection.ask(get("/")) for connection in connections))
    assert not any(answer.is_last for answer in answers)


async def test_request_in_progress_is_finished_before_its_client_moves(
    server: FairServer, replica: Replica, connections: list[Connection], go_on: asyncio.Event
) -> None:
    responses = [connection.ask(get("/wait")) for connection in connections]
    await wait_until(lambda: len(server.server_state.tasks) == 40)
    serve_in_other_slot(server, replica, 0)
    moved = server._balancer.move()
    go_on.set()

    answers = await asyncio.gather(*responses)

    assert {answer.status for answer in answers} == {200}
    assert sum(answer.is_last for answer in answers) >= moved == 4


async def test_idle_connections_neither_count_nor_move(
    server: FairServer, replica: Replica, connections: list[Connection]
) -> None:
    now = asyncio.get_running_loop().time() + balance.IDLE_AFTER_SECONDS
    await asyncio.gather(*(connection.ask(get("/")) for connection in connections[:5]))
    server._balancer.find_idle(now)
    assert replica.connections[OWN_SLOT] == 5

    serve_in_other_slot(server, replica, 0)
    marked = sum(server._balancer.move() for _ in range(10))

    assert marked == 2
    assert not any(connection.is_closed for connection in connections)


async def test_stuck_worker_gets_no_clients(
    server: FairServer, replica: Replica, connections: list[Connection]
) -> None:
    serve_in_other_slot(server, replica, 0)
    replica._ticks[OTHER_SLOT] = 0

    assert server._balancer.move() == 0
