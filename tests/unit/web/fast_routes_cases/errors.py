"""Errors: handlers by status, class and base class, errors in handlers, errors after the response has started."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.asgi_comparison import Call, Cases, Journal, New, get

CASES = Cases()


class Base(Exception):
    pass


class Derived(Base):
    pass


class Redirected(Exception):
    pass


class Unanswered(Exception):
    pass


class ByInstance(Exception):
    pass


class BySync(Exception):
    pass


class Reraised(Exception):
    pass


class Handled(HTTPException):
    def __init__(self) -> None:
        super().__init__(499, "own")


class Noted(Exception):
    def __init__(self) -> None:
        super().__init__("noted")
        self.add_note("a note")


KEPT = Base("kept")
ERRORS: dict[str, Any] = {
    "http-400": lambda: HTTPException(400, {"code": "x", "list": [1]}),
    "http-404": lambda: HTTPException(404),
    "http-418": lambda: HTTPException(418, "teapot", {"x-a": "b"}),
    "http-204": lambda: HTTPException(204),
    "http-304": lambda: HTTPException(304, headers={"etag": "e"}),
    "http-499": lambda: HTTPException(499, ["any", {"json": None}]),
    "http-500": lambda: HTTPException(500, "own 500"),
    "http-599": lambda: HTTPException(599),
    "http-unserializable": lambda: HTTPException(400, object()),
    "http-starlette": lambda: StarletteHTTPException(402, "pay"),
    "http-subclass": Handled,
    "base": lambda: Base("base"),
    "derived": lambda: Derived("derived"),
    "kept": lambda: KEPT,
    "redirected": lambda: Redirected("redirected"),
    "unanswered": lambda: Unanswered("unanswered"),
    "by-instance": lambda: ByInstance("instance"),
    "by-sync": lambda: BySync("sync"),
    "reraised": lambda: Reraised("reraised"),
    "noted": Noted,
    "key": lambda: KeyError("key"),
    "validation": lambda: RequestValidationError([{"loc": ("own",), "msg": "m", "type": "t"}], body={"a": 1}),
    "response-validation": lambda: ResponseValidationError([{"loc": ("response",), "msg": "m", "type": "t"}]),
    "group": lambda: ExceptionGroup("group", [Base("a"), HTTPException(400)]),
    "base-group": lambda: BaseExceptionGroup("group", [KeyboardInterrupt(), Base("b")]),
    "keyboard": lambda: KeyboardInterrupt("k"),
    "exit": lambda: SystemExit(3),
    "cancelled": lambda: asyncio.CancelledError("c"),
    "generator-exit": lambda: GeneratorExit("g"),
    "timeout": lambda: TimeoutError("t"),
    "skipped": lambda: pytest.fail.Exception("a BaseException of another library"),
}
PLACES = ("handler", "sync", "dependency", "exit")


def _errors(*, catch_all: str = "") -> Any:
    def build(new: New, log: Journal) -> FastAPI:
        app = new()

        @app.exception_handler(Base)
        async def base(request: Request, error: Base) -> Response:
            log("base handler", error, request.scope["route"])
            return JSONResponse({"base": str(error)}, 400, {"x-handler": "base"})

        @app.exception_handler(418)
        async def teapot(request: Request, error: HTTPException) -> Response:
            log("418 handler", error)
            return PlainTextResponse(error.detail, 418, error.headers)

        @app.exception_handler(Redirected)
        async def redirected(request: Request, error: Redirected) -> Response:
            raise HTTPException(409, "from the handler")

        @app.exception_handler(Unanswered)
        async def unanswered(request: Request, error: Unanswered) -> None:
            log("unanswered handler")

        @app.exception_handler(BySync)
        def by_sync(request: Request, error: BySync) -> Response:
            log("sync handler", request.url.path)
            return PlainTextResponse("sync", 400)

        @app.exception_handler(Reraised)
        async def reraised(request: Request, error: Reraised) -> Response:
            raise error

        class Instance:
            async def __call__(self, request: Request, error: Exception) -> Response:
                log("instance", error)
                return PlainTextResponse("instance", 400)

        app.add_exception_handler(ByInstance, Instance())

        if catch_all == "exception":

            @app.exception_handler(Exception)
            async def everything(request: Request, error: Exception) -> Response:
                log("catch-all", error, sorted(request.scope))
                return PlainTextResponse("catch-all", 500)

        if catch_all == "status":

            @app.exception_handler(500)
            def status(request: Request, error: Exception) -> Response:
                log("status 500", error)
                return PlainTextResponse("status 500", 500)

        if catch_all == "http":

            @app.exception_handler(StarletteHTTPException)
            async def http(request: Request, error: StarletteHTTPException) -> Response:
                log("http", error)
                return PlainTextResponse(f"http {error.status_code}", error.status_code)

        async def watch() -> AsyncIterator[None]:
            try:
                yield
            except BaseException as error:
                log("dependency saw", type(error))
                raise

        watched = [Depends(watch)]

        @app.get("/handler", dependencies=watched)
        async def handler(error: str) -> None:
            raise ERRORS[error]()

        @app.get("/sync", dependencies=watched)
        def sync(error: str) -> None:
            raise ERRORS[error]()

        async def failing(error: str) -> None:
            raise ERRORS[error]() from ValueError("the cause")

        @app.get("/dependency", dependencies=[*watched, Depends(failing)])
        async def dependency() -> None:
            log("not reached")

        async def exiting(error: str) -> AsyncIterator[None]:
            yield
            raise ERRORS[error]()

        @app.get("/exit", dependencies=[*watched, Depends(exiting, scope="function")])
        async def leaving() -> str:
            return "ok"

        return app

    return build


CASES.many(
    "error",
    {f"{name}_in_{place}".replace("-", "_"): get(f"/{place}?error={name}") for name in ERRORS for place in PLACES},
)(_errors())
CASES.many(
    "error_with_catch_all",
    {
        name.replace("-", "_"): get(f"/handler?error={name}")
        for name in ("key", "http-500", "base", "reraised", "group")
    },
)(_errors(catch_all="exception"))
CASES.many(
    "error_with_500_handler",
    {name.replace("-", "_"): get(f"/handler?error={name}") for name in ("key", "http-500", "redirected")},
)(_errors(catch_all="status"))
CASES.many(
    "error_with_http_handler",
    {name.replace("-", "_"): get(f"/handler?error={name}") for name in ("http-400", "http-418", "http-subclass")},
    not_found=get("/nowhere"),
    method=Call("PUT /handler"),
)(_errors(catch_all="http"))


@CASES.many(
    "nested",
    same_error_in_the_handler=get("/same"),
    chain_of_handlers=get("/chain"),
    handler_returns_a_dict=get("/dict"),
    handler_response_fails=get("/response-fails"),
    handler_with_background=get("/background"),
    handler_streams=get("/streams"),
    handler_for_validation_of_response=get("/response-validation"),
    traceback_is_dropped=get("/traceback"),
    traceback_is_kept_when_unhandled=get("/traceback-kept"),
)
def _nested(new: New, log: Journal) -> FastAPI:
    from starlette.background import BackgroundTask

    app = new()

    class One(Exception):
        pass

    class Two(Exception):
        pass

    class Three(Exception):
        pass

    class Four(Exception):
        pass

    @app.exception_handler(One)
    async def one(request: Request, error: One) -> Any:
        match str(error):
            case "same":
                raise One("again")
            case "chain":
                raise Two("two") from error
            case "dict":
                return {"not": "a response"}
            case "background":
                return PlainTextResponse("one", 400, background=BackgroundTask(log, "background"))
            case "streams":
                return StreamingResponse(iter([b"a", b"b"]), 400)
        return FailingResponse()

    class FailingResponse(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise Three("response")

    @app.exception_handler(Two)
    async def two(request: Request, error: Two) -> Any:
        log("two", error)
        raise Three("three")

    @app.exception_handler(Three)
    async def three(request: Request, error: Three) -> Response:
        log("three", error)
        return PlainTextResponse("three", 400)

    for name in ("same", "chain", "dict", "response-fails", "background", "streams"):

        async def handler(request: Request) -> None:
            raise One(request.url.path[1:])

        app.get(f"/{name}")(handler)

    @app.exception_handler(ResponseValidationError)
    async def invalid(request: Request, error: ResponseValidationError) -> Response:
        log("invalid", error, error.body, str(error))
        return PlainTextResponse("invalid", 500)

    @app.get("/response-validation")
    async def response_validation() -> int:
        return "x"  # type: ignore[return-value]

    kept = Three("kept"), Four("kept")

    async def watch() -> AsyncIterator[None]:
        yield
        log("tracebacks", *(error.__traceback__ is None for error in kept))

    @app.get("/traceback", dependencies=[Depends(watch)])
    async def traceback() -> None:
        raise kept[0]

    @app.get("/traceback-kept")
    async def traceback_kept() -> None:
        raise kept[1]

    return app


@CASES.many(
    "started",
    handled_error_after_start=get("/stream"),
    http_error_after_start=get("/stream-http"),
    unhandled_error_after_start=get("/stream-key"),
    error_in_request_exit=get("/exit"),
    http_error_in_request_exit=get("/exit-http"),
    error_before_start=get("/before"),
    sending_fails=Call("GET /ok", send_fails_at=0),
    sending_fails_in_handler_response=Call("GET /handled", send_fails_at=0),
    handler_of_os_error=Call("GET /ok-os", send_fails_at=1),
)
def _started(new: New, log: Journal) -> FastAPI:
    app = new()

    class Own(Exception):
        pass

    @app.exception_handler(Own)
    async def own(request: Request, error: Own) -> Response:
        log("own", error)
        return PlainTextResponse("own", 400)

    @app.exception_handler(OSError)
    async def os_error(request: Request, error: OSError) -> Response:
        log("os error", error)
        return PlainTextResponse("os", 400)

    def streaming(error: Exception, *, first: bool = True) -> Any:
        async def chunks() -> AsyncIterator[bytes]:
            if first:
                yield b"a"
            raise error

        async def handler() -> Response:
            return StreamingResponse(chunks())

        return handler

    class Late(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise Own("before the start")

    app.get("/stream")(streaming(Own("late")))
    app.get("/stream-http")(streaming(HTTPException(400)))
    app.get("/stream-key")(streaming(KeyError("late")))

    @app.get("/before")
    async def before() -> Response:
        return Late()

    def exiting(error: Exception) -> Any:
        async def dependency() -> AsyncIterator[None]:
            yield
            raise error

        return [Depends(dependency)]

    async def ok() -> str:
        return "ok"

    app.get("/ok")(ok)
    app.get("/ok-os")(ok)
    app.get("/exit", dependencies=exiting(Own("exit")))(ok)
    app.get("/exit-http", dependencies=exiting(HTTPException(400)))(ok)

    @app.get("/handled")
    async def handled() -> None:
        raise Own("handled")

    return app


@CASES.many("debug", key=get("/key"), http=get("/http"))
def _debug(new: New, log: Journal) -> ASGIApp:
    """The traceback in the page of the debug mode differs on purpose: only its last line is compared."""
    app = new(debug=True)

    @app.get("/key")
    async def key() -> None:
        raise KeyError("key")

    @app.get("/http")
    async def http() -> None:
        raise HTTPException(400)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def last_line(message: Any) -> None:
            if message.get("body", b"").startswith(b"Traceback"):
                message["body"] = message["body"].rstrip().rpartition(b"\n")[2]
            if message["type"] == "http.response.start" and message["status"] == 500:
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"content-length"]
            await send(message)

        await app(scope, receive, last_line)

    return outer


@CASES.one("handler-added-after-the-first-request", "GET /", "GET /add", "GET /")
def _late_handler(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/")
    async def handler() -> None:
        raise Base("late")

    @app.get("/add")
    async def add() -> None:
        async def base(request: Request, error: Exception) -> Response:
            return PlainTextResponse("base", 400)

        app.add_exception_handler(Base, base)
        app.middleware_stack = None

    return app


@CASES.one("handlers-of-a-mounted-application", "GET /sub/derived", "GET /sub/key", "GET /derived")
def _mounted_handlers(new: New, log: Journal) -> FastAPI:
    app, sub = new(), new()

    async def outer(request: Request, error: Exception) -> Response:
        return PlainTextResponse("outer", 400)

    async def inner(request: Request, error: Exception) -> Response:
        return PlainTextResponse("inner", 400)

    app.add_exception_handler(Base, outer)
    sub.add_exception_handler(Derived, inner)
    for each in (app, sub):

        @each.get("/derived")
        async def derived() -> None:
            raise Derived("derived")

        @each.get("/key")
        async def key() -> None:
            raise KeyError("key")

    app.mount("/sub", sub)
    return app


@CASES.one("handlers-in-the-scope-replaced", "GET /")
def _handlers_in_scope(new: New, log: Journal) -> FastAPI:
    """Route handlers are looked up through the scope's own key, which a dependency may replace too late."""
    app = new()

    async def replace(request: Request) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            return PlainTextResponse("replaced", 400)

        request.scope["starlette.exception_handlers"] = ({Base: handler}, {})

    @app.get("/", dependencies=[Depends(replace)])
    async def fail() -> None:
        raise Base("replaced")

    return app


@CASES.one("validation-error-context", "GET /items/x?n=y")
def _validation_context(new: New, log: Journal) -> FastAPI:
    """The text of a validation error names the endpoint's file, line, function and path."""
    app = new()

    @app.get("/items/{item}")
    async def items(item: int, n: int) -> None:
        log("not reached")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        log("text", str(error), error.endpoint_path, error.endpoint_function, error.endpoint_line)
        return PlainTextResponse(str(error), 422)

    return app
