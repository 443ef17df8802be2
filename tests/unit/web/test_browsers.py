"""What browsers and proxies are told and believed."""

import logging

import pytest
from httpx import ASGITransport, AsyncClient

from app.database import Database
from app.main import create_app, provide_state
from app.settings import load_settings
from tests.unit.conftest import SQLITE

ORIGIN = "https://app.example.com"
KEY = "for tests only, for tests only, for tests only"


def client_of(database: Database, **settings: str) -> AsyncClient:
    read = load_settings(database_url=SQLITE, secret_key=KEY, **settings)
    app = create_app(read)
    provide_state(app, database, read)
    return AsyncClient(transport=ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("path", ["/livez", "/users/1", "/nothing"])
async def test_every_answer_has_the_security_headers(client: AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_the_documentation_may_run_its_scripts(client: AsyncClient) -> None:
    assert "content-security-policy" not in (await client.get("/docs")).headers


async def test_no_other_origin_is_let_in_by_default(database: Database) -> None:
    async with client_of(database) as client:
        answer = await client.get("/posts", headers={"origin": ORIGIN})

    assert "access-control-allow-origin" not in answer.headers


async def test_an_origin_that_is_configured_is_let_in_and_no_other(database: Database) -> None:
    async with client_of(database, cors_allow_origins=f"{ORIGIN}, https://other.example.com") as client:
        allowed = await client.get("/posts", headers={"origin": ORIGIN})
        refused = await client.get("/posts", headers={"origin": "https://evil.example.com"})
        preflight = await client.options(
            "/posts",
            headers={
                "origin": ORIGIN,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            },
        )

    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in refused.headers
    assert preflight.status_code == 200
    assert "x-request-id" in preflight.headers


async def test_an_unhandled_exception_can_be_read_by_a_page_too(database: Database) -> None:
    async with client_of(database, cors_allow_origins=ORIGIN) as client:
        app = client._transport.app  # type: ignore[attr-defined]

        async def broken() -> None:
            raise LookupError

        app.add_api_route("/broken", broken)
        answer = await client.get("/broken", headers={"origin": ORIGIN})

    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "x-request-id" in answer.headers


async def test_a_preflight_has_the_security_headers_and_its_line_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headroom.request")
    async with client_of(database, cors_allow_origins=ORIGIN) as client:
        answer = await client.options("/posts", headers={"origin": ORIGIN, "access-control-request-method": "POST"})

    assert answer.headers["x-content-type-options"] == "nosniff"
    [record] = [record for record in caplog.records if record.name == "headroom.request"]
    assert record.getMessage().startswith("OPTIONS /posts 200 ")
