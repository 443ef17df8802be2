"""Users, through the API, on a real PostgreSQL."""

import asyncio
from collections.abc import Callable
from time import sleep

import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import URL

from app.database.pool import pool_state
from app.development.holding import watch_holders
from app.domains.users import passwords, service
from tests.support.people import person, sign_in
from tests.support.postgres import connect

ANN = {"email": "Ann@Example.com", "name": "Ann", "password": "correct horse"}


async def test_sign_up_returns_the_user_and_its_location(client: AsyncClient) -> None:
    answer = await client.post("/users", json=ANN)

    assert answer.status_code == 201
    body = answer.json()
    assert answer.headers["location"] == f"/users/{body['id']}"
    assert body["email"] == "Ann@example.com"
    assert body["created_at"].endswith("Z")
    keys = {"id", "email", "name", "is_active", "deactivated_at", "is_admin", "created_at", "updated_at"}
    assert set(body) == keys
    assert (body["is_active"], body["deactivated_at"], body["is_admin"]) == (True, None, False)


async def test_public_user_has_no_email(client: AsyncClient) -> None:
    created = (await client.post("/users", json=ANN)).json()

    answer = await client.get(f"/users/{created['id']}")

    assert answer.status_code == 200
    assert answer.json() == {"id": created["id"], "name": "Ann", "created_at": created["created_at"]}


async def test_unknown_user_is_404(client: AsyncClient) -> None:
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


async def test_sign_up_with_a_registered_address_is_409_in_any_case(client: AsyncClient) -> None:
    await client.post("/users", json=ANN)

    answer = await client.post("/users", json=ANN | {"email": "aNN@eXample.com"})

    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/email-taken"


async def test_one_of_many_concurrent_sign_ups_with_one_address_succeeds(
    client: AsyncClient, database_url: URL
) -> None:
    answers = await asyncio.gather(*(client.post("/users", json=ANN) for _ in range(20)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19
    with connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM users").fetchone() == (1,)


async def test_password_is_stored_as_an_argon2id_hash(client: AsyncClient, database_url: URL) -> None:
    await client.post("/users", json=ANN)

    with connect(database_url) as connection:
        (stored,) = connection.execute("SELECT password_hash FROM users").fetchone() or ("",)
    assert stored.startswith("$argon2id$")
    assert ANN["password"] not in stored


@pytest.mark.parametrize("failure", ["lock timeout", "constraint"])
async def test_log_of_a_database_error_has_no_hash_and_no_address(
    client: AsyncClient, database_url: URL, json_log: Callable[[], str], failure: str
) -> None:
    """The statement's parameters and PostgreSQL's DETAIL contain both."""
    with connect(database_url) as connection, connection.transaction():
        if failure == "lock timeout":
            connection.execute(f"ALTER DATABASE {database_url.database} SET lock_timeout = '50ms'")
            connection.execute("COMMIT; BEGIN; LOCK TABLE users")
        else:
            connection.execute("ALTER TABLE users ADD CONSTRAINT ck_users_refused CHECK (name <> 'Ann'); COMMIT; BEGIN")
        answer = await client.post("/users", json=ANN)

    assert answer.status_code == (503 if failure == "lock timeout" else 500)
    log = json_log()
    assert ("statement-timeout" if failure == "lock timeout" else "ck_users_refused") in log
    assert "argon2" not in log
    assert "example.com" not in log.lower()


async def test_connection_is_not_held_while_a_password_is_hashed(
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


async def test_user_can_change_the_own_name_and_address(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)

    changed = await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna", "email": "anna@example.com"})

    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["email"]) == ("Anna", "anna@example.com")
    assert (await ann("GET", "/users/me")).json() == changed.json()


async def test_password_change_invalidates_the_old_password(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)

    answer = await ann("PATCH", f"/users/{ann.id}", json={"password": "another horse"})

    assert answer.status_code == 200
    assert "password" not in answer.text
    assert (await sign_in(client, "ann@example.com")).status_code == 401
    assert (await sign_in(client, "ann@example.com", "another horse")).status_code == 200


@pytest.mark.parametrize("patch", [{"name": None}, {"email": None}, {"password": None}, {"is_active": None}, {"id": 7}])
async def test_invalid_change_is_422(client: AsyncClient, database_url: URL, patch: dict[str, object]) -> None:
    ann = await person(client, "Ann", database_url)

    assert (await ann("PATCH", f"/users/{ann.id}", json=patch)).status_code == 422


async def test_change_to_a_registered_address_is_409(client: AsyncClient, database_url: URL) -> None:
    ann = await person(client, "Ann", database_url)
    await person(client, "Bob", database_url)

    answer = await ann("PATCH", f"/users/{ann.id}", json={"email": "BOB@example.com"})

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/email-taken")


async def test_administrator_can_list_filter_and_search_users(client: AsyncClient, database_url: URL) -> None:
    admin = await person(client, "Admin", database_url, is_admin=True)
    bob = await person(client, "Bob", database_url)
    await person(client, "Ann", database_url)
    await admin("PATCH", f"/users/{bob.id}", json={"is_active": False})

    async def names(query: str) -> list[str]:
        return [user["name"] for user in (await admin("GET", f"/users?{query}")).json()["items"]]

    assert await names("sort=name") == ["Admin", "Ann", "Bob"]
    assert await names("") == ["Ann", "Bob", "Admin"]
    assert await names("is_active=false") == ["Bob"]
    assert await names("q=AN&sort=email") == ["Ann"]
    assert await names("q=example.com&is_active=true&sort=-name&cursor=") == ["Ann", "Admin"]


async def test_deactivation_time_is_stored_once_and_cleared(client: AsyncClient, database_url: URL) -> None:
    admin = await person(client, "Admin", database_url, is_admin=True)
    bob = await person(client, "Bob", database_url)

    async def times(patch: dict[str, object]) -> tuple[bool, str | None]:
        """Patch Bob. Return the answer, which must be what is stored."""
        answer = (await admin("PATCH", f"/users/{bob.id}", json=patch)).json()
        [stored] = (await admin("GET", "/users?q=bob@")).json()["items"]
        assert answer == stored
        return stored["is_active"], stored["deactivated_at"]

    is_active, first = await times({"is_active": False})
    assert not is_active
    assert first is not None
    assert await times({"is_active": False, "name": "Robert"}) == (False, first)
    assert await times({"is_active": True}) == (True, None)
    assert await times({"is_active": True}) == (True, None)
    assert await times({"is_active": False}) > (False, first)


async def test_unknown_id_is_404_for_an_administrator(client: AsyncClient, database_url: URL) -> None:
    admin = await person(client, "Admin", database_url, is_admin=True)

    assert (await admin("PATCH", "/users/999", json={"name": "X"})).status_code == 404
    assert (await admin("DELETE", "/users/999")).status_code == 404


@pytest.mark.parametrize(
    ("concurrent_change", "status"),
    [
        ("UPDATE users SET is_admin = false WHERE email = 'boss@example.com'", 403),
        ("UPDATE users SET deactivated_at = now() WHERE email = 'boss@example.com'", 401),
        ("DELETE FROM users WHERE email = 'boss@example.com'", 401),
    ],
)
async def test_change_of_the_caller_during_hashing_revokes_the_request(
    client: AsyncClient, database_url: URL, monkeypatch: pytest.MonkeyPatch, concurrent_change: str, status: int
) -> None:
    ann = await person(client, "Ann", database_url)
    boss = await person(client, "Boss", database_url, is_admin=True)

    async def slow_hash(password: str) -> str:
        with connect(database_url) as connection:
            connection.execute(concurrent_change.encode())
        return "new hash"

    monkeypatch.setattr(service, "hash_password", slow_hash)
    answer = await boss("PATCH", f"/users/{ann.id}", json={"password": "another horse"})

    assert answer.status_code == status
    assert (await sign_in(client, "ann@example.com")).status_code == 200, "the password was changed"


async def test_password_hash_keeps_its_thread_beyond_the_deadline(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, database_url: URL
) -> None:
    """A cancelled request would let the next one hash at the same time."""
    running, most = 0, 0

    class SlowHash:
        def hash(self, password: str) -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            sleep(2.5)
            running -= 1
            return "hash"

    monkeypatch.setattr(passwords, "_password_hash", SlowHash())
    people = [{"email": f"late{n}@example.com", "name": "Late", "password": "correct horse"} for n in range(3)]
    sent = [client.post("/users", json=person, headers={"Request-Timeout": "2"}) for person in people]

    answers = await asyncio.gather(*sent)

    assert {answer.json()["type"] for answer in answers} == {"/problems/deadline-exceeded"}
    assert most == 1
    assert passwords.NEW_PASSWORD_QUEUE.used == 0
    with connect(database_url) as admin:
        assert admin.execute("SELECT FROM users").fetchall() == []


@pytest.mark.parametrize("database_setup", ["asyncpg", "psycopg"])
async def test_requests_for_a_user_hold_no_connection_while_they_wait(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    """Signing up and in hashes passwords in a thread."""
    found: list[str] = []
    watch_holders(app.state.database.engine, found.append)

    ann = await person(client, "Ann", database_url)
    assert (await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})).is_success
    for method, path in (("GET", "/users/me"), ("GET", f"/users/{ann.id}"), ("DELETE", f"/users/{ann.id}")):
        assert (await ann(method, path)).is_success

    assert found == []
