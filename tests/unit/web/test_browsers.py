"""Security headers and cross-origin requests."""

import logging

import pytest
from httpx import ASGITransport, AsyncClient

from app.database import Database
from app.main import create_app, provide_state
from app.settings import load_settings
from tests.unit.conftest import SQLITE

ORIGIN = "https://app.example.com"
SECRET_KEY = "for tests only, for tests only, for tests only"


def client_with_settings(database: Database, **values: str) -> AsyncClient:
    settings = load_settings(database_url=SQLITE, secret_key=SECRET_KEY, **values)
    app = create_app(settings)
    provide_state(app, database, settings)
    return AsyncClient(transport=ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("path", ["/livez", "/openapi.json", "/nothing"])
async def test_response_of_any_path_has_security_headers(client: AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_docs_page_has_no_content_security_policy(client: AsyncClient) -> None:
    """The page loads scripts and styles."""
    assert "content-security-policy" not in (await client.get("/docs")).headers


async def test_cross_origin_request_by_default_is_not_allowed(database: Database) -> None:
    async with client_with_settings(database) as client:
        response = await client.get("/livez", headers={"origin": ORIGIN})

    assert "access-control-allow-origin" not in response.headers


async def test_cross_origin_request_from_configured_origin_is_allowed(database: Database) -> None:
    async with client_with_settings(database, cors_allow_origins=f"{ORIGIN}, https://other.example.com") as client:
        allowed = await client.get("/livez", headers={"origin": ORIGIN})
        refused = await client.get("/livez", headers={"origin": "https://evil.example.com"})
        preflight = await client.options(
            "/livez",
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


async def test_unhandled_exception_response_has_cors_headers(database: Database) -> None:
    """Otherwise the browser would hide the problem from a page of another origin."""
    async with client_with_settings(database, cors_allow_origins=ORIGIN) as client:
        app = client._transport.app  # type: ignore[attr-defined]

        async def broken() -> None:
            raise LookupError

        app.add_api_route("/broken", broken)
        response = await client.get("/broken", headers={"origin": ORIGIN})

    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "x-request-id" in response.headers


async def test_preflight_has_security_headers_and_is_logged(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headroom.request")
    async with client_with_settings(database, cors_allow_origins=ORIGIN) as client:
        response = await client.options("/things", headers={"origin": ORIGIN, "access-control-request-method": "POST"})

    assert response.headers["x-content-type-options"] == "nosniff"
    [record] = [record for record in caplog.records if record.name == "headroom.request"]
    assert record.getMessage().startswith("OPTIONS /things 200 ")
