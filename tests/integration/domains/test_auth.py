"""Sign-in and access tokens, through the API, on PostgreSQL."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import time
from typing import Any

import jwt
import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import URL

from app.database.pool import pool_state
from app.domains.auth import router, service
from app.domains.auth.service import SignInLimits
from app.domains.auth.tokens import AUDIENCE, ISSUER
from app.domains.users import passwords
from app.domains.users.passwords import Verification
from app.domains.users.repository import UserRepository
from tests.integration.conftest import SECRET_KEY
from tests.support.people import PASSWORD, person, sign_in
from tests.support.postgres import connect
from tests.support.waiting import eventually_async

ANN = {"email": "ann@example.com", "name": "Ann", "password": PASSWORD}


def set_limits(app: FastAPI, *, per_account: int = 1000, per_address: int = 1000, window_seconds: int = 900) -> None:
    app.state.sign_in._limits = SignInLimits(per_account, per_address, window_seconds)


def used_connections(app: FastAPI) -> int:
    state = pool_state(app.state.database.engine)
    assert state is not None
    return state.used


def problem(answer: Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"]


async def test_sign_in_returns_a_valid_bearer_token(client: AsyncClient) -> None:
    await client.post("/users", json=ANN)

    answer = await sign_in(client, "ANN@example.com")

    assert answer.status_code == 200
    body = answer.json()
    assert (body["token_type"], body["expires_in"], set(body)) == (
        "bearer", 1800, {"access_token", "token_type", "expires_in"}
    )  # fmt: skip
    assert answer.headers["cache-control"] == "no-store"
    me = await client.get("/users/me", headers={"authorization": f"Bearer {body['access_token']}"})
    assert me.json()["email"] == "ann@example.com"


async def test_failed_sign_in_does_not_tell_the_reason(client: AsyncClient, database_url: URL) -> None:
    """Wrong password, unknown address and inactive user get the same answer."""
    await client.post("/users", json=ANN)
    answers = [await sign_in(client, "ann@example.com", "wrong horse"), await sign_in(client, "bob@example.com")]
    with connect(database_url) as connection:
        connection.execute("UPDATE users SET deactivated_at = now()")
    answers.append(await sign_in(client, "ann@example.com"))

    for answer in answers:
        assert problem(answer) == (401, "/problems/invalid-credentials")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len({answer.json()["detail"] for answer in answers}) == 1


async def test_sign_ins_that_wait_for_a_lock_leave_a_connection_to_the_others(
    app: FastAPI, client: AsyncClient, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign-ins of one client wait for one row, in the lane that comes first."""
    monkeypatch.setattr(service, "TRANSACTION_WAIT_SECONDS", 60.0)
    location = (await client.post("/users", json=ANN)).headers["location"]
    with connect(database_url) as connection, connection.transaction():
        connection.execute("LOCK TABLE sign_in_attempts IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(sign_in(client, ANN["email"], "wrong horse")) for _ in range(10)]

        async def are_blocked() -> bool:
            return passwords.SIGN_IN_QUEUE.used == 10 and used_connections(app) == 2

        await eventually_async(are_blocked, within=60, jobs=waiting)
        for _ in range(5):
            assert (await client.get(location)).status_code == 200
            assert used_connections(app) == 2

    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {401}


async def test_sign_in_that_waits_too_long_for_its_transaction_gets_503(
    app: FastAPI, client: AsyncClient, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "TRANSACTION_WAIT_SECONDS", 0.1)
    await client.post("/users", json=ANN)
    with connect(database_url) as connection, connection.transaction():
        connection.execute("LOCK TABLE sign_in_attempts IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(sign_in(client, ANN["email"])) for _ in range(3)]
        [refused], _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

        assert problem(refused.result()) == (503, "/problems/server-busy")

    monkeypatch.setattr(service, "TRANSACTION_WAIT_SECONDS", 60.0)
    assert sorted(answer.status_code for answer in await asyncio.gather(*waiting)) == [200, 200, 503]


@pytest.mark.parametrize(
    "form", [{}, {"username": "ann@example.com"}, {"username": "a", "password": "b", "grant_type": "x"}]
)
async def test_incomplete_form_is_422(client: AsyncClient, form: dict[str, str]) -> None:
    assert problem(await client.post("/auth/token", data=form)) == (422, "/problems/validation-error")


@pytest.mark.parametrize("name", ["\x00", "an\0n", "\xed\xa0\x80", "x" * 100_000])
async def test_impossible_address_is_a_problem(client: AsyncClient, name: str) -> None:
    status, slug = problem(await sign_in(client, name))

    assert (status, slug) == (
        (422, "/problems/validation-error") if "\0" in name else (401, "/problems/invalid-credentials")
    )


FORGERIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "expired": lambda claims: jwt.encode(claims | {"exp": int(time()) - 1}, SECRET_KEY, "HS256"),
    "other key": lambda claims: jwt.encode(claims, "x" * 64, "HS256"),
    "other algorithm": lambda claims: jwt.encode(claims, SECRET_KEY + "x" * 32, "HS512"),
    "no algorithm": lambda claims: jwt.encode(claims, None, "none"),
    "other audience": lambda claims: jwt.encode(claims | {"aud": "other"}, SECRET_KEY, "HS256"),
    "other issuer": lambda claims: jwt.encode(claims | {"iss": "other"}, SECRET_KEY, "HS256"),
    "user not a number": lambda claims: jwt.encode(claims | {"sub": "ann"}, SECRET_KEY, "HS256"),
    "user beyond bigint": lambda claims: jwt.encode(claims | {"sub": str(2**63)}, SECRET_KEY, "HS256"),
    "user of 5000 digits": lambda claims: jwt.encode(claims | {"sub": "9" * 5000}, SECRET_KEY, "HS256"),
    "no expiry": lambda claims: jwt.encode({k: v for k, v in claims.items() if k != "exp"}, SECRET_KEY, "HS256"),
    "not a token": lambda claims: "none",
    "not ASCII": lambda claims: "\u00e9.\u00e9.\u00e9",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_invalid_token_is_401(
    client: AsyncClient, database_url: URL, forge: Callable[[dict[str, Any]], str]
) -> None:
    ann = await person(client, "Ann", database_url)
    now = int(time())
    claims = {"sub": str(ann.id), "iat": now, "exp": now + 60, "iss": ISSUER, "aud": AUDIENCE}
    valid = jwt.encode(claims, SECRET_KEY, "HS256")
    assert (await client.get("/users/me", headers={"authorization": f"Bearer {valid}"})).status_code == 200

    bearer = f"Bearer {forge(claims)}".encode()
    answer = await client.get("/users/me", headers=[(b"authorization", bearer)])

    assert problem(answer) == (401, "/problems/not-authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("statement", ["DELETE FROM users", "UPDATE users SET deactivated_at = now()"])
async def test_token_of_a_deleted_or_inactive_user_is_401(
    client: AsyncClient, database_url: URL, statement: str
) -> None:
    ann = await person(client, "Ann", database_url)
    assert (await ann("GET", "/users/me")).status_code == 200

    with connect(database_url) as connection:
        connection.execute(statement.encode())

    assert problem(await ann("GET", "/users/me")) == (401, "/problems/not-authenticated")
    assert (await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})).status_code == 401


async def test_failed_sign_ins_are_limited_per_account(app: FastAPI, client: AsyncClient) -> None:
    """The limit does not tell whether the address has an account."""
    await client.post("/users", json=ANN)
    set_limits(app, per_account=3)

    for email in ("ann@example.com", "bob@example.com"):
        answers = [await sign_in(client, email.upper() if n % 2 else email, "wrong horse") for n in range(5)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert problem(answers[-1]) == (429, "/problems/too-many-attempts")
        assert 0 < int(answers[-1].headers["retry-after"]) <= 900

    assert (await sign_in(client, "ann@example.com")).status_code == 429, "the correct password was accepted"
    assert (await sign_in(client, "cy@example.com")).status_code == 401, "another account is limited"


async def test_failed_sign_ins_are_limited_per_address(app: FastAPI, client: AsyncClient) -> None:
    set_limits(app, per_address=3)

    answers = [await sign_in(client, f"user{n}@example.com") for n in range(5)]

    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]


async def test_concurrent_attempts_are_all_counted(app: FastAPI, client: AsyncClient) -> None:
    """Each attempt has its own connection, like those of other workers and replicas."""
    set_limits(app, per_account=5)

    statuses = [
        answer.status_code for answer in await asyncio.gather(*(sign_in(client, "ann@example.com") for _ in range(20)))
    ]

    assert sorted(statuses)[:5] == [401] * 5
    assert set(sorted(statuses)[5:]) == {429}


async def test_successful_sign_in_resets_the_account_and_not_the_address(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    await client.post("/users", json=ANN)
    set_limits(app, per_account=3, per_address=3)

    for _ in range(5):
        assert (await sign_in(client, "ann@example.com", "wrong horse")).status_code == 401
        assert (await sign_in(client, "ann@example.com")).status_code == 200
        with connect(database_url) as connection:
            connection.execute("UPDATE sign_in_attempts SET attempts = 0 WHERE subject LIKE 'address:%'")

    for _ in range(10):
        assert (await sign_in(client, "ann@example.com")).status_code == 200


async def test_failed_sign_ins_expire_after_the_window_and_are_deleted(
    app: FastAPI, client: AsyncClient, database_url: URL
) -> None:
    set_limits(app, per_account=1)
    await sign_in(client, "ann@example.com")
    assert (await sign_in(client, "ann@example.com")).status_code == 429

    with connect(database_url) as connection:
        connection.execute("UPDATE sign_in_attempts SET expires_at = expires_at - %s", (timedelta(hours=1),))
    assert (await sign_in(client, "ann@example.com")).status_code == 401

    with connect(database_url) as connection:
        connection.execute("UPDATE sign_in_attempts SET expires_at = expires_at - %s", (timedelta(hours=1),))
        await sign_in(client, "bob@example.com")
        rows = connection.execute("SELECT count(*) FROM sign_in_attempts WHERE expires_at < now()").fetchone()
    assert rows == (0,)


async def test_sign_in_replaces_a_hash_with_outdated_parameters(client: AsyncClient, database_url: URL) -> None:
    await client.post("/users", json=ANN)
    outdated = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)

    def stored() -> str:
        with connect(database_url) as connection:
            row = connection.execute("SELECT password_hash FROM users").fetchone()
            assert row is not None
            return str(row[0])

    with connect(database_url) as connection:
        connection.execute("UPDATE users SET password_hash = %s", (outdated,))
    assert (await sign_in(client, "ann@example.com", "wrong horse")).status_code == 401
    assert stored() == outdated

    assert (await sign_in(client, "ann@example.com")).status_code == 200

    assert stored() != outdated
    assert (await sign_in(client, "ann@example.com")).status_code == 200


async def test_connection_is_not_held_while_a_password_is_verified(
    app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifying, go_on = asyncio.Event(), asyncio.Event()

    async def slow(password: str, known_hash: str | None) -> Verification:
        verifying.set()
        await go_on.wait()
        return Verification(is_correct=False)

    monkeypatch.setattr(service, "verify_password", slow)
    signing_in = asyncio.create_task(sign_in(client, "ann@example.com"))
    await verifying.wait()

    state = pool_state(app.state.database.engine)
    assert state is not None
    assert state.used == 0
    go_on.set()
    assert (await signing_in).status_code == 401


@pytest.mark.parametrize("address", ["İ@example.com", "ΑΣ@example.com", "ANN@example.com"])
async def test_attempts_for_all_spellings_of_an_address_are_counted_together(
    app: FastAPI, client: AsyncClient, address: str
) -> None:
    """PostgreSQL and Python fold some letters differently. Attempts are counted by what finds the account."""
    await client.post("/users", json=ANN)
    set_limits(app, per_account=2)
    spellings = [address, address.lower(), address.upper(), address.swapcase(), address.casefold()]
    allowed: Counter[str] = Counter()
    for each in spellings * 3:
        if (await sign_in(client, each, "wrong horse")).status_code == 401:
            async with app.state.database.write() as session:
                allowed[(await UserRepository(session).credentials(each)).folded_email] += 1

    assert set(allowed.values()) == {2}, "two attempts per account"


async def test_address_over_its_limit_does_not_lock_the_account(app: FastAPI, client: AsyncClient) -> None:
    await client.post("/users", json=ANN)
    set_limits(app, per_account=3, per_address=2)
    for _ in range(10):
        await sign_in(client, "ann@example.com", "wrong horse")

    set_limits(app, per_account=3)
    assert (await sign_in(client, "ann@example.com")).status_code == 200


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("testclient", "testclient", True),
    ],
)
def test_client_address_is_counted_by_its_network(first: str, second: str, same: bool) -> None:
    assert (service._network(first) == service._network(second)) is same


async def test_clients_without_an_address_share_a_limit_and_one_warning(
    app: FastAPI, json_log: Callable[[], str]
) -> None:
    router.warn_of_unknown_addresses.cache_clear()
    set_limits(app, per_address=2)
    unix_socket = ASGITransport(app, client=None)  # type: ignore[arg-type]  # what Uvicorn passes for a Unix socket
    async with AsyncClient(transport=unix_socket, base_url="http://test") as client:
        answers = [await sign_in(client, f"user{n}@example.com") for n in range(3)]

    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert json_log().count("client addresses are unknown") == 1


class Argon2Spy:
    """Records the Argon2 calls of a sign-in, which take nearly all of its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("verify", "hash"):
            function = getattr(passwords._password_hash, name)
            monkeypatch.setattr(passwords._password_hash, name, self._recorder(name, function))

    def _recorder(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorder(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            password_hash = arguments[1] if name == "verify" else result
            self.calls.append(f"{name} {password_hash.split('$')[3]}")
            return result

        return recorder


FULL = "m=65536,t=3,p=4"
CHEAP = "m=8192,t=1,p=1"


@pytest.mark.parametrize(
    ("stored", "password", "is_active", "calls"),
    [
        (None, PASSWORD, True, [f"verify {FULL}"]),
        (FULL, PASSWORD, True, [f"verify {FULL}"]),
        (FULL, "wrong horse", True, [f"verify {FULL}"]),
        (FULL, PASSWORD, False, [f"verify {FULL}"]),
        (CHEAP, PASSWORD, True, [f"verify {CHEAP}", f"hash {FULL}"]),
        (CHEAP, "wrong horse", True, [f"verify {CHEAP}", f"verify {FULL}"]),
        (CHEAP, PASSWORD, False, [f"verify {CHEAP}", f"verify {FULL}"]),
    ],
    ids=[
        "unknown",
        "known",
        "wrong",
        "inactive",
        "outdated",
        "outdated and wrong",
        "outdated and inactive",
    ],
)
@pytest.mark.usefixtures("real_hashes")
async def test_timing_of_a_failed_sign_in_does_not_tell_the_reason(
    client: AsyncClient,
    database_url: URL,
    monkeypatch: pytest.MonkeyPatch,
    stored: str | None,
    password: str,
    is_active: bool,
    calls: list[str],
) -> None:
    if stored:
        await client.post("/users", json=ANN)
        with connect(database_url) as connection:
            if not is_active:
                connection.execute("UPDATE users SET deactivated_at = now()")
            if stored == CHEAP:
                cheap = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
                connection.execute("UPDATE users SET password_hash = %s", (cheap,))
    spy = Argon2Spy(monkeypatch)

    await sign_in(client, "ann@example.com", password)

    assert spy.calls == calls


async def wait_until_full(queue: passwords.HashQueue) -> None:
    async def is_full() -> bool:
        return queue.used == queue.capacity

    await eventually_async(is_full, within=60)


async def test_sign_in_with_a_full_queue_is_503_and_not_counted(
    client: AsyncClient, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Event()
    monkeypatch.setattr(passwords._password_hash, "verify", lambda password, known_hash: go_on.wait() and False)
    monkeypatch.setattr(passwords.SIGN_IN_QUEUE, "capacity", 1)
    first = asyncio.create_task(sign_in(client, "bob@example.com"))
    try:
        await wait_until_full(passwords.SIGN_IN_QUEUE)

        answer = await sign_in(client, "ann@example.com")
    finally:
        go_on.set()

    assert problem(answer) == (503, "/problems/server-busy")
    assert answer.headers["retry-after"] == "1"
    assert (await first).status_code == 401
    with connect(database_url) as connection:
        counted = connection.execute("SELECT subject, attempts FROM sign_in_attempts ORDER BY 1 DESC").fetchall()
    assert [(subject.partition(":")[0], attempts) for subject, attempts in counted] == [("address", 1), ("account", 1)]


async def test_sign_in_does_not_wait_for_sign_ups(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = Event()
    monkeypatch.setattr(passwords._password_hash, "hash", lambda password: go_on.wait() and "hash")
    monkeypatch.setattr(passwords.NEW_PASSWORD_QUEUE, "capacity", 3)
    signing_up = [asyncio.create_task(client.post("/users", json=ANN)) for _ in range(3)]
    try:
        await wait_until_full(passwords.NEW_PASSWORD_QUEUE)

        assert (await sign_in(client, "bob@example.com")).status_code == 401
        assert problem(await client.post("/users", json=ANN)) == (503, "/problems/server-busy")
    finally:
        go_on.set()
    assert sorted(answer.status_code for answer in await asyncio.gather(*signing_up)) == [201, 409, 409]
