"""Users, through the API, on SQLite."""

import pytest
from httpx import AsyncClient

from app.domains.users.schemas import SignUp

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}


async def test_signed_up_user_is_found_at_the_location(client: AsyncClient) -> None:
    created = await client.post("/users", json=ANN)

    assert created.status_code == 201
    found = await client.get(created.headers["location"])
    assert found.json()["name"] == "Ann"


async def test_second_account_for_an_address_is_409(client: AsyncClient) -> None:
    await client.post("/users", json=ANN)

    answer = await client.post("/users", json=ANN | {"email": "ANN@example.com"})

    assert answer.status_code == 409


def test_password_is_not_in_the_repr_of_a_sign_up() -> None:
    assert "correct horse" not in repr(SignUp.model_validate(ANN))


async def test_id_of_a_deleted_user_is_not_reused(client: AsyncClient) -> None:
    """SQLite reuses ids by default. The old access token would then be valid for the new user."""
    first = (await client.post("/users", json=ANN)).json()["id"]
    token = (await client.post("/auth/token", data={"username": ANN["email"], "password": ANN["password"]})).json()
    headers = {"authorization": f"Bearer {token['access_token']}"}
    assert (await client.delete(f"/users/{first}", headers=headers)).status_code == 204

    second = (await client.post("/users", json=ANN)).json()["id"]

    assert second != first
    assert (await client.get("/users/me", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    "spelling",
    [
        "p@xn--bcher-kva.example",
        "p@b\u00fccher.example",
        "p@bu\u0308cher.example",
        "P@B\u00dcCHER.example",
        " p@b\u00fccher.example ",
        "p@\uff42\u00fccher.example",
    ],
)
async def test_address_signs_in_in_each_spelling_that_signs_up(client: AsyncClient, spelling: str) -> None:
    """IDNA, composed and decomposed letters, upper case, spaces and full width."""
    await client.post("/users", json=ANN | {"email": "p@b\u00fccher.example"})

    again = await client.post("/users", json=ANN | {"email": spelling})
    signed_in = await client.post("/auth/token", data={"username": spelling, "password": ANN["password"]})

    assert (again.status_code, signed_in.status_code) == (409, 200)


@pytest.mark.parametrize("username", ["Ann <ann@example.com>", "ann", "", "@", "a" * 3000])
async def test_text_that_is_no_address_signs_no_one_in(client: AsyncClient, username: str) -> None:
    await client.post("/users", json=ANN)

    answer = await client.post("/auth/token", data={"username": username, "password": ANN["password"]})

    assert answer.status_code in (401, 422)


@pytest.mark.parametrize(
    "name", ["", " ", "\u00a0", "\u200b", "\u2060\ufeff", "\u3164", "\u2800", "\u00ad", "\u202e \t"]
)
async def test_name_that_looks_empty_is_422(client: AsyncClient, name: str) -> None:
    assert (await client.post("/users", json=ANN | {"name": name})).status_code == 422


@pytest.mark.parametrize(
    "name", ["A", "\u738b", "\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f469", "\u0301a", "\u30fc"]
)
async def test_name_with_a_visible_character_is_accepted(client: AsyncClient, name: str) -> None:
    created = await client.post("/users", json=ANN | {"name": name})

    assert (created.status_code, created.json()["name"]) == (201, name)
