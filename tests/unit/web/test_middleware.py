import json
import logging
from collections.abc import Callable

import pytest
from fastapi import FastAPI, Request
from httpx import ASGITransport, AsyncClient

from app.errors import DatabaseUnavailable, PoolExhausted, StatementTimeout, TransientDatabaseError


async def test_every_answer_has_a_request_id_of_its_own(client: AsyncClient) -> None:
    ids = [(await client.get(path)).headers["x-request-id"] for path in ("/livez", "/livez", "/nothing")]

    assert len(set(ids)) == 3
    assert all(len(identity) == 32 for identity in ids)


@pytest.mark.parametrize("sane", ["abc-1", "0af7651916cd43dd8448eb211c80319c", "a/b:c=1"])
async def test_a_callers_id_is_kept(client: AsyncClient, sane: str) -> None:
    assert (await client.get("/livez", headers={"x-request-id": sane})).headers["x-request-id"] == sane


@pytest.mark.parametrize("insane", ["", "a b", "x" * 129, "é", "-", 'a"b', "<script>"])
async def test_a_callers_id_that_could_harm_a_log_is_replaced(client: AsyncClient, insane: str) -> None:
    answer = await client.get("/livez", headers=[(b"x-request-id", insane.encode("latin-1"))])

    assert answer.headers["x-request-id"] != insane


async def test_an_unhandled_exception_is_a_problem_with_the_id_and_without_the_cause(
    app: FastAPI, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise LookupError("secret detail")

    answer = await client.get("/broken", headers={"x-request-id": "abc"})

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/internal-error"
    assert answer.json()["request_id"] == "abc"
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text, "the log says what the answer does not"


@pytest.mark.parametrize("error", [PoolExhausted, DatabaseUnavailable, StatementTimeout])
async def test_a_transient_error_says_when_to_come_back_and_nothing_about_the_inside(
    app: FastAPI, client: AsyncClient, error: type[TransientDatabaseError]
) -> None:
    @app.get("/full")
    async def full() -> None:
        raise error("size=5 host=db.internal")

    answer = await client.get("/full")

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["type"] == f"/problems/{error.slug}"
    assert "internal" not in answer.text


async def test_an_answer_that_breaks_off_is_not_finished_with_a_problem(app: FastAPI) -> None:
    async def half_an_answer(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        raise LookupError

    app.mount("/half", half_an_answer)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(LookupError):
            await client.get("/half/")


async def test_a_request_is_one_line_in_the_log(client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headroom.request")
    await client.get("/users/1")
    await client.get("/livez")

    [record] = [record for record in caplog.records if record.name == "headroom.request"]
    assert record.getMessage().startswith("GET /users/1 404 ")
    assert record.__dict__["status"] == 404


async def test_a_path_cannot_write_a_line_of_its_own(client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headroom.request")
    await client.get("/a%0a00:00:00 INFO forged%1b[31m")

    [record] = [record for record in caplog.records if record.name == "headroom.request"]
    assert record.getMessage().startswith("GET /a%0a00:00:00%20INFO%20forged%1b[31m 404 ")


async def test_every_log_line_of_a_request_has_its_id(
    app: FastAPI, client: AsyncClient, json_log: Callable[[], str]
) -> None:
    @app.get("/chatty")
    async def chatty(request: Request) -> None:
        logging.getLogger("some.library").warning("hello")

    await client.get("/chatty", headers={"x-request-id": "abc"})

    lines = [json.loads(line) for line in json_log().splitlines()]
    assert {line["request_id"] for line in lines if line["logger"] != "httpx"} == {"abc"}
    assert [line["message"] for line in lines if line["logger"] == "some.library"] == ["hello"]


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(app: FastAPI, client: AsyncClient) -> None:
    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    async def in_two(length: int):  # type: ignore[no-untyped-def]
        yield b"x" * (length - 1)
        yield b"x"

    assert (await client.post("/size", content=b"x" * 1_048_576)).json() == 1_048_576
    assert (await client.post("/size", content=b"x" * 1_048_577)).status_code == 413
    assert (await client.post("/size", content=in_two(1_048_576))).json() == 1_048_576
    assert (await client.post("/size", content=in_two(1_048_577))).status_code == 413
