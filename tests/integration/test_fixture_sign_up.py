"""The fixture `sign_up`, with the other fixtures for users' tests."""

import pytest

from app.models import User
from tests.support.factories import Factory
from tests.support.fixtures import AssertStatements, SignUp


async def test_list_sends_the_same_statements_for_many_rows(
    make: Factory, sign_up: SignUp, assert_statements: AssertStatements
) -> None:
    admin = await sign_up("Admin", is_admin=True)
    for _ in range(3):
        await make(User)

    with assert_statements(3):  # the query for the administrator, the page and the count
        page = (await admin("GET", "/users?limit=2")).json()  # not the end of the list, so it is counted

    assert page["total"] == 4


async def test_user_who_signs_up_sends_requests(sign_up: SignUp) -> None:
    ann, admin = await sign_up("Ann"), await sign_up("Admin", is_admin=True)

    assert (await ann("GET", "/users/me")).json()["name"] == "Ann"
    assert [(await user("GET", "/users")).status_code for user in (ann, admin)] == [403, 200]


@pytest.mark.usefixtures("no_idle_holder")
async def test_sign_up_holds_no_connection_while_it_hashes(sign_up: SignUp) -> None:
    await sign_up("Ann")
