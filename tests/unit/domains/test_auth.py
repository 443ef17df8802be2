"""Sign-in, on SQLite."""

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from app.database.lanes import current_lane


async def test_sign_in_is_in_the_critical_lane(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch, app: FastAPI
) -> None:
    seen = []

    class SignIn:
        token_seconds = 1

        async def __call__(self, **_: str) -> str:
            seen.append(current_lane.get())
            return "token"

    monkeypatch.setattr(app.state, "sign_in", SignIn())
    form = {"username": "ann@example.com", "password": "correct horse"}

    assert (await client.post("/auth/token", data=form)).status_code == 200
    assert seen == ["critical"]
