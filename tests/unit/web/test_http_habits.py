"""HEAD wherever GET is, the API behind the path prefix of a proxy, and requests that are refused early."""

import logging
from typing import Annotated

import pytest
from fastapi import FastAPI, Form, Response
from fastapi.responses import StreamingResponse
from httpx import ASGITransport, AsyncClient

from app.database import Database
from app.main import create_app, provide_state
from app.settings import Settings
from tests.support import contacts

ANN = {"email": "ann@example.com", "name": "Ann"}


@pytest.fixture
def app(app: FastAPI) -> FastAPI:
    app.include_router(contacts.router)
    return app


@pytest.mark.parametrize("path", ["/livez", "/test-contacts/1", "/test-contacts/99999", "/openapi.json", "/nothing"])
async def test_head_has_the_headers_of_get_and_no_body(client: AsyncClient, path: str) -> None:
    await client.post("/test-contacts", json=ANN)

    of_get, of_head = await client.get(path), await client.head(path)

    assert (of_head.status_code, of_head.content) == (of_get.status_code, b"")
    varying = {"x-request-id"}
    assert {name: value for name, value in of_head.headers.items() if name not in varying} == {
        name: value for name, value in of_get.headers.items() if name not in varying
    }


async def test_head_of_a_route_without_get_is_405(client: AsyncClient) -> None:
    answer = await client.head("/test-contacts")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_head_of_a_route_for_head_is_answered_by_it(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/thing")
    async def get_thing() -> str:
        raise AssertionError("GET was called")

    @app.head("/thing")
    async def head_thing(response: Response) -> None:
        response.headers["x-size"] = "7"

    assert (await client.head("/thing")).headers["x-size"] == "7"


async def test_head_of_a_stream_has_no_body(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter(["one", "two"]))

    answer = await client.head("/stream")

    assert (answer.status_code, answer.content) == (200, b"")


async def test_head_is_logged_as_head_with_its_route(client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        await client.head("/test-contacts/99999")

    [record] = [record for record in caplog.records if getattr(record, "route", None)]
    assert (vars(record)["method"], vars(record)["route"]) == ("HEAD", "/test-contacts/{contact_id}")


@pytest.fixture
def prefixed(database: Database) -> FastAPI:
    settings = Settings(database_url="sqlite+aiosqlite://", secret_key="k" * 32, root_path="/api/")
    app = create_app(settings)
    app.include_router(contacts.router)
    provide_state(app, database, settings)
    return app


@pytest.mark.parametrize("passed_on", ["", "/api"])
async def test_api_behind_a_prefix_names_its_public_paths(prefixed: FastAPI, passed_on: str) -> None:
    """The proxy removes the prefix, or passes it on."""
    async with AsyncClient(transport=ASGITransport(prefixed), base_url=f"http://test{passed_on}") as client:
        page = await client.get("/docs")
        documents = [(await client.get("/openapi.json")).json() for _ in range(2)]
        created = await client.post("/test-contacts", json=ANN)
        found = await client.get(f"/test-contacts/{created.json()}")
        alive = await client.head("/livez")

    assert "url: '/api/openapi.json'" in page.text
    assert "content-security-policy" not in page.headers
    for document in documents:
        assert document["servers"] == [{"url": "/api"}]
        [scheme] = document["components"]["securitySchemes"].values()
        assert scheme["flows"]["password"]["tokenUrl"] == "/api/auth/token"
    assert created.headers["location"] == f"/api/test-contacts/{created.json()}"
    assert (found.status_code, alive.status_code) == (200, 200)


async def test_location_outside_of_the_application_is_kept(prefixed: FastAPI) -> None:
    @prefixed.post("/elsewhere", status_code=201)
    async def create(response: Response, to: str) -> None:
        response.headers["Location"] = to

    async with AsyncClient(transport=ASGITransport(prefixed), base_url="http://test") as client:
        for to in ("https://b.example/1", "//b.example/1", "/api/elsewhere/1"):
            assert (await client.post("/elsewhere", params={"to": to})).headers["location"] == to


@pytest.mark.parametrize("path", ["/livez%0A", "/docs%0a", "/test-contacts/1%0A", "/%00", "/livez%7F"])
async def test_path_with_a_control_character_is_unknown(client: AsyncClient, path: str) -> None:
    """Starlette matches a newline at the end, so a proxy's rule for a path could be passed by."""
    response = await client.get(path)

    assert (response.status_code, response.headers["content-type"]) == (404, "application/problem+json")
    assert response.headers["x-request-id"] == response.json()["request_id"]


@pytest.mark.parametrize(
    ("charset", "status"),
    [("utf-8", 200), ("ISO-8859-1", 200), ("punycode", 400), ("utf-7", 400), ("unicode_escape", 400), ("x" * 99, 400)],
)
@pytest.mark.parametrize("quote", ["", '"'])
async def test_form_with_an_unusual_charset_is_refused(
    app: FastAPI, client: AsyncClient, charset: str, status: int, quote: str
) -> None:
    """Python has codecs that take minutes for a small form, and keeps every unknown name for ever."""

    @app.post("/form")
    async def form(name: Annotated[str, Form()]) -> str:
        return name

    body = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nann\r\n--b--\r\n'
    content_type = f"Multipart/Form-Data; boundary=b; Charset={quote}{charset}{quote}"

    response = await client.post("/form", content=body, headers={"content-type": content_type})

    assert response.status_code == status, response.text
    if status == 400:
        assert response.json()["detail"] == "The charset of a form must be utf-8, us-ascii or iso-8859-1."
