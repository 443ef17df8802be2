"""Request ids, problem responses, request log lines and the body limit."""

import json
import logging
from collections.abc import Callable

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from httpx import ASGITransport, AsyncClient

from app.errors import (
    DatabaseUnavailable,
    OutcomeUnknown,
    PoolExhausted,
    StatementTimeout,
    TransactionConflict,
    TransientDatabaseError,
)
from app.web import middleware
from app.web.middleware import body_limit


async def test_request_id_of_each_response_is_unique(client: AsyncClient) -> None:
    ids = [(await client.get(path)).headers["x-request-id"] for path in ("/livez", "/livez", "/nothing")]

    assert len(set(ids)) == 3
    assert all(len(request_id) == 32 for request_id in ids)


@pytest.mark.parametrize("valid", ["abc-1", "0af7651916cd43dd8448eb211c80319c", "a/b:c=1"])
async def test_request_id_sent_by_client_is_kept(client: AsyncClient, valid: str) -> None:
    assert (await client.get("/livez", headers={"x-request-id": valid})).headers["x-request-id"] == valid


@pytest.mark.parametrize("invalid", ["", "a b", "x" * 129, "é", "-", 'a"b', "<script>"])
async def test_request_id_with_unsafe_characters_is_replaced(client: AsyncClient, invalid: str) -> None:
    response = await client.get("/livez", headers=[(b"x-request-id", invalid.encode("latin-1"))])

    assert response.headers["x-request-id"] != invalid


async def test_unhandled_exception_response_is_problem_without_cause(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise LookupError("secret detail")

    response = await client.get("/broken", headers={"x-request-id": "abc"})

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/internal-error"
    assert response.json()["request_id"] == "abc"
    assert "secret" not in response.text
    assert "secret detail" in caplog.text, "the log must contain the cause"


async def test_failing_background_task_is_logged_and_keeps_the_connection(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that reached Uvicorn would close the connection, on which the next request may already run."""

    async def fail() -> None:
        raise LookupError("in the background")

    @app.get("/task")
    async def task(background: BackgroundTasks) -> str:
        background.add_task(fail)
        return "done"

    assert (await client.get("/task")).json() == "done"
    assert "in the background" in caplog.text


async def test_duration_of_a_request_excludes_its_background_tasks(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(middleware, "perf_counter", lambda: clock[0])

    async def wait() -> None:
        clock[0] += 100

    @app.get("/task")
    async def task(background: BackgroundTasks) -> str:
        background.add_task(wait)
        clock[0] += 1
        return "done"

    with caplog.at_level(logging.INFO):
        await client.get("/task")

    assert [record.__dict__["duration_ms"] for record in caplog.records if "duration_ms" in record.__dict__] == [1000.0]


@pytest.mark.parametrize("error", [PoolExhausted, DatabaseUnavailable, StatementTimeout, TransactionConflict])
async def test_transient_error_response_has_retry_after_and_no_internals(
    app: FastAPI, client: AsyncClient, error: type[TransientDatabaseError]
) -> None:
    @app.get("/full")
    async def full() -> None:
        raise error("size=5 host=db.internal")

    response = await client.get("/full")

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == f"/problems/{error.slug}"
    assert "internal" not in response.text


async def test_response_of_unknown_outcome_has_no_retry_after(app: FastAPI, client: AsyncClient) -> None:
    @app.get("/lost")
    async def lost() -> None:
        raise OutcomeUnknown("host=db.internal")

    response = await client.get("/lost")

    assert response.status_code == 503
    assert "retry-after" not in response.headers
    assert response.json()["type"] == "/problems/outcome-unknown"
    assert "internal" not in response.text


async def test_exception_after_response_start_is_raised_to_the_server(app: FastAPI) -> None:
    """The server then closes the connection, which tells the client that the response is incomplete."""

    async def partial_response(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        raise LookupError

    app.mount("/partial", partial_response)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(LookupError):
            await client.get("/partial/")


async def test_request_is_logged_in_one_line_and_probe_is_not(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headroom.request")
    await client.get("/nothing")
    await client.get("/livez")

    [record] = [record for record in caplog.records if record.name == "headroom.request"]
    assert record.getMessage().startswith("GET /nothing 404 ")
    assert record.__dict__["status"] == 404


async def test_request_path_with_line_break_is_logged_encoded(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headroom.request")
    await client.get("/a%0a00:00:00 INFO forged%1b[31m")

    [record] = [record for record in caplog.records if record.name == "headroom.request"]
    assert record.getMessage().startswith("GET /a%0a00:00:00%20INFO%20forged%1b[31m 404 ")


async def test_log_lines_of_a_request_have_its_id(
    app: FastAPI, client: AsyncClient, json_log: Callable[[], str]
) -> None:
    @app.get("/logs")
    async def logs(request: Request) -> None:
        logging.getLogger("some.library").warning("hello")

    await client.get("/logs", headers={"x-request-id": "abc"})

    lines = [json.loads(line) for line in json_log().splitlines()]
    assert {line["request_id"] for line in lines if line["logger"] != "httpx"} == {"abc"}
    assert [line["message"] for line in lines if line["logger"] == "some.library"] == ["hello"]


async def test_body_above_the_limit_is_refused(app: FastAPI, client: AsyncClient) -> None:
    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    async def two_chunks(length: int):  # type: ignore[no-untyped-def]
        yield b"x" * (length - 1)
        yield b"x"

    assert (await client.post("/size", content=b"x" * 1_048_576)).json() == 1_048_576
    assert (await client.post("/size", content=b"x" * 1_048_577)).status_code == 413
    assert (await client.post("/size", content=two_chunks(1_048_576))).json() == 1_048_576
    assert (await client.post("/size", content=two_chunks(1_048_577))).status_code == 413


async def test_body_limit_of_a_route_replaces_the_default(app: FastAPI, client: AsyncClient) -> None:
    async def size(request: Request) -> int:
        return len(await request.body())

    app.post("/upload", openapi_extra=body_limit(3_000_000))(size)
    app.post("/small", openapi_extra=body_limit(10))(size)
    app.post("/fastapis-own", max_body_size=2_000_000)(size)

    assert (await client.post("/upload", content=b"x" * 3_000_000)).json() == 3_000_000
    refused = await client.post("/upload", content=b"x" * 3_000_001)
    assert (refused.status_code, refused.json()["type"]) == (413, "/problems/content-too-large")
    assert (await client.post("/small", content=b"x" * 11)).status_code == 413
    assert (await client.post("/fastapis-own", content=b"x" * 2_000_000)).json() == 2_000_000
    assert (await client.post("/fastapis-own", content=b"x" * 2_000_001)).status_code == 413
