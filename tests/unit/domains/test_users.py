"""Users, through the API, on SQLite."""

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
