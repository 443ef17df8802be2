from httpx import AsyncClient

from app.domains.users.schemas import SignUp

ANN = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}


async def test_a_user_can_sign_up_and_be_found(client: AsyncClient) -> None:
    created = await client.post("/users", json=ANN)

    assert created.status_code == 201
    found = await client.get(created.headers["location"])
    assert found.json()["name"] == "Ann"


async def test_an_address_has_one_account(client: AsyncClient) -> None:
    await client.post("/users", json=ANN)

    answer = await client.post("/users", json=ANN | {"email": "ANN@example.com"})

    assert answer.status_code == 409


def test_a_password_does_not_show_in_a_log() -> None:
    assert "correct horse" not in repr(SignUp.model_validate(ANN))


async def test_the_id_of_a_deleted_user_is_never_given_again_on_sqlite_too(client: AsyncClient) -> None:
    ann = {"email": "ann@example.com", "name": "Ann", "password": "correct horse"}
    first = (await client.post("/users", json=ann)).json()["id"]
    token = (await client.post("/auth/token", data={"username": ann["email"], "password": ann["password"]})).json()
    headers = {"authorization": f"Bearer {token['access_token']}"}
    assert (await client.delete(f"/users/{first}", headers=headers)).status_code == 204

    second = (await client.post("/users", json=ann)).json()["id"]
    assert second != first
    assert (await client.get("/users/me", headers=headers)).status_code == 401
