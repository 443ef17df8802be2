"""Clients that disconnect before their response: what is cancelled on the server, and what goes on."""

import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import URL, Float, bindparam, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database
from app.database.pool import pool_state
from app.main import create_app
from app.settings import Settings
from app.web.deps import DatabaseDep, ReadDb, StatementDb, WriteDb
from tests.integration.conftest import SECRET_KEY
from tests.support.contacts import Contact
from tests.support.metrics import cancelled_requests
from tests.support.postgres import connect, running_statements
from tests.support.uvicorn_thread import Serving, serving
from tests.support.waiting import eventually

SLEEP = select(func.pg_sleep(bindparam("seconds", type_=Float())).label("slept"), func.pg_backend_pid().label("pid"))
SLOW_INSERT = (
    insert(Contact)
    .from_select(
        ["email", "name"],
        select(text("'gone@example.com'"), text("'Gone'")).select_from(text("pg_sleep(1)")),
    )
    .returning(Contact.id)
)


def add_routes(app: FastAPI) -> None:
    @app.get("/read")
    async def read(db: ReadDb, seconds: float) -> int:
        row = await db.first(SLEEP, seconds=seconds)
        return int(row["pid"]) if row else 0

    @app.get("/read-entities")
    async def read_entities(db: ReadDb) -> int:
        return len(await db.entities(select(Contact).where(func.pg_sleep(30).is_not(None))))

    @app.post("/read-by-post")
    async def read_by_post(db: ReadDb) -> None:
        await db.first(SLEEP, seconds=1.0)
        ended.append("/read-by-post")

    @app.post("/statement")
    async def statement(db: StatementDb) -> None:
        await db.returned(SLOW_INSERT)
        ended.append("/statement")

    @app.post("/write")
    @app.get("/write")
    async def write(db: WriteDb) -> None:
        await db.execute(SLOW_INSERT)
        ended.append("/write")

    @app.get("/database")
    async def database(database: DatabaseDep) -> None:
        async with database.write() as session:
            await session.execute(SLOW_INSERT)
        ended.append("/database")

    @app.get("/state-write")
    async def state_write(request: Request, db: ReadDb) -> None:
        async with request.app.state.database.write() as session:
            await session.execute(SLOW_INSERT)
        ended.append("/state-write")

    @app.get("/state-write-in-a-task")
    async def state_write_in_a_task(request: Request, db: ReadDb) -> None:
        async def insert() -> None:
            await request.app.state.database.statement.returned(SLOW_INSERT)

        await asyncio.create_task(insert())
        ended.append("/state-write-in-a-task")

    @app.get("/state-statement")
    async def state_statement(request: Request, db: ReadDb) -> None:
        await request.app.state.database.statement.returned(SLOW_INSERT)
        ended.append("/state-statement")


# The paths of the requests whose route has come to its end.
ended: list[str] = []


@pytest.fixture
def app(database_url: URL) -> FastAPI:
    """Return the application with more routes, on a pool of two connections."""
    app = create_app(Settings(database_url=database_url, secret_key=SECRET_KEY, db_pool_size=2, db_max_overflow=0))
    add_routes(app)
    return app


@pytest.fixture
def served(app: FastAPI) -> Iterator[Serving]:
    ended.clear()
    with serving(app, lifespan="on") as server:
        yield server


@pytest.fixture
def engine(served: Serving, app: FastAPI) -> AsyncEngine:
    database: Database = app.state.database
    return database.engine


def send(served: Serving, request: str) -> socket.socket:
    """Send a request, and return the connection."""
    client = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    client.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    return client


@pytest.mark.parametrize("database_setup", ["asyncpg", "psycopg", "asyncpg-pgbouncer", "psycopg-pgbouncer"])
def test_read_is_cancelled_and_its_connection_is_kept(served: Serving, engine: AsyncEngine, database_url: URL) -> None:
    address = f"http://127.0.0.1:{served.port}"
    pid = httpx.get(f"{address}/read?seconds=0").json()
    for _ in range(3):
        client = send(served, "GET /read?seconds=30")
        eventually(lambda: running_statements(database_url) == 1, within=60)

        client.close()

        eventually(lambda: running_statements(database_url) == 0, within=60)
        eventually(lambda: str(pool_state(engine)) == "size=2 overflow=0 in_use=0 waiting=0", within=60)
    assert httpx.get(f"{address}/read?seconds=0").json() == pid


def test_read_that_waits_for_a_connection_leaves_the_queue(
    served: Serving, engine: AsyncEngine, database_url: URL
) -> None:
    clients = [send(served, f"GET /read?seconds=30&n={number}") for number in range(4)]
    eventually(lambda: str(pool_state(engine)) == "size=2 overflow=0 in_use=2 waiting=2", within=60)

    for client in clients:
        client.close()

    eventually(lambda: str(pool_state(engine)) == "size=2 overflow=0 in_use=0 waiting=0", within=60)
    eventually(lambda: running_statements(database_url) == 0, within=60)


def test_read_of_entities_is_cancelled(served: Serving, engine: AsyncEngine, database_url: URL) -> None:
    with connect(database_url) as admin:
        admin.execute("INSERT INTO test_contacts (email, name) VALUES ('ann@example.com', 'Ann')")
    client = send(served, "GET /read-entities")
    eventually(lambda: running_statements(database_url) == 1, within=60)

    client.close()

    eventually(lambda: running_statements(database_url) == 0, within=60)
    eventually(lambda: str(pool_state(engine)) == "size=2 overflow=0 in_use=0 waiting=0", within=60)


@pytest.mark.parametrize(
    "request_line",
    [
        "POST /read-by-post",
        "POST /statement",
        "POST /write",
        "GET /write",
        "GET /database",
        "GET /state-write",
        "GET /state-write-in-a-task",
        "GET /state-statement",
    ],
)
def test_request_that_may_write_goes_on_to_its_end(served: Serving, database_url: URL, request_line: str) -> None:
    client = send(served, request_line)
    eventually(lambda: running_statements(database_url) == 1, within=60)

    client.close()

    path = request_line.partition(" ")[2]
    eventually(lambda: ended == [path], within=60)
    if path != "/read-by-post":
        with connect(database_url) as admin:
            eventually(lambda: admin.execute("SELECT FROM test_contacts WHERE name = 'Gone'").fetchall(), within=60)


def test_abandoned_read_is_logged_and_counted(
    served: Serving, database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    counted = cancelled_requests("client_gone")
    client = send(served, "GET /read?seconds=30")
    eventually(lambda: running_statements(database_url) == 1, within=60)

    client.close()

    eventually(lambda: [each for each in caplog.messages if each.startswith("GET /read 499")], within=60)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert cancelled_requests("client_gone") == counted + 1
