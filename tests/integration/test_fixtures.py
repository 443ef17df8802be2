"""The fixtures for users' tests: each is used as docs/testing.md shows it, and fails when it should."""

import asyncio

import pytest
from httpx import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database
from app.models import User
from tests.support.factories import Factory
from tests.support.fixtures import AssertStatements, FailStatement, SignUp, Statements, idle_holders_refused


async def test_list_sends_the_same_statements_for_many_rows(
    make: Factory, sign_up: SignUp, assert_statements: AssertStatements
) -> None:
    admin = await sign_up("Admin", is_admin=True)
    for _ in range(3):
        await make(User)

    with assert_statements(3):  # the query for the administrator, the page and the count
        page = (await admin("GET", "/users?limit=2")).json()  # not the end of the list, so it is counted

    assert page["total"] == 4


async def test_other_number_of_statements_fails_and_lists_them(
    client: AsyncClient, assert_statements: AssertStatements
) -> None:
    with (
        pytest.raises(pytest.fail.Exception, match=r"^2 statements instead of 1:\n +1\. SELECT .*\n +2\. SELECT .*$"),
        assert_statements(1),
    ):
        for number in (1, 2):
            await client.get(f"/users/{number}")


async def test_user_who_signs_up_sends_requests(sign_up: SignUp) -> None:
    ann, admin = await sign_up("Ann"), await sign_up("Admin", is_admin=True)

    assert (await ann("GET", "/users/me")).json()["name"] == "Ann"
    assert [(await user("GET", "/users")).status_code for user in (ann, admin)] == [403, 200]


async def test_row_of_the_factory_is_stored(make: Factory, database: Database) -> None:
    first, second = await make(User, name="First"), await make(User)

    assert (first.name, second.name) == ("First", "name 2")
    async with database.write() as session:
        assert (await session.get_one(User, first.id)).email == "email1@example.com"


async def test_write_whose_statement_fails_is_a_problem(sign_up: SignUp, fail_statement: FailStatement) -> None:
    ann = await sign_up("Ann")
    fail_statement("UPDATE users", sqlstate="40001")

    refused = await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})
    repeated = await ann("PATCH", f"/users/{ann.id}", json={"name": "Anna"})

    assert (refused.status_code, repeated.status_code) == (503, 200)


async def test_failure_of_a_statement_that_is_never_sent_fails(client: AsyncClient, statements: Statements) -> None:
    statements.fail("DELETE", sqlstate="40001")
    await client.get("/users/1")

    with pytest.raises(pytest.fail.Exception, match=r"never sent: \['DELETE'\]; sent were:\nSELECT"):
        statements.require_failures()


@pytest.mark.usefixtures("no_idle_holder")
async def test_sign_up_holds_no_connection_while_it_hashes(sign_up: SignUp) -> None:
    await sign_up("Ann")


async def test_wait_with_a_connection_fails_with_its_line(engine: AsyncEngine, database: Database) -> None:
    line = r"held during a wait:\ntests/integration/test_fixtures\.py:\d+ in "
    with pytest.raises(pytest.fail.Exception, match=line), idle_holders_refused(engine):
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            await asyncio.sleep(0.001)
