"""Users, through the API, on a real PostgreSQL."""

import asyncio

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import URL

from app.database.pool import pool_state
from app.domains.users import service
from app.observability.logging import configure_logging
from tests.support.postgres import connect

ANN = {"email": "Ann@Example.com", "name": "Ann", "password": "correct horse"}


async def test_signing_up_answers_with_the_new_user_and_where_it_is(client: AsyncClient) -> None:
    answer = await client.post("/users", json=ANN)

    assert answer.status_code == 201
    body = answer.json()
    assert answer.headers["location"] == f"/users/{body['id']}"
    assert body["email"] == "Ann@example.com"
    assert body["created_at"].endswith("Z")
    assert set(body) == {"id", "email", "name", "is_active", "is_admin", "created_at", "updated_at"}
    assert (body["is_active"], body["is_admin"]) == (True, False)


async def test_anyone_may_read_the_name_but_not_the_address(client: AsyncClient) -> None:
    created = (await client.post("/users", json=ANN)).json()

    answer = await client.get(f"/users/{created['id']}")

    assert answer.status_code == 200
    assert answer.json() == {"id": created["id"], "name": "Ann", "created_at": created["created_at"]}


async def test_a_user_who_does_not_exist_is_404(client: AsyncClient) -> None:
    answer = await client.get("/users/1")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "/problems/not-found",
        "title": "Not found",
        "status": 404,
        "detail": "There is no user 1.",
        "instance": "/users/1",
        "request_id": answer.headers["x-request-id"],
    }


async def test_a_known_address_is_409_however_it_is_capitalised(client: AsyncClient) -> None:
    await client.post("/users", json=ANN)

    answer = await client.post("/users", json=ANN | {"email": "aNN@eXample.com"})

    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/email-taken"


async def test_of_many_simultaneous_sign_ups_with_one_address_exactly_one_succeeds(
    client: AsyncClient, database_url: URL
) -> None:
    async def sign_up() -> Response:
        while (answer := await client.post("/users", json=ANN)).status_code == 503:
            pass  # the pool of these tests has three connections
        return answer

    answers = await asyncio.gather(*(sign_up() for _ in range(20)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
    with connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)


async def test_the_password_is_stored_as_an_argon2id_hash(client: AsyncClient, database_url: URL) -> None:
    await client.post("/users", json=ANN)

    with connect(database_url) as connection:
        (stored,) = connection.execute("SELECT password_hash FROM users").fetchone() or ("",)
    assert stored.startswith("$argon2id$")
    assert ANN["password"] not in stored


@pytest.mark.parametrize("trouble", ["a lock", "a row that is refused"])
async def test_no_hash_and_no_address_reaches_the_log(
    client: AsyncClient, database_url: URL, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    """The statement's parameters and PostgreSQL's DETAIL have both."""
    configure_logging(format="json", level="info")
    with connect(database_url) as connection, connection.transaction():
        if trouble == "a lock":
            connection.execute(f"ALTER DATABASE {database_url.database} SET lock_timeout = '50ms'")
            connection.execute("COMMIT; BEGIN; LOCK TABLE users")
        else:
            connection.execute("ALTER TABLE users ADD CONSTRAINT ck_users_nobody CHECK (name <> 'Ann'); COMMIT; BEGIN")
        answer = await client.post("/users", json=ANN)

    assert answer.status_code == (503 if trouble == "a lock" else 500)
    log = capsys.readouterr().out
    assert ("statement-timeout" if trouble == "a lock" else "ck_users_nobody") in log
    assert "argon2" not in log
    assert "example.com" not in log.lower()


async def test_no_connection_is_held_while_a_password_is_hashed(
    app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing, go_on = asyncio.Event(), asyncio.Event()

    async def slow_hash(password: str) -> str:
        hashing.set()
        await go_on.wait()
        return "hash"

    monkeypatch.setattr(service, "hash_password", slow_hash)
    signing_up = asyncio.create_task(client.post("/users", json=ANN))
    await hashing.wait()

    state = pool_state(app.state.database.engine)
    assert state is not None
    assert state.used == 0
    go_on.set()
    assert (await signing_up).status_code == 201
