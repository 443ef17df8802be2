"""The clients of the fault harness, against a server whose answers the test chooses."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.fault import traffic as module
from benchmarks.fault.ledger import Comparison, Ledger
from benchmarks.fault.traffic import Account, Client, Failure, Traffic
from tests.support.waiting import eventually_async

# Returns the answer to a request with this body, or None to close the connection.
Script = Callable[[bytes], bytes | None]


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[Traffic]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                _, _, length = head.partition(b"Content-Length: ")
                body = await reader.readexactly(int(length.split()[0])) if length else b""
                if (reply := script(body)) is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Traffic(server.sockets[0].getsockname()[1], Account("/users/1", "token"), Ledger())


def answer(status: int, body: object = None, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def created(body: bytes) -> bytes:
    return answer(201, {"title": json.loads(body)["title"]}, "Location: /posts/7")


@pytest.mark.parametrize(
    ("script", "field"),
    [
        (created, "acknowledged"),
        (lambda _: answer(503, {"type": "/problems/database-unavailable"}), "refused"),
        (lambda _: answer(500, {"type": "/problems/internal-error"}), "refused"),
        (lambda _: answer(503, {"type": "/problems/outcome-unknown"}), "unanswered_absent"),
        (lambda _: None, "unanswered_absent"),
    ],
)
async def test_write_enters_the_ledger_as_the_answer_says(script: Script, field: str) -> None:
    async with served(script) as traffic:
        await traffic.write(Client(traffic))

        stored: list[str] = []
        if field == "acknowledged":
            found = traffic.ledger.any_acknowledged()
            assert found is not None
            stored.append(found[1])
        assert traffic.ledger.compare(stored) == Comparison(0, 0, 0, 0, 0, 0, 0)._replace(**{field: 1})


async def test_answer_to_another_question_is_wrong() -> None:
    async with served(lambda _: answer(201, {"title": "of another client"}, "Location: /posts/7")) as traffic:
        await traffic.write(Client(traffic))

        assert [each.is_wrong for each in traffic.exchanges] == [True]


@pytest.mark.parametrize(("status", "is_wrong"), [(200, False), (404, True), (503, False)])
async def test_acknowledged_write_that_cannot_be_read_is_wrong(status: int, is_wrong: bool) -> None:
    async with served(lambda _: answer(status, {"title": title})) as traffic:
        title = traffic.ledger.begin()
        traffic.ledger.acknowledge(title, "/posts/7")
        await traffic.read_back(Client(traffic))

        assert [(each.result, each.is_wrong) for each in traffic.exchanges] == [(status, is_wrong)]


@pytest.mark.parametrize("hang_up_after", [None, 5.0])
async def test_connection_closed_after_the_request_is_broken(hang_up_after: float | None) -> None:
    async with served(lambda _: None) as traffic:
        await traffic.read_list(Client(traffic), hang_up_after=hang_up_after)

        assert [each.result for each in traffic.exchanges] == [Failure.BROKEN]


async def test_idle_connection_closed_by_the_server_is_no_error() -> None:
    async with served(lambda _: answer(200)) as traffic:
        client = Client(traffic)
        await traffic.read_list(client)
        connection = client._connection
        assert connection is not None
        connection._transport.close()
        await traffic.read_list(client)

        assert [each.result for each in traffic.exchanges] == [200, 200]
        assert client._connection is not connection


async def test_connection_close_in_the_answer_is_obeyed() -> None:
    async with served(lambda _: answer(200, None, "Connection: close")) as traffic:
        client = Client(traffic)
        await traffic.read_list(client)

        assert client._connection is None


async def test_refused_connection_is_not_broken_and_writes_nothing() -> None:
    async with served(lambda _: answer(200)) as traffic:
        pass
    await traffic.write(Client(traffic))

    assert [each.result for each in traffic.exchanges] == [Failure.NOT_CONNECTED]
    assert traffic.ledger.compare([]).refused == 1


async def test_client_gives_up_when_its_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    async with served(lambda _: b"") as traffic:
        await traffic.read_list(Client(traffic))

        assert [each.result for each in traffic.exchanges] == [Failure.SILENT]


async def test_client_that_hangs_up_counts_as_no_failure() -> None:
    async with served(lambda _: b"") as traffic:
        await traffic.write(Client(traffic), hang_up_after=0.01)

        assert [(each.result, each.failed) for each in traffic.exchanges] == [(Failure.ABORTED, False)]
        assert traffic.ledger.compare([]).unanswered_absent == 1


async def test_traffic_follows_its_port_and_stops() -> None:
    async with served(lambda _: answer(503)) as first, served(lambda _: answer(200, {})) as second:
        first.start()

        async def answered() -> bool:
            return len(first.exchanges) > 50

        await eventually_async(answered, within=60)
        assert {each.result for each in first.exchanges} == {503}
        first.port = second.port
        first.exchanges.clear()
        await eventually_async(answered, within=60)
        await first.stop()

        assert {each.result for each in first.exchanges[30:]} == {200}
        assert first.in_flight == {}
