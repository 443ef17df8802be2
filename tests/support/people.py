"""Signed-in users of the API."""

from httpx import AsyncClient, Response
from sqlalchemy import URL

from tests.support.callers import Caller
from tests.support.postgres import connect

PASSWORD = "correct horse"


class Person(Caller):
    """A user. Calling it sends a request with the user's access token."""

    def __init__(self, client: AsyncClient, user_id: int, token: str) -> None:
        super().__init__(client, {"authorization": f"Bearer {token}"})
        self.id = user_id


async def sign_in(client: AsyncClient, email: str, password: str = PASSWORD) -> Response:
    """Return the response to a request for an access token."""
    return await client.post("/auth/token", data={"username": email, "password": password})


async def person(client: AsyncClient, name: str, database_url: URL, *, is_admin: bool = False) -> Person:
    """Create the user `name`@example.com and sign in."""
    email = f"{name.lower()}@example.com"
    created = await client.post("/users", json={"email": email, "name": name, "password": PASSWORD})
    assert created.status_code == 201, created.text
    user_id = created.json()["id"]
    if is_admin:
        with connect(database_url) as connection:
            connection.execute("UPDATE users SET is_admin = true WHERE id = %s", (user_id,))
    signed_in = await sign_in(client, email)
    return Person(client, user_id, signed_in.json()["access_token"])
