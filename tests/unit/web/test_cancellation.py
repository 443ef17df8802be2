"""Which requests may be cancelled when their client has gone."""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request
from httpx import AsyncClient
from starlette.types import Message, Receive, Scope, Send

from app.errors import DeadlineExceeded
from app.request_context import note_write, request_scope, writes
from app.request_deadline import RequestDeadline, cancelled_write, committing, request_deadline
from app.web.cancellation import deadline_in, end_abandoned, only_reads
from app.web.deps import DatabaseDep, PrimaryReadDb, ReadDb, StatementDb, WriteDb
from app.web.middleware import ErrorMiddleware
from app.web.operation import Exchange, exchange_of


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/read", True),
        ("HEAD", "/read", True),
        ("GET", "/mounted/read", True),
        ("GET", "/read-on-primary", True),
        ("GET", "/read-and-write", False),
        ("GET", "/read-and-nested-database", False),
        ("GET", "/statement", False),
        ("GET", "/nothing", False),
        ("POST", "/read", False),
    ],
)
async def test_route_only_reads_if_its_sessions_do(
    app: FastAPI, client: AsyncClient, method: str, path: str, expected: bool
) -> None:
    found: list[bool] = []

    async def note(request: Request) -> None:
        found.append(only_reads(request.scope))

    noting = [Depends(note)]
    mounted = FastAPI()
    for each in (app, mounted):

        @each.api_route("/read", methods=["GET", "HEAD", "POST"], dependencies=noting)
        async def read(db: ReadDb) -> None: ...

    app.mount("/mounted", mounted)

    @app.get("/read-on-primary", dependencies=noting)
    async def read_on_primary(db: PrimaryReadDb) -> None: ...

    @app.get("/read-and-write", dependencies=noting)
    async def read_and_write(db: ReadDb, write: WriteDb) -> None: ...

    async def nested(database: DatabaseDep) -> None: ...

    @app.get("/read-and-nested-database", dependencies=noting)
    async def read_and_nested(db: ReadDb, database: Annotated[None, Depends(nested)]) -> None: ...

    @app.get("/statement", dependencies=noting)
    async def statement(db: StatementDb) -> None: ...

    @app.get("/nothing", dependencies=noting)
    async def nothing() -> None: ...

    response = await client.request(method, path)

    assert response.status_code == 200, response.text
    assert found == [expected]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_response_that_has_begun_is_not_cancelled(app: FastAPI, client: AsyncClient, has_begun: bool) -> None:
    statuses: list[Any] = []

    @app.get("/leaving")
    async def leaving(request: Request, db: ReadDb) -> None:
        exchange = exchange_of(request.scope)
        assert exchange is not None
        exchange.status = 200 if has_begun else 0
        end_abandoned(request.scope)
        await asyncio.sleep(0)
        statuses.append("ended")

    if has_begun:
        assert (await client.get("/leaving")).status_code == 200
    else:
        with pytest.raises(AssertionError):  # of httpx: there is no response
            await client.get("/leaving")

    assert statuses == (["ended"] if has_begun else [])


async def test_late_transaction_of_a_background_task_is_committed() -> None:
    exchange = Exchange({}, "id")
    with deadline_in(0, exchange):
        with pytest.raises(DeadlineExceeded), committing():
            pass

        exchange.status = 200

        with committing():
            pass


async def test_late_transaction_of_an_ended_request_is_not_committed() -> None:
    """A task that the request has left behind must not store anything: the client was told so."""
    exchange = Exchange({}, "id")
    ended = asyncio.Event()
    with deadline_in(0, exchange) as deadline:
        exchange.task = asyncio.create_task(ended.wait())
        await asyncio.wait([exchange.task], timeout=20)
        assert deadline.is_over

        exchange.status = 503

        with pytest.raises(DeadlineExceeded), committing():
            pass


async def test_write_is_noted_without_a_middleware_around() -> None:
    """A mounted application may have no RequestMiddleware."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        note_write()

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await ErrorMiddleware(application)(scope, receive, send)

    assert writes(scope)
    assert not request_scope.get()


async def test_write_of_a_child_task_that_is_cancelled_at_the_deadline_has_an_unknown_outcome(
    app: FastAPI, client: AsyncClient
) -> None:
    """Its error is lost: gather() raises the cancellation."""

    @app.post("/write")
    async def write() -> None:
        async def read() -> None:
            await asyncio.sleep(60)

        async def statement() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise cancelled_write() from None

        await asyncio.gather(read(), statement())

    response = await client.post("/write", headers={"request-timeout": "0.05"})

    assert (response.status_code, response.json()["type"]) == (503, "/problems/outcome-unknown")


async def test_commit_that_fails_next_to_one_that_succeeds_does_not_end_the_request() -> None:
    cancelled: list[bool] = []
    deadline = RequestDeadline(
        time.monotonic() + 60, response_has_begun=lambda: False, cancel=lambda: cancelled.append(True)
    )
    token = request_deadline.set(deadline)
    try:
        with suppress(ValueError), committing():
            with committing():
                assert deadline.commits == 2
            deadline.at = 0.0
            raise ValueError
    finally:
        request_deadline.reset(token)

    assert deadline.is_stored
    assert not cancelled
