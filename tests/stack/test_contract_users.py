"""Users of the stack over HTTP, in containers and as local processes."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest

from tests.support.postgres import connect
from tests.support.stacks import Stack

_numbers = count(1)


def sign_up_data(**fields: Any) -> dict[str, Any]:
    return {"email": f"user.{next(_numbers)}@example.com", "name": "User", "password": "correct horse"} | fields


def post(stack: Stack, path: str, **request: Any) -> httpx.Response:
    return httpx.post(f"{stack.api}{path}", timeout=60, **request)


def test_new_user_is_found_at_its_location(stack: Stack) -> None:
    created = post(stack, "/users", json=sign_up_data(name="Ann"))
    assert created.status_code == 201
    assert "password" not in created.text

    found = httpx.get(f"{stack.api}{created.headers['location']}", timeout=30)
    assert found.json() == {"id": created.json()["id"], "name": "Ann", "created_at": created.json()["created_at"]}


@pytest.mark.alone
def test_simultaneous_sign_ups_with_one_address_succeed_once(stack: Stack) -> None:
    address = sign_up_data()["email"]
    sign_ups = [sign_up_data(email=address.upper() if number % 2 else address) for number in range(40)]

    with (
        httpx.Client(base_url=stack.api, timeout=60) as client,
        ThreadPoolExecutor(len(sign_ups)) as threads,
    ):
        answers = list(threads.map(lambda data: client.post("/users", json=data), sign_ups))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 39
    assert {answer.json()["type"] for answer in answers if answer.status_code == 409} == {"/problems/email-taken"}
    with connect(stack.database_url()) as connection:
        rows = connection.execute("SELECT count(*) FROM users WHERE lower(email) = lower(%s)", (address,)).fetchone()
    assert rows == (1,)


def test_sign_up_with_an_invalid_address_returns_a_problem(stack: Stack) -> None:
    answer = post(stack, "/users", json=sign_up_data(email="ann"))

    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
