"""The fixtures for users' tests: each is used as docs/testing.md shows it, and fails when it should."""

import asyncio

import pytest
from httpx import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database import Database
from app.models import User
from tests.support import sample
from tests.support.factories import Factory
from tests.support.fixtures import AssertStatements, FailStatement, Statements, idle_holders_refused


async def test_read_sends_the_same_statements_for_many_rows(
    client: AsyncClient, make: Factory, assert_statements: AssertStatements
) -> None:
    row, *_ = [await make(User) for _ in range(3)]

    with assert_statements(1):
        answer = await client.get(f"{sample.PATH}/{row.id}")

    assert answer.json()["name"] == row.name


async def test_other_number_of_statements_fails_and_lists_them(
    client: AsyncClient, assert_statements: AssertStatements
) -> None:
    with (
        pytest.raises(pytest.fail.Exception, match=r"^2 statements instead of 1:\n +1\. SELECT .*\n +2\. SELECT .*$"),
        assert_statements(1),
    ):
        for number in (1, 2):
            await client.get(f"{sample.PATH}/{number}")


async def test_row_of_the_factory_is_stored(make: Factory, database: Database) -> None:
    first, second = await make(User, name="First"), await make(User)

    assert (first.name, second.name) == ("First", "name 2")
    async with database.write() as session:
        assert (await session.get_one(User, first.id)).name == "First"


async def test_write_whose_statement_fails_is_a_problem(client: AsyncClient, fail_statement: FailStatement) -> None:
    fail_statement(f"INSERT INTO {sample.TABLE}", sqlstate="40001")

    refused = await client.post(sample.PATH, json=sample.new("ann"))
    repeated = await client.post(sample.PATH, json=sample.new("ann"))

    assert (refused.status_code, repeated.status_code) == (503, 201)


async def test_failure_of_a_statement_that_is_never_sent_fails(client: AsyncClient, statements: Statements) -> None:
    statements.fail("DELETE", sqlstate="40001")
    await client.get(sample.READ)

    with pytest.raises(pytest.fail.Exception, match=r"never sent: \['DELETE'\]; sent were:\nSELECT"):
        statements.require_failures()


async def test_wait_with_a_connection_fails_with_its_line(engine: AsyncEngine, database: Database) -> None:
    line = r"held during a wait:\ntests/integration/test_fixtures\.py:\d+ in "
    with pytest.raises(pytest.fail.Exception, match=line), idle_holders_refused(engine):
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            await asyncio.sleep(0.001)
