"""Users of the API, signed in."""

from typing import Any

from httpx import AsyncClient, Response
from sqlalchemy import URL

from tests.support.postgres import connect

PASSWORD = "correct horse"


class Person:
    """Somebody who sends requests with a token of their own."""

    def __init__(self, client: AsyncClient, user_id: int, token: str) -> None:
        self.client = client
        self.id = user_id
        self.headers = {"authorization": f"Bearer {token}"}

    async def __call__(self, method: str, path: str, **request: Any) -> Response:
        return await self.client.request(method, path, headers=self.headers, **request)


async def sign_in(client: AsyncClient, email: str, password: str = PASSWORD) -> Response:
    return await client.post("/auth/token", data={"username": email, "password": password})


async def person(client: AsyncClient, name: str, database_url: URL, *, is_admin: bool = False) -> Person:
    """Sign somebody up and in."""
    email = f"{name.lower()}@example.com"
    created = await client.post("/users", json={"email": email, "name": name, "password": PASSWORD})
    assert created.status_code == 201, created.text
    user_id = created.json()["id"]
    if is_admin:
        with connect(database_url) as connection:
            connection.execute("UPDATE users SET is_admin = true WHERE id = %s", (user_id,))
    token = await sign_in(client, email)
    return Person(client, user_id, token.json()["access_token"])
