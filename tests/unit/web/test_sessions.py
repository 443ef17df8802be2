"""Sessions in routes, and their misuse: in background tasks, streams, middleware, WebSockets, mounted applications."""

import asyncio
import functools
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket, WebSocketDisconnect
from httpx import AsyncClient
from sqlalchemy import func, insert, select
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from app.database import Database, WriteSession
from app.errors import DatabaseUnavailable
from app.pagination.page import ListParams
from app.web.auth import SignedIn
from app.web.deps import DatabaseDep, ReadDb, StatementDb, WriteDb
from app.web.pagination import CursorCodec, ListQuery
from tests.support.asgi import open_websocket
from tests.support.contacts import Contact, ContactNotFound, new_contact

ENDED = "write session has ended"
COUNT = select(func.count().label("count")).select_from(Contact)
ADD = insert(Contact).values(email="ann@example.com", name="Ann").returning(Contact.id)


async def count(database: Database) -> int:
    [row] = await database.read.all(COUNT)
    return int(row["count"])


async def test_write_session_in_background_task_raises(app: FastAPI, client: AsyncClient, database: Database) -> None:
    errors: list[Exception] = []

    async def add(db: WriteSession) -> None:
        try:
            db.add(new_contact("bob@example.com"))
            await db.flush()
        except RuntimeError as error:
            errors.append(error)

    @app.post("/later", status_code=202)
    async def later(db: WriteDb, tasks: BackgroundTasks) -> None:
        db.add(new_contact())
        tasks.add_task(add, db)

    assert (await client.post("/later")).status_code == 202
    [error] = errors
    assert ENDED in str(error)
    assert await count(database) == 1


async def test_own_transaction_in_background_task_is_committed(
    app: FastAPI, client: AsyncClient, database: Database
) -> None:
    async def add(database: Database) -> None:
        async with database.write() as session:
            session.add(new_contact())

    @app.post("/later", status_code=202)
    async def later(database: DatabaseDep, tasks: BackgroundTasks) -> None:
        tasks.add_task(add, database)

    assert (await client.post("/later")).status_code == 202
    assert await count(database) == 1


async def test_write_session_in_stream_raises(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/stream")
    async def stream(db: WriteDb) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield f"{await db.scalar(COUNT)}\n"

        return StreamingResponse(lines())

    with pytest.raises(RuntimeError, match=ENDED):
        await client.get("/stream")


async def test_own_transaction_in_stream_is_committed(app: FastAPI, client: AsyncClient, database: Database) -> None:
    @app.get("/stream")
    async def stream(database: DatabaseDep) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async with database.write() as session:
                session.add(new_contact())
                await session.flush()
                yield "one\n"

        return StreamingResponse(lines())

    assert (await client.get("/stream")).text == "one\n"
    assert await count(database) == 1


async def test_write_session_kept_in_application_state_raises(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/kept")
    async def kept(request: Request, db: WriteDb) -> int | None:
        state = request.app.state
        state.session = getattr(state, "session", db)
        count: int | None = await state.session.scalar(COUNT)
        return count

    assert (await client.get("/kept")).json() == 0
    response = await client.get("/kept")
    assert response.status_code == 500


async def hidden_transaction(request: Request) -> AsyncIterator[WriteSession]:
    """A transaction that the check at startup cannot see: it is entered by a name."""
    async with getattr(request.app.state.database, "wri" + "te")() as session:
        yield session


@pytest.mark.parametrize("status", [201, 204, 302])
async def test_late_transaction_is_rolled_back_and_answered_with_500(
    app: FastAPI, client: AsyncClient, database: Database, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    @app.post("/late", status_code=status)
    async def late(db: Annotated[WriteSession, Depends(hidden_transaction)]) -> None:
        db.add(new_contact())

    response = await client.post("/late")

    assert response.status_code == 500
    assert response.json()["type"] == "/problems/internal-error"
    assert 'scope="function"' in caplog.text
    assert await count(database) == 0


async def test_late_transaction_of_an_error_response_is_rolled_back(
    app: FastAPI, client: AsyncClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    @app.post("/late")
    async def late(db: Annotated[WriteSession, Depends(hidden_transaction)]) -> JSONResponse:
        db.add(new_contact())
        return JSONResponse({}, 409)

    assert (await client.post("/late")).status_code == 409
    assert "before its transaction is committed" in caplog.text
    assert await count(database) == 0


async def test_error_raised_in_late_transaction_is_answered(app: FastAPI, client: AsyncClient) -> None:
    @app.post("/late")
    async def late(db: Annotated[WriteSession, Depends(hidden_transaction)]) -> None:
        raise ContactNotFound(7)

    assert (await client.post("/late")).status_code == 404


async def test_same_dependency_with_function_scope_is_committed(
    app: FastAPI, client: AsyncClient, database: Database
) -> None:
    @app.post("/in-time", status_code=201)
    async def in_time(db: Annotated[WriteSession, Depends(hidden_transaction, scope="function")]) -> None:
        db.add(new_contact())

    assert (await client.post("/in-time")).status_code == 201
    assert await count(database) == 1


async def test_transactions_that_overlap_are_answered(app: FastAPI, client: AsyncClient, database: Database) -> None:
    """The first one ends before the second one, which began inside of it."""

    @app.post("/overlap", status_code=201)
    async def overlap(database: DatabaseDep) -> None:
        first, second = database.write(), database.write()
        (await first.__aenter__()).add(new_contact())
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)

    assert (await client.post("/overlap")).status_code == 201
    assert await count(database) == 1


async def test_transaction_that_is_never_ended_is_answered_with_500(app: FastAPI, client: AsyncClient) -> None:
    opened: list[Any] = []

    async def forgotten(database: DatabaseDep) -> WriteSession:
        opened.append(database.write())
        return await opened[0].__aenter__()  # type: ignore[no-any-return]

    @app.post("/forgotten")
    async def forget(db: Annotated[WriteSession, Depends(forgotten)]) -> None:
        db.add(new_contact())

    assert (await client.post("/forgotten")).status_code == 500
    with pytest.raises(RuntimeError, match="before its transaction is committed"):
        await opened[0].__aexit__(None, None, None)


@pytest.mark.parametrize("position", [1, 3], ids=["outside of ErrorMiddleware", "inside"])
async def test_transaction_of_a_middleware_is_rolled_back(
    app: FastAPI, client: AsyncClient, database: Database, position: int
) -> None:
    """Outside of ErrorMiddleware, its block ends normally after a 500 was sent: it must not commit then either."""

    class Transaction:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async with database.write() as session:
                session.add(new_contact())
                await self.app(scope, receive, send)

    app.user_middleware.insert(position, Middleware(Transaction))
    if position == 1:
        with pytest.raises(RuntimeError, match="before its transaction is committed"):
            await client.get("/livez")
    else:
        assert (await client.get("/livez")).status_code == 500

    assert await count(database) == 0


async def test_independent_task_may_commit_after_the_response(
    app: FastAPI, client: AsyncClient, database: Database
) -> None:
    responded = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    @app.post("/fire", status_code=202)
    async def fire(database: DatabaseDep) -> None:
        async def add() -> None:
            async with database.write() as session:
                session.add(new_contact())
                await responded.wait()

        tasks.append(asyncio.create_task(add()))
        await asyncio.sleep(0)

    assert (await client.post("/fire")).status_code == 202
    responded.set()
    await tasks[0]
    assert await count(database) == 1


async def test_request_inside_a_transaction_of_its_caller_is_answered(client: AsyncClient, database: Database) -> None:
    """A test that calls the application while it holds a transaction of its own."""
    async with database.write() as session:
        session.add(new_contact())
        assert (await client.get("/livez")).status_code == 200

    assert await count(database) == 1


# WebSockets


async def test_every_session_works_in_a_websocket(app: FastAPI, database: Database) -> None:
    """The handler's return ends the transaction of WriteDb, so it is committed after the messages were sent."""

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, read: ReadDb, write: WriteDb, statement: StatementDb) -> None:
        await websocket.accept()
        await statement.returned(ADD)
        row = await read.first(COUNT)
        assert row is not None
        write.add(new_contact("bob@example.com"))
        await websocket.send_json(row["count"])
        await websocket.receive_text()

    async with open_websocket(app, "/socket") as client:
        assert (await client.receive())["type"] == "websocket.accept"
        assert (await client.receive())["text"] == "1"
        await client.send("done")
        await client.closed

    assert await count(database) == 2


async def test_websocket_with_a_transaction_for_each_message_commits_each(app: FastAPI, database: Database) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket, database: DatabaseDep) -> None:
        await websocket.accept()
        async for email in websocket.iter_text():
            async with database.write() as session:
                session.add(new_contact(email))
            await websocket.send_text("saved")

    async with open_websocket(app, "/socket") as client:
        await client.receive()
        for number in (1, 2):
            await client.send(f"{number}@example.com")
            assert (await client.receive())["text"] == "saved"
            assert await count(database) == number


async def test_websocket_handler_that_raises_is_rolled_back(app: FastAPI, database: Database) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket, db: WriteDb) -> None:
        await websocket.accept()
        db.add(new_contact())
        await db.flush()
        raise WebSocketDisconnect(1000)

    async with open_websocket(app, "/socket") as client:
        await client.receive()

    assert await count(database) == 0


# Mounted applications


async def only_read(db: ReadDb) -> int:
    row = await db.first(COUNT)
    assert row is not None
    return int(row["count"])


class ThingListParams(ListParams):
    sort: str = "id"


def inner_application() -> FastAPI:
    inner = FastAPI()

    @inner.get("/count")
    async def count(count: Annotated[int, Depends(only_read)]) -> int:
        return count

    @inner.post("/test-contacts", status_code=201)
    async def add(db: WriteDb, statement: StatementDb) -> None:
        db.add(new_contact("bob@example.com"))
        await statement.returned(ADD)

    @inner.get("/me")
    async def me(principal: SignedIn) -> int:
        return principal.id

    @inner.get("/cursors")
    async def cursors(codec: CursorCodec, params: ListQuery[ThingListParams]) -> str:
        return type(codec).__name__

    return inner


MOUNTS: dict[str, tuple[Any, str]] = {
    "mounted": (lambda app, inner: app.mount("/inner", inner), "/inner"),
    "mounted twice": (
        lambda app, inner: app.mount("/outer", functools.reduce(_mounted, [inner], FastAPI())),
        "/outer/inner",
    ),
    "behind a middleware": (lambda app, inner: app.mount("/inner", GZipMiddleware(inner)), "/inner"),
    "in an included router": (
        lambda app, inner: app.include_router(APIRouter(routes=[Mount("/inner", inner)])),
        "/inner",
    ),
}


def _mounted(outer: FastAPI, inner: FastAPI) -> FastAPI:
    outer.mount("/inner", inner)
    return outer


@pytest.mark.parametrize(("mount", "prefix"), MOUNTS.values(), ids=MOUNTS.keys())
async def test_mounted_application_uses_the_sessions_of_the_outermost(
    app: FastAPI, client: AsyncClient, mount: Any, prefix: str
) -> None:
    mount(app, inner_application())

    assert (await client.post(f"{prefix}/test-contacts")).status_code == 201
    assert (await client.get(f"{prefix}/count")).json() == 2
    assert (await client.get(f"{prefix}/cursors")).json() == "Cursors"
    response = await client.get(f"{prefix}/me")
    assert (response.status_code, response.json()["type"]) == (401, "/problems/not-authenticated")


async def test_mounted_application_with_a_database_of_its_own_uses_that(
    app: FastAPI, client: AsyncClient, database: Database
) -> None:
    class Other:
        read = "other"

    inner = FastAPI()
    inner.state.database = Other()

    @inner.get("/read")
    async def read(db: ReadDb) -> Any:
        return db

    app.mount("/inner", inner)

    assert (await client.get("/inner/read")).json() == "other"


async def test_late_transaction_in_mounted_application_is_refused(
    app: FastAPI, client: AsyncClient, database: Database
) -> None:
    inner = FastAPI()

    async def transaction() -> AsyncIterator[WriteSession]:
        async with database.write() as session:
            yield session

    @inner.post("/late", status_code=201)
    async def late(db: Annotated[WriteSession, Depends(transaction)]) -> None:
        db.add(new_contact())

    app.mount("/inner", inner)

    assert (await client.post("/inner/late")).status_code == 500
    assert await count(database) == 0


async def test_temporary_error_of_a_session_in_a_websocket_closes_it(app: FastAPI) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise DatabaseUnavailable("down")

    async with open_websocket(app, "/socket") as client:
        await client.receive()
        message = await client.receive()

    assert (message["code"], message["reason"]) == (1013, "/problems/database-unavailable")
