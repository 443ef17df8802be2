"""Every exception that a route may raise is answered with a problem, also in mounted applications and WebSockets."""

import json
from datetime import date
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, HTTPException, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel, ConfigDict
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.exceptions import WebSocketException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.errors import DomainError, PoolExhausted
from app.main import create_app
from app.settings import Settings
from app.web import problems
from app.web.problems import InvalidField, Problem
from tests.support import contacts
from tests.support.asgi import open_websocket
from tests.support.contacts import ContactNotFound, EmailTaken
from tests.unit.conftest import SQLITE


class OutOfStock(DomainError):
    """Derived from the root of its branch, without a status of its own."""

    slug = "out-of-stock"
    title = "Out of stock"


class NotJson:
    __slots__ = ()


def add_raising_route(app: FastAPI, error: BaseException) -> None:
    @app.get("/raise")
    async def raise_error() -> None:
        raise error


async def answer(app: FastAPI, client: AsyncClient, error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return status and body of a route that raises the error, after checks that are true of every problem."""
    add_raising_route(app, error)
    response = await client.get("/raise")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == response.json()["request_id"]
    assert response.json()["status"] == response.status_code
    assert response.json()["instance"] == "/raise"
    Problem.model_validate(response.json())
    return response.status_code, response.json()


@pytest.mark.parametrize("status", [*range(400, 600), 200, 299, 302, 305, 600, 799])
async def test_http_exception_with_any_status_is_a_problem(app: FastAPI, client: AsyncClient, status: int) -> None:
    returned, problem = await answer(app, client, HTTPException(status))

    assert returned == status
    assert problem["title"]
    assert "detail" not in problem, "the phrase of the status says nothing that the title does not"


@pytest.mark.parametrize(
    ("status", "slug", "title"),
    [
        (418, "i-m-a-teapot", "I'm a Teapot"),
        (422, "unprocessable-content", "Unprocessable Content"),
        (413, "content-too-large", "Content Too Large"),
        (499, "http-499", "HTTP 499"),
    ],
)
async def test_slug_and_title_of_a_status(
    app: FastAPI, client: AsyncClient, status: int, slug: str, title: str
) -> None:
    _, problem = await answer(app, client, HTTPException(status))

    assert (problem["type"], problem["title"]) == (f"/problems/{slug}", title)


@pytest.mark.parametrize("status", [100, 204, 205, 304])
async def test_status_without_a_body_has_none(app: FastAPI, client: AsyncClient, status: int) -> None:
    add_raising_route(app, HTTPException(status, detail={"code": "x"}, headers={"X-Reason": "none"}))
    response = await client.get("/raise")

    assert (response.status_code, response.content) == (status, b"")
    assert response.headers["x-reason"] == "none"
    assert "content-type" not in response.headers


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ({"code": "x"}, {"code": "x"}),
        ({"nested": {"none": None, "list": [1, 2.5, "é"]}}, {"nested": {"none": None, "list": [1, 2.5, "é"]}}),
        ([{"loc": ["body"]}], [{"loc": ["body"]}]),
        ([], []),
        ({}, {}),
        (0, 0),
        (False, False),
        ({"day": date(2026, 1, 2)}, {"day": "2026-01-02"}),
        (InvalidField(loc=["body", 0], msg="m", type="t"), {"loc": ["body", 0], "msg": "m", "type": "t"}),
    ],
)
async def test_json_detail_is_sent_as_data(app: FastAPI, client: AsyncClient, detail: Any, expected: Any) -> None:
    status, problem = await answer(app, client, HTTPException(400, detail=detail))

    assert status == 400
    assert problem["data"] == expected
    assert "detail" not in problem


@pytest.mark.parametrize("detail", [float("nan"), {"x": float("inf")}, {1j}, [1, NotJson()]])
async def test_detail_that_is_not_json_is_left_out_and_logged(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture, detail: Any
) -> None:
    status, problem = await answer(app, client, HTTPException(400, detail=detail))

    assert status == 400
    assert not problem.keys() & {"detail", "data"}
    assert "is not JSON" in caplog.text


@pytest.mark.parametrize("detail", [None, "", "Bad Request"])
async def test_detail_without_information_is_omitted(app: FastAPI, client: AsyncClient, detail: str | None) -> None:
    _, problem = await answer(app, client, HTTPException(400, detail=detail))

    assert not problem.keys() & {"detail", "data"}


async def test_lone_surrogate_in_a_message_is_escaped(app: FastAPI, client: AsyncClient) -> None:
    """A route may repeat text of the request, and JSON may contain what UTF-8 cannot encode."""
    _, problem = await answer(app, client, HTTPException(400, detail="unknown name \ud800"))

    assert problem["detail"] == "unknown name \ud800"


async def test_headers_of_an_http_exception_are_sent(app: FastAPI, client: AsyncClient) -> None:
    """Except those about the body, which is another one."""
    headers: Any = {"WWW-Authenticate": "Basic", "X-Number": 5, "Content-Length": "3", "content-type": "text/plain"}
    add_raising_route(app, HTTPException(401, detail={"code": "x"}, headers=headers))
    response = await client.get("/raise")

    assert response.json()["data"] == {"code": "x"}
    assert response.headers["www-authenticate"] == "Basic"
    assert response.headers["x-number"] == "5"
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("headers", "expected"), [(None, "1"), ({"retry-after": "7"}, "7")])
async def test_503_has_retry_after(app: FastAPI, client: AsyncClient, headers: Any, expected: str) -> None:
    add_raising_route(app, HTTPException(503, headers=headers))

    assert (await client.get("/raise")).headers["retry-after"] == expected


async def test_405_of_a_route_keeps_its_detail_and_headers(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/raise")
    async def raise_error(allow: str | None = None) -> None:
        headers = {"Allow": allow, "X-Why": "read-only"} if allow else None
        raise HTTPException(405, detail="The archive is read-only.", headers=headers)

    response = await client.get("/raise")
    assert (response.json()["detail"], response.headers["allow"]) == ("The archive is read-only.", "GET, HEAD")
    response = await client.get("/raise?allow=POST")
    assert (response.headers["allow"], response.headers["x-why"]) == ("POST", "read-only")


async def test_405_behind_a_path_prefix_lists_the_methods(app: FastAPI) -> None:
    app.include_router(contacts.router)
    async with AsyncClient(transport=ASGITransport(app, root_path="/api"), base_url="http://test") as client:
        assert (await client.patch("/api/test-contacts/1")).headers["allow"] == "DELETE, GET, HEAD, PUT"


async def test_domain_error_without_a_status_is_400(app: FastAPI, client: AsyncClient) -> None:
    status, problem = await answer(app, client, OutOfStock())

    assert (status, problem["type"]) == (400, "/problems/out-of-stock")
    assert "detail" not in problem


async def test_validation_error_with_incomplete_details_is_422(app: FastAPI, client: AsyncClient) -> None:
    status, _ = await answer(app, client, RequestValidationError([{"msg": "both or none"}]))

    assert status == 422


# The user's own exception handlers


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (StarletteHTTPException, HTTPException(409)),
        (HTTPException, HTTPException(409)),
        (409, HTTPException(409)),
        (OwnError, OwnError()),
        (EmailTaken, EmailTaken()),
        (DomainError, OutOfStock()),
        (PoolExhausted, PoolExhausted("full")),
        (RequestValidationError, RequestValidationError([])),
        (Exception, OwnError()),
        (500, OwnError()),
    ],
)
@pytest.mark.parametrize("kind", ["async", "plain", "instance"])
async def test_own_exception_handler_answers(
    app: FastAPI, client: AsyncClient, key: Any, error: Exception, kind: str
) -> None:
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"own": type(error).__name__, "path": request.url.path}, 418)

    def plain(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"own": type(error).__name__, "path": request.url.path}, 418)

    class Instance:
        async def __call__(self, request: Request, error: Exception) -> JSONResponse:
            return await handler(request, error)

    handlers: dict[str, Any] = {"async": handler, "plain": plain, "instance": Instance()}
    app.add_exception_handler(key, handlers[kind])
    add_raising_route(app, error)
    response = await client.get("/raise")

    assert (response.status_code, response.json()) == (418, {"own": type(error).__name__, "path": "/raise"})
    assert response.headers["x-request-id"]


async def test_own_handler_leaves_other_errors_to_problems(app: FastAPI, client: AsyncClient) -> None:
    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("no such page", 404)

    assert (await client.get("/nothing")).text == "no such page"
    status, _ = await answer(app, client, ContactNotFound(7))
    assert status == 404
    assert (await client.put("/livez")).json()["type"] == "/problems/method-not-allowed"


async def test_failing_handler_of_exception_is_answered_with_500(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.exception_handler(Exception)
    async def handler(request: Request, error: Exception) -> None:
        raise LookupError("second")

    status, problem = await answer(app, client, OwnError("first"))

    assert (status, problem["type"]) == (500, "/problems/internal-error")
    assert "first" in caplog.text
    assert "second" in caplog.text


async def test_handler_of_exception_is_answered_with_cors_headers() -> None:
    app = create_app(Settings(database_url=SQLITE, secret_key="x" * 40, cors_allow_origins=["https://a.example"]))

    @app.exception_handler(Exception)
    async def handler(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("own", 500)

    add_raising_route(app, OwnError())
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/raise", headers={"origin": "https://a.example"})

    assert response.text == "own"
    assert response.headers["access-control-allow-origin"] == "https://a.example"


# Mounted applications


@pytest.fixture
def inner(app: FastAPI) -> FastAPI:
    """A mounted application with routes that raise."""
    inner = FastAPI()

    @inner.get("/raise/{kind}")
    async def raise_error(kind: str, number: Annotated[int, Query()] = 0) -> None:
        errors: dict[str, Exception] = {
            "domain": ContactNotFound(7),
            "temporary": PoolExhausted("full"),
            "http": HTTPException(409, detail={"code": "x"}),
            "unhandled": OwnError("secret"),
        }
        raise errors[kind]

    app.mount("/inner", inner)
    return inner


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/inner/raise/domain", 404, "not-found"),
        ("GET", "/inner/raise/temporary", 503, "pool-exhausted"),
        ("GET", "/inner/raise/http", 409, "conflict"),
        ("GET", "/inner/raise/domain?number=x", 422, "validation-error"),
        ("GET", "/inner/nothing", 404, "not-found"),
        ("POST", "/inner/raise/domain", 405, "method-not-allowed"),
        ("GET", "/inner/raise/unhandled", 500, "internal-error"),
    ],
)
@pytest.mark.usefixtures("inner")
async def test_error_in_mounted_application_is_a_problem(
    client: AsyncClient, caplog: pytest.LogCaptureFixture, method: str, path: str, status: int, slug: str
) -> None:
    response = await client.request(method, path)

    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{slug}")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["instance"] == path.partition("?")[0]
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    if status == 405:
        assert response.headers["allow"] == "GET, HEAD"
    if status == 500:
        assert sum("unhandled exception" in record.message for record in caplog.records) == 1


async def test_own_handlers_of_mounted_application_stay(inner: FastAPI, client: AsyncClient) -> None:
    @inner.exception_handler(StarletteHTTPException)
    @inner.exception_handler(Exception)
    async def handler(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(f"own {type(error).__name__}", 418)

    assert (await client.get("/inner/raise/http")).text == "own HTTPException"
    assert (await client.get("/inner/raise/unhandled")).text == "own OwnError"
    assert (await client.get("/inner/raise/domain")).status_code == 404


async def test_handler_of_outer_application_does_not_answer_for_mounted(
    app: FastAPI, inner: FastAPI, client: AsyncClient
) -> None:
    """As in FastAPI: each application has its own handlers."""

    @app.exception_handler(Exception)
    async def handler(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("outer", 418)

    assert (await client.get("/inner/raise/unhandled")).json()["type"] == "/problems/internal-error"


async def test_mounted_application_that_served_requests_before_is_prepared(
    app: FastAPI, inner: FastAPI, client: AsyncClient
) -> None:
    async with AsyncClient(transport=ASGITransport(inner), base_url="http://test") as alone:
        assert (await alone.get("/raise/http")).json() == {"detail": {"code": "x"}}

    assert (await client.get("/inner/raise/domain")).json()["type"] == "/problems/not-found"


async def test_error_in_mounted_starlette_application_is_a_problem(app: FastAPI, client: AsyncClient) -> None:
    async def raise_error(request: Request) -> None:
        raise ContactNotFound(7)

    app.mount("/inner", Starlette(routes=[Route("/raise", raise_error)]))

    assert (await client.get("/inner/raise")).json()["type"] == "/problems/not-found"


# WebSockets


def add_raising_websocket(app: FastAPI, error: Exception) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        raise error


ERRORS = [
    pytest.param(ContactNotFound(7), 404, "not-found", 1008, id="domain"),
    pytest.param(PoolExhausted("full"), 503, "pool-exhausted", 1013, id="temporary"),
    pytest.param(HTTPException(403, detail={"code": "x"}), 403, "forbidden", 1008, id="http"),
    pytest.param(HTTPException(502), 502, "bad-gateway", 1011, id="bad gateway"),
    pytest.param(OwnError("secret"), 500, "internal-error", 1011, id="unhandled"),
]


@pytest.mark.parametrize(("error", "status", "slug", "code"), ERRORS)
@pytest.mark.parametrize("mounted", [False, True], ids=["outer", "mounted"])
async def test_error_before_the_handshake_is_answered_with_a_problem(
    app: FastAPI, error: Exception, status: int, slug: str, code: int, mounted: bool
) -> None:
    inner = FastAPI() if mounted else app
    add_raising_websocket(inner, error)
    if mounted:
        app.mount("/inner", inner)
    path = "/inner/socket" if mounted else "/socket"

    async with open_websocket(app, path) as client:
        start, body = await client.receive(), await client.receive()
        await client.closed
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == status
    assert f'"/problems/{slug}"'.encode() in body["body"]
    assert b"secret" not in body["body"]
    assert b'"request_id":"-"' not in body["body"]

    async with open_websocket(app, path, denial_responses=False) as client:
        message = await client.receive()
        await client.closed
    assert (message["type"], message["code"], message["reason"]) == ("websocket.close", code, f"/problems/{slug}")


@pytest.mark.parametrize(("error", "status", "slug", "code"), ERRORS)
async def test_error_after_the_handshake_closes_the_websocket(
    app: FastAPI, error: Exception, status: int, slug: str, code: int
) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise error

    async with open_websocket(app, "/socket") as client:
        assert (await client.receive())["type"] == "websocket.accept"
        message = await client.receive()
        await client.closed

    assert (message["type"], message["code"], message["reason"]) == ("websocket.close", code, f"/problems/{slug}")


async def test_error_after_the_client_left_sends_nothing(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()
        raise OwnError("too late")

    async with open_websocket(app, "/socket") as client:
        await client.receive()
        await client.close()
        with pytest.raises(AssertionError, match="without a message"):
            await client.receive()

    assert "too late" in caplog.text


async def test_invalid_parameters_of_a_websocket_are_answered_without_values(app: FastAPI) -> None:
    @app.websocket("/socket/{number}")
    async def socket(websocket: WebSocket, number: int) -> None: ...

    async with open_websocket(app, "/socket/hunter2") as client:
        start, body = await client.receive(), await client.receive()

    assert start["status"] == 422
    assert b"validation-error" in body["body"]
    assert b'"input"' not in body["body"]


async def test_websocket_exception_closes_with_its_own_code(app: FastAPI) -> None:
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise WebSocketException(4001, "own")

    async with open_websocket(app, "/socket") as client:
        await client.receive()
        message = await client.receive()

    assert (message["code"], message["reason"]) == (4001, "own")


async def test_handshake_of_a_websocket_is_answered_with_request_id_and_security_headers(app: FastAPI) -> None:
    """The headers of the route win."""
    add_raising_websocket(app, HTTPException(403, headers={"X-Frame-Options": "SAMEORIGIN"}))

    @app.websocket("/open")
    async def opened(websocket: WebSocket) -> None:
        await websocket.accept(headers=[(b"x-own", b"1"), (b"X-Request-ID", b"own")])

    async with open_websocket(app, "/socket") as client:
        start, body = await client.receive(), await client.receive()
    refused = dict(start["headers"])
    async with open_websocket(app, "/open") as client:
        accepted = [name for name, _ in (await client.receive())["headers"]]

    assert refused[b"x-request-id"].decode() == json.loads(body["body"])["request_id"]
    assert refused[b"x-content-type-options"] == b"nosniff"
    assert refused[b"x-frame-options"] == b"SAMEORIGIN"
    assert len(refused) == len(start["headers"])
    assert accepted == [b"x-own", b"x-request-id"]


async def test_unknown_websocket_path_is_refused(app: FastAPI) -> None:
    async with open_websocket(app, "/nothing") as client:
        message = await client.receive()

    assert message["type"] == "websocket.close"


async def test_domain_error_of_a_raw_application_closes_its_websocket(app: FastAPI) -> None:
    """The handler gets another WebSocket object than the application, which does not know that it was accepted."""

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ContactNotFound(7)

    app.mount("/raw", raw)

    async with open_websocket(app, "/raw/socket") as client:
        await client.receive()
        message = await client.receive()

    assert (message["type"], message["code"]) == ("websocket.close", 1008)


async def test_problem_has_a_limited_number_of_errors(app: FastAPI, client: AsyncClient) -> None:
    """A client makes a hundred thousand of them with one body."""

    class Item(BaseModel):
        model_config = ConfigDict(extra="forbid")

    @app.post("/items")
    async def create(item: Item) -> None: ...

    response = await client.post("/items", json={f"key{number}": 1 for number in range(problems.MAX_ERRORS + 7)})

    assert response.status_code == 422
    assert len(response.json()["errors"]) == problems.MAX_ERRORS
    assert response.json()["detail"].endswith("; and 7 more")
