"""The token with the position of a client's last write."""

import time
from http.cookies import SimpleCookie
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from app.database.read_after import note_written, read_after
from app.web.read_after import COOKIE, HEADER, TOKEN_SECONDS, ReadAfterMiddleware, ReadAfterTokens

KEY = "for tests only, for tests only, for tests only"
TOKENS = ReadAfterTokens(KEY)
POSITION = (3 << 64) + 0x16B374D848


@pytest.mark.parametrize("position", [1, POSITION, (1 << 96) - 1])
def test_token_contains_the_position_that_it_was_written_for(position: int) -> None:
    assert TOKENS.read(TOKENS.write(position)) == position


@pytest.mark.parametrize(
    "token",
    [
        *("", "x", "é", "AAAA", "A" * 36),
        pytest.param(TOKENS.write(1)[:-4], id="cut"),  # a token has a signature with the time
        pytest.param(TOKENS.write(1) + "AAAA", id="longer"),
    ],
)
def test_malformed_token_is_ignored(token: str) -> None:
    assert TOKENS.read(token) == 0


def test_changed_token_is_ignored() -> None:
    token = TOKENS.write(POSITION)
    changed = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(len(token))]

    assert {TOKENS.read(each) for each in changed} == {0}


def test_token_of_another_key_is_ignored_unless_the_key_is_a_fallback() -> None:
    token = ReadAfterTokens("another key, another key, another key").write(POSITION)

    assert TOKENS.read(token) == 0
    assert ReadAfterTokens(KEY, ["another key, another key, another key"]).read(token) == POSITION


def test_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restore to an earlier moment, no server would reach its position."""
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    token = TOKENS.write(POSITION)

    now += TOKEN_SECONDS
    assert TOKENS.read(token) == POSITION
    now += 1
    assert TOKENS.read(token) == 0


def client_of(**options: Any) -> AsyncClient:
    app = FastAPI()
    app.add_middleware(ReadAfterMiddleware, tokens=TOKENS, **options)

    @app.post("/write/{position}")
    async def write(position: int) -> None:
        note_written(position)

    @app.get("/needed")
    async def needed() -> int:
        current = read_after.get()
        assert current is not None
        return current.position

    return AsyncClient(transport=ASGITransport(app), base_url="https://test")


async def test_response_to_a_write_has_its_position_in_header_and_cookie() -> None:
    async with client_of() as client:
        response = await client.post("/write/7")

        assert TOKENS.read(response.headers[HEADER]) == 7
        cookie = SimpleCookie(response.headers["set-cookie"])[COOKIE]
        assert cookie.value == response.headers[HEADER]
        assert (cookie["path"], cookie["samesite"], cookie["max-age"]) == ("/", "lax", str(TOKEN_SECONDS))
        assert cookie["httponly"]
        assert cookie["secure"]
        assert (await client.get("/needed")).json() == 7  # by the cookie


async def test_response_to_a_read_has_no_token() -> None:
    async with client_of() as client:
        response = await client.get("/needed")

    assert response.json() == 0
    assert HEADER not in response.headers
    assert "set-cookie" not in response.headers


async def test_later_one_of_header_and_cookie_counts() -> None:
    async with client_of() as client:
        for cookie, header in ((5, 6), (6, 5)):
            headers = {"Cookie": f"a=b; {COOKIE}={TOKENS.write(cookie)}", HEADER: TOKENS.write(header)}
            assert (await client.get("/needed", headers=headers)).json() == 6


async def test_cookie_belongs_to_the_path_of_the_api_and_http_gets_one_too() -> None:
    async with client_of(root_path="/api") as client:
        response = await client.post("http://test/write/7")

    cookie = SimpleCookie(response.headers["set-cookie"])[COOKIE]
    assert cookie["path"] == "/api"
    assert not cookie["secure"]
