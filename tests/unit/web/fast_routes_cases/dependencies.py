"""Dependencies: caching, order, kinds of callables, scopes of exits, exceptions in exits, overrides, security."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import anyio.lowlevel
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
)
from fastapi.dependencies.utils import get_parameterless_sub_dependant
from fastapi.exceptions import FastAPIError
from fastapi.security import (
    APIKeyHeader,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityScopes,
)
from pydantic import AfterValidator, BaseModel
from starlette.background import BackgroundTasks as StarletteBackgroundTasks
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from tests.support.asgi_comparison import NOTE, Call, Cases, Drive, Journal, New, get, in_turn, post, swallow

CASES = Cases()


UNCACHED = "a dependency has use_cache=False"
OVERRIDDEN = "dependencies are overridden"
PREPARED = "a plan is prepared at the first request after the route was added"


@CASES.many(
    "cache",
    slow=dict.fromkeys(("off", "off_then_on", "on_then_off", "generator_off"), UNCACHED),
    on=get("/on"),
    off=get("/off"),
    off_then_on=get("/off-on"),
    on_then_off=get("/on-off"),
    diamond=get("/diamond"),
    sync=get("/sync"),
    none=get("/none"),
    generator=get("/generator"),
    generator_off=get("/generator-off"),
    two_scopes_of_one_generator=get("/scopes"),
    parameterless=get("/parameterless"),
    equal_instances=get("/equal"),
    same_partial=get("/partial"),
)
def _cache(new: New, log: Journal) -> FastAPI:
    app = new()
    count = 0

    async def counter() -> int:
        nonlocal count
        count += 1
        log("counter", count)
        return count

    def sync_counter() -> int:
        nonlocal count
        count += 1
        log("counter", count)
        return count

    async def nothing() -> None:
        log("nothing")

    async def generator() -> AsyncIterator[int]:
        value = await counter()
        yield value
        log("exit", value)

    @app.get("/on")
    async def on(a: Annotated[int, Depends(counter)], b: Annotated[int, Depends(counter)]) -> list[int]:
        return [a, b]

    @app.get("/off")
    async def off(
        a: Annotated[int, Depends(counter, use_cache=False)], b: Annotated[int, Depends(counter, use_cache=False)]
    ) -> list[int]:
        return [a, b]

    @app.get("/off-on")
    async def off_on(
        a: Annotated[int, Depends(counter, use_cache=False)], b: Annotated[int, Depends(counter)]
    ) -> list[int]:
        return [a, b]

    @app.get("/on-off")
    async def on_off(
        a: Annotated[int, Depends(counter)],
        b: Annotated[int, Depends(counter, use_cache=False)],
        c: Annotated[int, Depends(counter)],
    ) -> list[int]:
        return [a, b, c]

    async def left(value: Annotated[int, Depends(counter)]) -> int:
        log("left", value)
        return value

    async def right(value: Annotated[int, Depends(counter)]) -> int:
        log("right", value)
        return value

    @app.get("/diamond")
    async def diamond(
        a: Annotated[int, Depends(left)], b: Annotated[int, Depends(right)], c: Annotated[int, Depends(counter)]
    ) -> list[int]:
        return [a, b, c]

    @app.get("/sync")
    async def sync(a: Annotated[int, Depends(sync_counter)], b: Annotated[int, Depends(sync_counter)]) -> list[int]:
        return [a, b]

    @app.get("/none")
    async def none(a: Annotated[None, Depends(nothing)], b: Annotated[None, Depends(nothing)]) -> list[None]:
        return [a, b]

    @app.get("/generator")
    async def with_generator(a: Annotated[int, Depends(generator)], b: Annotated[int, Depends(generator)]) -> list[int]:
        return [a, b]

    @app.get("/generator-off")
    async def with_generators(
        a: Annotated[int, Depends(generator)], b: Annotated[int, Depends(generator, use_cache=False)]
    ) -> list[int]:
        return [a, b]

    @app.get("/scopes")
    async def scopes(
        a: Annotated[int, Depends(generator, scope="function")],
        b: Annotated[int, Depends(generator, scope="request")],
        c: Annotated[int, Depends(generator)],
    ) -> list[int]:
        return [a, b, c]

    @app.get("/parameterless", dependencies=[Depends(counter), Depends(counter, use_cache=False)])
    async def parameterless(a: Annotated[int, Depends(counter)]) -> int:
        return a

    class Equal:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

        async def __call__(self) -> int:
            return await counter()

    @app.get("/equal")
    async def equal(a: Annotated[int, Depends(Equal())], b: Annotated[int, Depends(Equal())]) -> list[int]:
        return [a, b]

    same = functools.partial(counter)

    @app.get("/partial")
    async def partial(a: Annotated[int, Depends(same)], b: Annotated[int, Depends(same)]) -> list[int]:
        return [a, b]

    return app


class Pagination:
    def __init__(self, request: Request, limit: int = 10, offset: int = 0) -> None:
        self.limit, self.offset, self.path = limit, offset, request.url.path


class Multiply:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def __call__(self, n: int) -> int:
        return n * self.factor

    def method(self, n: int) -> int:
        return n + self.factor

    async def async_method(self, n: int) -> int:
        return n - self.factor


class SyncInstance:
    def __call__(self, n: int) -> int:
        return -n


class GeneratorInstance:
    def __init__(self, log: Journal) -> None:
        self.log = log

    async def __call__(self, n: int) -> AsyncIterator[int]:
        self.log("enter", n)
        yield n
        self.log("exit", n)


@CASES.many(
    "callable",
    klass=get("/class?limit=3"),
    klass_invalid=get("/class?limit=x"),
    klass_shortcut=get("/shortcut?offset=3"),
    instance=get("/instance?n=3"),
    sync_instance=get("/sync-instance?n=3"),
    generator_instance=get("/generator-instance?n=3"),
    method=get("/method?n=3"),
    async_method=get("/async-method?n=3"),
    partial=get("/partial?b=3"),
    async_partial=get("/async-partial?b=3"),
    partial_of_generator=get("/partial-generator?b=3"),
    lambda_=get("/lambda?n=3"),
    model=get("/model?n=3"),
    wrapped=get("/wrapped?n=3"),
    wrapped_generator=get("/wrapped-generator?n=3"),
    static_method=get("/static?n=3"),
    default_style=get("/default-style?n=3"),
    returns_response=get("/returns-response"),
    returns_context_manager=get("/context-manager"),
    connection=get("/connection", x_a="1"),
    request_subclass=get("/request-subclass"),
    all_special=get("/special"),
)
def _callables(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/class")
    async def klass(page: Annotated[Pagination, Depends(Pagination)]) -> Any:
        return [page.limit, page.offset, page.path]

    @app.get("/shortcut")
    async def shortcut(page: Annotated[Pagination, Depends()]) -> Any:
        return [page.limit, page.offset]

    @app.get("/instance")
    async def instance(n: Annotated[int, Depends(Multiply(2))], m: Annotated[int, Depends(Multiply(3))]) -> list[int]:
        return [n, m]

    @app.get("/sync-instance")
    async def sync_instance(n: Annotated[int, Depends(SyncInstance())]) -> int:
        return n

    @app.get("/generator-instance")
    async def generator_instance(n: Annotated[int, Depends(GeneratorInstance(log))]) -> int:
        return n

    two = Multiply(2)

    @app.get("/method")
    async def method(n: Annotated[int, Depends(two.method)]) -> int:
        return n

    @app.get("/async-method")
    async def async_method(n: Annotated[int, Depends(two.async_method)]) -> int:
        return n

    def add(a: int, b: int) -> int:
        return a + b

    async def add_later(a: int, b: int) -> int:
        return a + b

    def add_and_exit(a: int, b: int) -> Iterator[int]:
        yield a + b
        log("exit")

    @app.get("/partial")
    async def partial(n: Annotated[int, Depends(functools.partial(add, a=1))]) -> int:
        return n

    @app.get("/async-partial")
    async def async_partial(n: Annotated[int, Depends(functools.partial(add_later, 1))]) -> int:
        return n

    @app.get("/partial-generator")
    async def partial_generator(n: Annotated[int, Depends(functools.partial(add_and_exit, a=1))]) -> int:
        return n

    @app.get("/lambda")
    async def of_lambda(n: Annotated[str, Depends(lambda n: n)]) -> str:
        return n

    class Model(BaseModel):
        n: int

    @app.get("/model")
    async def model(m: Annotated[Model, Depends()]) -> Model:
        return m

    def noted(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            log("wrapper", args, kwargs)
            return function(*args, **kwargs)

        return wrapper

    @noted
    async def double(n: int) -> int:
        return 2 * n

    @noted
    async def yielding(n: int) -> AsyncIterator[int]:
        yield n
        log("exit")

    @app.get("/wrapped")
    async def wrapped(n: Annotated[int, Depends(double)]) -> int:
        return n

    @app.get("/wrapped-generator")
    async def wrapped_generator(n: Annotated[int, Depends(yielding)]) -> int:
        return n

    class Holder:
        @staticmethod
        async def static(n: int) -> int:
            return n

    @app.get("/static")
    async def static(n: Annotated[int, Depends(Holder.static)]) -> int:
        return n

    @app.get("/default-style")
    async def default_style(n: int = Depends(double), m: int = Depends(two)) -> list[int]:
        return [n, m]

    async def response() -> Response:
        return PlainTextResponse("from the dependency")

    @app.get("/returns-response")
    async def returns_response(answer: Annotated[Response, Depends(response)]) -> Response:
        return answer

    @asynccontextmanager
    async def managed() -> AsyncIterator[int]:
        log("enter")
        yield 1
        log("exit")

    @app.get("/context-manager")
    async def context_manager(value: Annotated[Any, Depends(managed)]) -> str:
        return type(value).__name__

    async def connected(connection: HTTPConnection, socket: WebSocket = None) -> Any:  # type: ignore[assignment]
        log.same("connection", connection)
        return [connection.headers["x-a"], socket]

    @app.get("/connection")
    async def connection(request: Request, value: Annotated[Any, Depends(connected)]) -> Any:
        log.same("connection", request)
        return value

    class OwnRequest(Request):
        pass

    @app.get("/request-subclass")
    async def request_subclass(request: OwnRequest) -> str:
        return type(request).__name__

    @app.get("/special")
    async def special(
        request: Request,
        connection: HTTPConnection,
        response: Response,
        tasks: BackgroundTasks,
        starlette_tasks: StarletteBackgroundTasks,
        scopes: SecurityScopes,
    ) -> Any:
        log("special", response.status_code, response.raw_headers, tasks, scopes.scopes, scopes.scope_str)
        log.same("tasks", tasks)
        log.same("tasks", starlette_tasks)
        return [connection is request]

    return app


SCOPES = ("function", "request", None)


def _generators(log: Journal) -> dict[str, Callable[..., Any]]:
    async def async_one() -> AsyncIterator[str]:
        log("enter async one")
        try:
            yield "async one"
        except BaseException as error:
            log("async one saw", error)
            raise
        finally:
            log("exit async one")

    def sync_one() -> Iterator[str]:
        log("enter sync one")
        try:
            yield "sync one"
        except BaseException as error:
            log("sync one saw", error)
            raise
        finally:
            log("exit sync one")

    return {"async": async_one, "sync": sync_one}


@CASES.many(
    "exit",
    {
        f"{kind}_{scope or 'default'}_{outcome}": get(f"/{kind}/{scope}?outcome={outcome}")
        for kind in ("async", "sync")
        for scope in SCOPES
        for outcome in ("returns", "http", "error", "invalid", "group", "base", "stream")
    },
)
def _exits(new: New, log: Journal) -> FastAPI:
    """When exits run, relative to the response and to background tasks, and which exceptions they see."""
    app = new()

    async def last() -> AsyncIterator[None]:
        log("enter last")
        yield
        log("exit last")

    for kind, generator in _generators(log).items():
        for scope in SCOPES:

            async def handler(
                outcome: str,
                tasks: BackgroundTasks,
                value: Annotated[str, Depends(generator, scope=scope)],
                after: Annotated[None, Depends(last)],
            ) -> Any:
                log("handler", outcome, value)
                tasks.add_task(log, "background")
                match outcome:
                    case "http":
                        raise HTTPException(409, "conflict")
                    case "error":
                        raise KeyError("error")
                    case "group":
                        raise ExceptionGroup("group", [ValueError("a"), HTTPException(400)])
                    case "base":
                        raise KeyboardInterrupt
                    case "invalid":
                        return Unserializable()
                    case "stream":
                        return StreamingResponse(_chunks(log))
                return value

            app.get(f"/{kind}/{scope}", response_model=None)(handler)
    return app


class Unserializable:
    __slots__ = ()

    def __iter__(self) -> Any:
        raise ValueError("not serializable")


async def _chunks(log: Journal) -> AsyncIterator[bytes]:
    for chunk in (b"a", b"b"):
        log("chunk", chunk)
        yield chunk


@CASES.many(
    "exit_raises",
    {
        f"{kind}_{scope}_{outcome}_{how}": get(f"/{kind}/{scope}?outcome={outcome}&how={how}")
        for kind in ("async", "sync")
        for scope in ("function", "request")
        for outcome, hows in {
            "returns": ("http", "error", "again", "handled"),
            "fails": ("http", "error", "swallow", "reraise", "handled", "return"),
            "validation": ("http", "swallow"),
        }.items()
        for how in hows
    },
)
def _exits_raise(new: New, log: Journal) -> FastAPI:
    app = new()

    class Handled(Exception):
        pass

    @app.exception_handler(Handled)
    async def handle(request: Request, error: Handled) -> Response:
        log("handle", error)
        return PlainTextResponse("handled", 418)

    def leave(how: str, error: BaseException | None) -> None:
        log("leave", how, error)
        match how:
            case "http":
                raise HTTPException(409, "from the exit") from error
            case "error":
                raise LookupError("from the exit")
            case "handled":
                raise Handled("from the exit")
            case "reraise" if error is not None:
                raise error

    async def of_async(how: str) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a dependency that swallows is what is tested
            leave(how, error)
        else:
            leave(how, None)
            if how == "again":
                yield
        if how == "return":
            return

    def of_sync(how: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a dependency that swallows is what is tested
            leave(how, error)
        else:
            leave(how, None)
            if how == "again":
                yield

    async def before() -> AsyncIterator[None]:
        log("enter before")
        try:
            yield
        except Exception as error:
            log("before saw", error)
            raise
        log("exit before")

    for kind, generator in {"async": of_async, "sync": of_sync}.items():
        for scope in ("function", "request"):

            async def handler(
                outcome: str,
                first: Annotated[None, Depends(before)],
                value: Annotated[None, Depends(generator, scope=scope)],
                n: Annotated[int, Query()] = 0,
            ) -> str:
                log("handler", outcome)
                if outcome == "fails":
                    raise KeyError("from the handler")
                if outcome == "validation":
                    return 5  # type: ignore[return-value]
                return "ok"

            app.get(f"/{kind}/{scope}")(handler)
    return app


@CASES.many(
    "enter",
    fails_after_others=get("/fails?how=error"),
    http_exception_after_others=get("/fails?how=http"),
    without_yield=get("/fails?how=return"),
    sync_without_yield=get("/sync-return"),
    then_invalid=get("/then-invalid?n=x"),
    dependency_of_dependency=get("/nested"),
    dependency_of_dependency_fails=get("/nested?fail=1"),
    stop_iteration=get("/stop?how=stop"),
    stop_async_iteration=get("/stop?how=async"),
    generator_exit=get("/stop?how=exit"),
    stop_iteration_in_handler=get("/stop-handler?how=stop"),
    stop_async_iteration_in_handler=get("/stop-handler?how=async"),
    sync_stop_iteration_in_handler=get("/sync-stop"),
)
def _enters(new: New, log: Journal) -> FastAPI:
    app = new()

    async def first() -> AsyncIterator[int]:
        log("enter first")
        try:
            yield 1
        except BaseException as error:
            log("first saw", error)
            raise
        finally:
            log("exit first")

    async def failing(how: str, before: Annotated[int, Depends(first)]) -> AsyncIterator[int]:
        log("enter failing")
        if how == "error":
            raise KeyError("enter")
        if how == "http":
            raise HTTPException(401, headers={"www-authenticate": "x"})
        if how == "return":
            return
        yield 2

    def sync_failing() -> Iterator[int]:
        if log is None:
            yield 1

    @app.get("/fails")
    async def fails(a: Annotated[int, Depends(first)], b: Annotated[int, Depends(failing)]) -> None:
        log("handler")

    @app.get("/sync-return")
    async def sync_return(a: Annotated[int, Depends(first)], b: Annotated[int, Depends(sync_failing)]) -> None:
        log("handler")

    @app.get("/then-invalid")
    async def then_invalid(n: int, a: Annotated[int, Depends(first)]) -> None:
        log("handler")

    def inner() -> Iterator[str]:
        log("enter inner")
        yield "inner"
        log("exit inner")

    async def outer(value: Annotated[str, Depends(inner)]) -> AsyncIterator[str]:
        log("enter outer")
        try:
            yield f"outer of {value}"
        finally:
            log("exit outer")

    async def outermost(value: Annotated[str, Depends(outer, scope="request")]) -> AsyncIterator[str]:
        log("enter outermost")
        yield value
        log("exit outermost")

    @app.get("/nested")
    async def nested(value: Annotated[str, Depends(outermost, scope="function")], fail: bool = False) -> str:
        if fail:
            raise HTTPException(400)
        return value

    def stop(how: str) -> None:
        raise {"stop": StopIteration, "async": StopAsyncIteration, "exit": GeneratorExit}[how]("stop")

    async def stopping(how: str) -> None:
        stop(how)

    @app.get("/stop")
    async def stopped(a: Annotated[int, Depends(first)], b: Annotated[None, Depends(stopping)]) -> None:
        log("handler")

    @app.get("/stop-handler")
    async def stop_handler(a: Annotated[int, Depends(first)], how: str) -> None:
        stop(how)

    @app.get("/sync-stop")
    def sync_stop(a: Annotated[int, Depends(first)]) -> None:
        stop("stop")

    return app


@CASES.many(
    "context",
    set_in_async_dependency=get("/async"),
    set_in_sync_dependency=get("/sync"),
    set_in_async_generator=get("/async-generator"),
    set_in_sync_generator=get("/sync-generator"),
    set_in_handler=get("/handler"),
    set_in_sync_handler=get("/sync-handler"),
    reset_in_exit=get("/reset"),
    read_in_background=get("/background"),
)
def _context(new: New, log: Journal) -> FastAPI:
    app = new()

    async def by_async() -> None:
        NOTE.set("async")

    def by_sync() -> None:
        NOTE.set("sync")
        log("inside", NOTE.get())

    async def by_async_generator() -> AsyncIterator[None]:
        NOTE.set("async generator")
        yield
        log("exit", NOTE.get())
        NOTE.set("async exit")

    def by_sync_generator() -> Iterator[None]:
        NOTE.set("sync generator")
        yield
        log("exit", NOTE.get())

    async def resetting() -> AsyncIterator[None]:
        token = NOTE.set("to be reset")
        yield
        NOTE.reset(token)

    async def read() -> str:
        log("background", NOTE.get())
        return NOTE.get()

    for path, dependency in {
        "/async": by_async,
        "/sync": by_sync,
        "/async-generator": by_async_generator,
        "/sync-generator": by_sync_generator,
        "/reset": resetting,
        "/background": by_async_generator,
    }.items():

        async def handler(tasks: BackgroundTasks) -> str:
            tasks.add_task(read)
            return NOTE.get()

        app.get(path, dependencies=[Depends(dependency)])(handler)

    @app.get("/handler")
    async def in_handler() -> str:
        NOTE.set("handler")
        return NOTE.get()

    @app.get("/sync-handler")
    def in_sync_handler() -> str:
        NOTE.set("sync handler")
        return NOTE.get()

    return app


async def _original() -> str:
    return "original"


def _override(kind: str, log: Journal) -> Callable[..., Any]:
    async def plain() -> str:
        return "override"

    def sync() -> str:
        return "sync override"

    async def generator() -> AsyncIterator[str]:
        yield "generator override"
        log("exit override")

    async def parameters(request: Request, n: int, sub: Annotated[str, Depends(plain)]) -> str:
        return f"{sub} {n} {request.url.path}"

    async def raising() -> str:
        raise HTTPException(401)

    async def itself(value: Annotated[str, Depends(_original)]) -> str:
        return f"own {value}"

    return locals()[kind]  # type: ignore[no-any-return]


def _overridden(kind: str, when: str) -> Callable[[New, Journal], FastAPI]:
    def build(new: New, log: Journal) -> FastAPI:
        app = new()

        async def middle(value: Annotated[str, Depends(_original)]) -> str:
            return f"middle {value}"

        @app.get("/")
        async def handler(
            value: Annotated[str, Depends(_original)], nested: Annotated[str, Depends(middle)]
        ) -> list[str]:
            return [value, nested]

        @app.get("/set")
        async def install() -> None:
            if when == "replaced":
                app.dependency_overrides = {_original: _override(kind, log)}
            else:
                app.dependency_overrides[_original] = _override(kind, log)

        @app.get("/clear")
        async def clear() -> None:
            app.dependency_overrides.clear()

        if when == "early":
            app.dependency_overrides[_original] = _override(kind, log)
        return app

    return build


for _kind in ("plain", "sync", "generator", "parameters", "raising", "itself"):
    CASES.one(f"override-{_kind}", "GET /?n=3", "GET /clear", "GET /?n=3", slow=OVERRIDDEN, fast=1)(
        _overridden(_kind, "early")
    )
for _when in ("late", "replaced"):
    CASES.one(f"override-{_when}", "GET /", "GET /set", "GET /", "GET /clear", "GET /", slow=OVERRIDDEN, fast=3)(
        _overridden("plain", _when)
    )


@CASES.one("override-invalid-parameter", "GET /", slow=OVERRIDDEN)
def _override_invalid(new: New, log: Journal) -> FastAPI:
    return _overridden("parameters", "early")(new, log)


@CASES.one("override-in-an-included-router", "GET /a/x", "GET /b/x", slow=OVERRIDDEN)
def _override_included(new: New, log: Journal) -> FastAPI:
    app, router = new(), APIRouter(dependencies=[Depends(_original)])

    @router.get("/x")
    async def x(value: Annotated[str, Depends(_original)]) -> str:
        return value

    app.include_router(router, prefix="/a")
    app.dependency_overrides[_original] = _override("generator", log)
    app.include_router(router, prefix="/b", dependencies=[Depends(_original)])
    return app


@CASES.one(
    "override-installed-by-a-dependency",
    "GET /?n=1",
    "GET /?n=1",
    slow=OVERRIDDEN,
    fast=1,
    differs="FastAPI solves the whole operation again, so that validators of the first dependencies run twice",
)
def _override_while_solving(new: New, log: Journal) -> FastAPI:
    """An override applies at once to the dependencies that are not solved yet."""
    app = new()

    def noted(value: int) -> int:
        log("validated", value)
        return value

    async def first(n: Annotated[int, AfterValidator(noted)], tasks: BackgroundTasks) -> int:
        tasks.add_task(log, "task")
        return n

    async def installs() -> None:
        app.dependency_overrides[_original] = _override("plain", log)

    @app.get("/")
    async def handler(
        a: Annotated[int, Depends(first)],
        b: Annotated[None, Depends(installs)],
        c: Annotated[str, Depends(_original)],
        d: Annotated[int, Depends(first)],
    ) -> list[Any]:
        return [a, b, c, d]

    return app


@CASES.one("override-mapping-of-another-type", "GET /", slow=OVERRIDDEN)
def _override_mapping(new: New, log: Journal) -> FastAPI:
    class Overrides(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            log("get", key)
            return default

        def __bool__(self) -> bool:
            return True

    app = _overridden("plain", "late")(new, log)
    app.dependency_overrides = Overrides()
    return app


@CASES.many(
    "security",
    scopes=get("/scopes", authorization="Bearer t"),
    scopes_are_cached_apart=get("/cached"),
    bearer=get("/bearer", authorization="Bearer abc"),
    bearer_missing=get("/bearer"),
    bearer_other_scheme=get("/bearer", authorization="Basic abc"),
    bearer_optional=get("/bearer-optional"),
    basic=get("/basic", authorization="Basic YTpi"),
    basic_broken=get("/basic", authorization="Basic !!"),
    oauth2_missing=get("/oauth2"),
    api_key=get("/key", x_key="k"),
    api_key_missing=get("/key"),
    before_validation=post("/both", b"{"),
    before_validation_of_parameters=get("/both?n=x"),
)
def _security(new: New, log: Journal) -> FastAPI:
    app = new()
    oauth2 = OAuth2PasswordBearer("token")

    async def user(scopes: SecurityScopes, token: Annotated[str, Depends(oauth2)]) -> str:
        log("user", scopes.scopes, token)
        return token

    async def active(user: Annotated[str, Security(user, scopes=["me", "me"])]) -> str:
        return user

    @app.get("/scopes", dependencies=[Security(active, scopes=["route"])])
    async def scopes(
        a: Annotated[str, Security(active, scopes=["items"])], b: Annotated[str, Security(user, scopes=["items", "me"])]
    ) -> list[str]:
        return [a, b]

    async def noted(scopes: SecurityScopes) -> list[str]:
        log("noted", scopes.scopes)
        return scopes.scopes

    @app.get("/cached")
    async def cached(
        a: Annotated[list[str], Security(noted, scopes=["a"])],
        b: Annotated[list[str], Security(noted, scopes=["b", "a"])],
        c: Annotated[list[str], Security(noted, scopes=["a", "b"])],
        d: Annotated[list[str], Depends(noted)],
    ) -> Any:
        return [a, b, c, d]

    @app.get("/bearer")
    async def bearer(value: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
        return value.credentials

    @app.get("/bearer-optional")
    async def bearer_optional(value: Annotated[Any, Depends(HTTPBearer(auto_error=False))]) -> Any:
        return value

    @app.get("/basic")
    async def basic(value: Annotated[Any, Depends(HTTPBasic())]) -> str:
        return str(value.username)

    @app.get("/oauth2")
    async def by_oauth2(token: Annotated[str, Depends(oauth2)]) -> str:
        return token

    @app.get("/key")
    async def key(value: Annotated[str, Security(APIKeyHeader(name="X-Key"))]) -> str:
        return value

    async def refuse() -> None:
        log("refuse")
        raise HTTPException(401)

    @app.get("/both", dependencies=[Depends(refuse)])
    async def both(n: int) -> int:
        return n

    class Item(BaseModel):
        name: str

    @app.post("/both", dependencies=[Depends(refuse)])
    async def both_with_body(item: Item) -> Item:
        return item

    return app


@CASES.many(
    "level",
    app=get("/app?a=1"),
    router=get("/outer/router"),
    nested=get("/outer/included/nested/leaf"),
    nested_fails=get("/outer/included/nested/leaf?fail=include"),
    route_fails=get("/app?fail=route"),
    app_parameter_invalid=get("/app?level=x"),
)
def _levels(new: New, log: Journal) -> FastAPI:
    def at(name: str) -> Any:
        async def level(fail: str = "") -> AsyncIterator[None]:
            log("enter", name)
            if fail == name:
                raise HTTPException(403, name)
            yield
            log("exit", name)

        return Depends(level)

    async def number(level: int = 0) -> int:
        log("level", level)
        return level

    app = new(dependencies=[at("app"), Depends(number)])
    router = APIRouter(prefix="/outer", dependencies=[at("router")])
    nested = APIRouter(prefix="/nested", dependencies=[at("nested")])

    @app.get("/app", dependencies=[at("route")])
    async def on_app() -> str:
        log("handler")
        return "app"

    @router.get("/router")
    async def on_router(level: Annotated[int, Depends(number)]) -> int:
        return level

    @nested.get("/leaf", dependencies=[at("leaf"), at("leaf 2")])
    async def leaf() -> str:
        return "leaf"

    router.include_router(nested, prefix="/included", dependencies=[at("inner include")])
    app.include_router(router, dependencies=[at("include")])
    return app


@CASES.many(
    "tasks",
    from_dependency=get("/dependency"),
    from_dependency_and_handler=get("/both"),
    with_returned_response=get("/response"),
    with_returned_response_that_has_its_own=get("/own"),
    failing=get("/failing"),
    failing_with_http_exception=get("/failing-http"),
    sync=get("/sync"),
    several=get("/several"),
    when_the_handler_fails=get("/raises"),
    starlette_annotation=get("/starlette"),
    added_by_a_task=get("/recursive"),
    added_in_an_exit=get("/exit"),
    added_in_a_function_exit=get("/function-exit"),
    with_status_204=get("/no-content"),
)
def _tasks(new: New, log: Journal) -> FastAPI:
    app = new()

    async def note(text: str) -> None:
        log("task", text, NOTE.get())

    async def adds(tasks: BackgroundTasks) -> BackgroundTasks:
        NOTE.set("dependency")
        tasks.add_task(note, "dependency")
        return tasks

    async def watch() -> AsyncIterator[None]:
        yield
        log("exit")

    @app.get("/dependency", dependencies=[Depends(adds), Depends(watch)])
    async def dependency() -> str:
        return "ok"

    @app.get("/both")
    async def both(tasks: BackgroundTasks, other: Annotated[BackgroundTasks, Depends(adds)]) -> bool:
        tasks.add_task(note, "handler")
        return tasks is other

    @app.get("/response", dependencies=[Depends(adds)])
    async def response() -> Response:
        return PlainTextResponse("ok")

    @app.get("/own", dependencies=[Depends(adds)])
    async def own() -> Response:
        from starlette.background import BackgroundTask

        return PlainTextResponse("ok", background=BackgroundTask(note, "own"))

    async def fail(error: Exception) -> None:
        log("failing")
        raise error

    @app.get("/failing", dependencies=[Depends(watch)])
    async def failing(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail, KeyError("task"))
        tasks.add_task(note, "not reached")
        return "ok"

    @app.get("/failing-http", dependencies=[Depends(watch)])
    async def failing_http(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail, HTTPException(400))
        return "ok"

    def sync_note(text: str) -> None:
        log("sync task", text, NOTE.get())

    @app.get("/sync", dependencies=[Depends(adds)])
    def sync(tasks: BackgroundTasks) -> str:
        tasks.add_task(sync_note, "sync")
        return "ok"

    @app.get("/several")
    async def several(tasks: BackgroundTasks) -> str:
        for n in range(3):
            tasks.add_task(note, text=str(n))
        return "ok"

    @app.get("/raises", dependencies=[Depends(adds)])
    async def raises() -> str:
        raise HTTPException(400)

    @app.get("/starlette")
    async def starlette(tasks: StarletteBackgroundTasks) -> str:
        log("tasks", tasks)
        tasks.add_task(note, "starlette")
        return "ok"

    @app.get("/recursive")
    async def recursive(tasks: BackgroundTasks) -> str:
        async def more() -> None:
            tasks.add_task(note, "more")

        tasks.add_task(more)
        return "ok"

    async def late(tasks: BackgroundTasks) -> AsyncIterator[None]:
        yield
        tasks.add_task(note, "late")

    @app.get("/exit", dependencies=[Depends(late)])
    async def in_exit() -> str:
        return "ok"

    @app.get("/function-exit", dependencies=[Depends(late, scope="function")])
    async def in_function_exit() -> str:
        return "ok"

    @app.get("/no-content", status_code=204, dependencies=[Depends(adds)])
    async def no_content() -> None:
        return None

    return app


@CASES.many(
    "response",
    headers_and_cookies=get("/headers"),
    status=get("/status"),
    status_of_dependency=get("/dependency-status"),
    status_of_both=get("/both-status"),
    status_204=get("/status-204"),
    status_zero=get("/status-zero"),
    not_merged_into_a_returned_response=get("/returned"),
    itself_returned=get("/itself"),
    lost_when_the_handler_fails=get("/fails"),
    lost_when_validation_fails=get("/fails?n=x"),
    content_length=get("/content-length"),
    content_type=get("/content-type"),
    changed_in_a_function_exit=get("/function-exit"),
    changed_in_a_request_exit=get("/request-exit"),
    body_is_ignored=get("/body"),
    headers_of_stream=get("/stream"),
)
def _response_parameter(new: New, log: Journal) -> FastAPI:
    app = new()

    async def mark(response: Response) -> Response:
        log("response", response.status_code, response.raw_headers)
        response.headers["X-Dependency"] = "1"
        response.headers.append("x-many", "a")
        response.set_cookie("c", "dependency")
        return response

    async def teapot(response: Response) -> None:
        response.status_code = 418

    @app.get("/headers")
    async def headers(response: Response, other: Annotated[Response, Depends(mark)]) -> bool:
        response.headers.append("x-many", "b")
        response.set_cookie("c", "handler", secure=True)
        response.set_cookie("d", "", max_age=0)  # delete_cookie() sends the time of day
        return response is other

    @app.get("/status", status_code=201)
    async def status(response: Response) -> str:
        response.status_code = 202
        return "ok"

    @app.get("/dependency-status", dependencies=[Depends(teapot)])
    async def dependency_status() -> str:
        return "ok"

    @app.get("/both-status", dependencies=[Depends(teapot)], status_code=201)
    async def both_status(response: Response) -> Any:
        response.status_code = 203
        return JSONResponse("own") if response.status_code == 418 else "ok"

    @app.get("/status-204")
    async def status_204(response: Response) -> str:
        response.status_code = 204
        return "dropped"

    @app.get("/status-zero", status_code=201)
    async def status_zero(response: Response) -> str:
        response.status_code = 0
        return "ok"

    @app.get("/returned", dependencies=[Depends(mark), Depends(teapot)])
    async def returned() -> Response:
        return PlainTextResponse("own")

    @app.get("/itself")
    async def itself(response: Response) -> Response:
        response.headers["x-itself"] = "1"
        response.body = b"itself"
        response.status_code = 200
        return response

    @app.get("/fails", dependencies=[Depends(mark)])
    async def fails(n: int = 0) -> str:
        raise HTTPException(400, headers={"x-error": "1"})

    @app.get("/content-length")
    async def content_length(response: Response) -> str:
        response.headers["content-length"] = "99"
        return "ok"

    @app.get("/content-type")
    async def content_type(response: Response) -> str:
        response.headers["content-type"] = "text/x"
        return "ok"

    async def in_exit(response: Response) -> AsyncIterator[None]:
        yield
        response.headers["x-exit"] = "1"
        response.status_code = 299

    @app.get("/function-exit", dependencies=[Depends(in_exit, scope="function")])
    async def function_exit() -> str:
        return "ok"

    @app.get("/request-exit", dependencies=[Depends(in_exit)])
    async def request_exit() -> str:
        return "ok"

    @app.get("/body")
    async def body(response: Response) -> str:
        response.body = b"ignored"
        response.media_type = "text/plain"
        return "ok"

    @app.get("/stream", dependencies=[Depends(mark)])
    async def stream() -> Any:
        return StreamingResponse(iter([b"a"]), headers={"x-own": "1"})

    return app


@CASES.many(
    "cancel",
    exit_completes_in_function_scope=Call("GET /function", cancels=True),
    exit_completes_in_request_scope=Call("GET /request", cancels=True),
    exit_completes_in_a_thread=Call("GET /sync", cancels=True),
    in_a_dependency=Call("GET /dependency", cancels=True),
    while_sending=Call("GET /sending", cancels=True),
    own_scope_of_a_dependency=Call("GET /own-scope"),
    own_scope_caught=Call("GET /own-scope-caught"),
    task_group_in_a_dependency=Call("GET /task-group"),
    task_group_fails=Call("GET /task-group?fail=1"),
    in_background=Call("GET /background", cancels=True),
    cancelled_error_raised=Call("GET /raises"),
    exit_raises_after_cancellation=Call("GET /exit-raises", cancels=True),
    swallowed=Call("GET /swallowed", cancels=True),
    before_a_sync_dependency=Call("GET /then-sync", cancels=True),
    before_a_sync_handler=Call("GET /then-sync-handler", cancels=True),
    before_an_async_handler=Call("GET /then-async-handler", cancels=True),
    in_a_handler_that_does_not_wait=Call("GET /does-not-wait", cancels=True),
    in_a_handler_with_a_generator=Call("GET /does-not-wait-generator", cancels=True),
    in_a_handler_with_a_limit=Call("GET /does-not-wait-limit", cancels=True),
)
def _cancellation(new: New, log: Journal) -> FastAPI:
    app = new()

    async def slow_exit() -> AsyncIterator[None]:
        log("enter")
        try:
            yield
        except BaseException as error:
            log("saw", error)
            raise
        finally:
            for step in range(3):
                await asyncio.sleep(0)
                log("step", step)
            log("exit")

    def sync_exit() -> Iterator[None]:
        log("enter")
        try:
            yield
        finally:
            log("exit")

    async def cancelled() -> None:
        log("handler")
        log.cancel()
        await anyio.lowlevel.checkpoint()
        log("not reached")

    app.get("/function", dependencies=[Depends(slow_exit, scope="function")])(cancelled)
    app.get("/request", dependencies=[Depends(slow_exit), Depends(slow_exit, scope="function")])(cancelled)
    app.get("/sync", dependencies=[Depends(sync_exit), Depends(slow_exit)])(cancelled)

    @app.get("/dependency", dependencies=[Depends(slow_exit), Depends(cancelled)])
    async def in_dependency() -> None:
        log("handler")

    @app.get("/sending", dependencies=[Depends(slow_exit)])
    async def sending() -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            await cancelled()

        return StreamingResponse(chunks())

    async def own_scope() -> AsyncIterator[anyio.CancelScope]:
        with anyio.CancelScope() as scope:
            yield scope
        log("left", scope.cancelled_caught)

    @app.get("/own-scope")
    async def in_own_scope(
        scope: Annotated[anyio.CancelScope, Depends(own_scope)], before: Annotated[None, Depends(slow_exit)]
    ) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    @app.get("/own-scope-caught")
    async def in_own_scope_caught(
        before: Annotated[None, Depends(slow_exit)],
        scope: Annotated[anyio.CancelScope, Depends(own_scope, scope="function")],
    ) -> str:
        scope.cancel()
        return "ok"

    async def group() -> AsyncIterator[anyio.abc.TaskGroup]:
        async with anyio.create_task_group() as tasks:
            yield tasks
            log("leaving the group")

    @app.get("/task-group")
    async def in_group(tasks: Annotated[anyio.abc.TaskGroup, Depends(group)], fail: bool = False) -> str:
        async def work() -> None:
            log("work")
            if fail:
                raise KeyError("work")

        tasks.start_soon(work)
        return "ok"

    @app.get("/background", dependencies=[Depends(slow_exit)])
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(cancelled)
        return "ok"

    @app.get("/raises", dependencies=[Depends(slow_exit)])
    async def raises() -> None:
        raise asyncio.CancelledError("own")

    async def exit_raises() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0)
            raise LookupError("exit")

    app.get("/exit-raises", dependencies=[Depends(slow_exit), Depends(exit_raises)])(cancelled)

    async def swallowing() -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - a dependency that swallows is what is tested
            log("swallowed", error)

    app.get("/swallowed", dependencies=[Depends(slow_exit), Depends(swallowing, scope="function")])(cancelled)

    async def cancel_now() -> None:
        log("cancel")
        log.cancel()

    def sync() -> str:
        log("sync")
        return "ok"

    async def asynchronous() -> str:
        log("async")
        return "ok"

    async def cancelling() -> str:
        await cancel_now()
        return "ok"

    async def plain_generator() -> AsyncIterator[None]:
        yield
        log("plain exit")

    app.get("/then-sync", dependencies=[Depends(cancel_now), Depends(sync)])(asynchronous)
    app.get("/then-sync-handler", dependencies=[Depends(cancel_now)])(sync)
    app.get("/then-async-handler", dependencies=[Depends(cancel_now)])(asynchronous)
    app.get("/does-not-wait")(cancelling)
    app.get("/does-not-wait-generator", dependencies=[Depends(plain_generator, scope="function")])(cancelling)
    app.get("/does-not-wait-limit", dependencies=[Depends(asynchronous, max_concurrency=1)])(cancelling)
    return app


@CASES.many(
    "after",
    request_in_exit=get("/request-exit"),
    request_in_background=post("/background", b"late", after="disconnect"),
    state_across=get("/state"),
    scope_keys=get("/scope"),
)
def _after_response(new: New, log: Journal) -> FastAPI:
    app = new()

    async def watch(request: Request) -> AsyncIterator[None]:
        log.same("request", request)
        yield
        log("after", request.url.path, request.scope["route"], request.scope["endpoint"])

    @app.get("/request-exit", dependencies=[Depends(watch)])
    async def request_exit(request: Request) -> str:
        log.same("request", request)
        return "ok"

    @app.post("/background")
    async def background(request: Request, tasks: BackgroundTasks) -> str:
        async def late() -> None:
            log("late", await request.body(), await request.is_disconnected())

        tasks.add_task(late)
        return "ok"

    async def sets(request: Request) -> None:
        request.state.value = 1

    @app.get("/state", dependencies=[Depends(sets)])
    async def state(request: Request) -> Any:
        log.same("state", request.state)
        log.same("state", request.state)
        return request.state.value

    @app.get("/scope")
    async def scope(request: Request) -> Any:
        log("keys", sorted(request.scope))
        log("stacks", request.scope["fastapi_inner_astack"], request.scope["fastapi_function_astack"])
        log("middleware stack", request.scope["fastapi_middleware_astack"])
        return list(request)

    return app


@CASES.one("scope-error-of-a-dependency", "GET /")
def _stacks(new: New, log: Journal) -> FastAPI:
    """A dependency pushes callbacks on FastAPI's own exit stacks, as libraries do."""
    app = new()

    async def push(request: Request) -> None:
        for name in ("fastapi_inner_astack", "fastapi_function_astack", "fastapi_middleware_astack"):
            request.scope[name].callback(log, "callback", name)

    @app.get("/", dependencies=[Depends(push)])
    async def handler() -> str:
        return "ok"

    return app


@CASES.many(
    "swallowing",
    function_stack=get("/function"),
    request_stack=get("/request"),
    request_stack_after_the_response=get("/request?late=1"),
    function_stack_with_exits=get("/function-exits"),
    request_stack_with_exits=get("/request-exits"),
    replaces_the_error=get("/replaces"),
)
def _swallowing_stacks(new: New, log: Journal) -> FastAPI:
    """Code that pushes a context manager on FastAPI's exit stacks, which swallows the handler's exception."""
    app = new()

    def push(name: str, leave: Any) -> Any:
        async def dependency(request: Request) -> None:
            request.scope[name].push(leave)

        return Depends(dependency)

    async def watch() -> AsyncIterator[None]:
        yield
        log("exit")

    def replace(*error: Any) -> None:
        raise HTTPException(409, "replaced")

    async def fail() -> None:
        raise KeyError("handler")

    async def late(late: bool = False) -> Response:
        class Late(Response):
            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                await super().__call__(scope, receive, send)
                raise LookupError("late")

        if late:
            return Late("late")
        raise KeyError("handler")

    app.get("/function", dependencies=[push("fastapi_function_astack", swallow)])(fail)
    app.get("/request", dependencies=[push("fastapi_inner_astack", swallow)])(late)
    app.get("/function-exits", dependencies=[Depends(watch), push("fastapi_function_astack", swallow)])(fail)
    app.get("/request-exits", dependencies=[Depends(watch), push("fastapi_inner_astack", swallow)])(late)
    app.get("/replaces", dependencies=[push("fastapi_inner_astack", replace)])(fail)
    return app


def _change_dependencies(app: FastAPI, log: Journal) -> None:
    """Insert a dependency into `route.dependant`, as libraries do."""

    async def added(n: int = 0) -> None:
        log("added", n)

    route: Any = app.routes[0]
    route.dependant.dependencies.insert(0, get_parameterless_sub_dependant(depends=Depends(added), path=route.path))


def _change_calls(app: FastAPI, log: Journal) -> None:
    """Wrap the handler and a dependency in `route.dependant`, as instrumentation does."""
    route: Any = app.routes[0]
    original, sub = route.dependant.call, route.dependant.dependencies[0].call

    async def wrapped(**values: Any) -> Any:
        log("wrapped", values)
        return await original(**values)

    async def wrapped_sub() -> Any:
        return f"wrapped {await sub()}"

    route.dependant.call = wrapped
    route.dependant.dependencies[0].call = wrapped_sub


def _change_attributes(app: FastAPI, log: Journal) -> None:
    """Change what FastAPI reads from a route only when the route is created."""
    route: Any = app.routes[0]
    route.status_code, route.response_class, route.response_field = 418, PlainTextResponse, None
    route.response_model_exclude, route.body_field = {"a"}, None


def _change_endpoint(app: FastAPI, log: Journal) -> None:
    """Replace `route.endpoint`, which is only what the scope shows."""
    route: Any = app.routes[0]
    route.endpoint = _original


def _change_name(app: FastAPI, log: Journal) -> None:
    """Give a route another name and operation id, as the documentation of FastAPI shows it."""
    route: Any = app.routes[0]
    route.operation_id = route.name = "renamed"


CHANGES = (_change_dependencies, _change_calls, _change_attributes, _change_endpoint, _change_name)


def _changeable(change: Callable[[FastAPI, Journal], None]) -> Callable[[New, Journal], FastAPI]:
    def build(new: New, log: Journal) -> FastAPI:
        app = new()

        @app.get("/")
        async def handler(request: Request, value: Annotated[str, Depends(_original)]) -> dict[str, Any]:
            log("handler", value, request.scope["endpoint"], request.scope["route"])
            return {"a": 1, "url": str(request.url_for(request.scope["route"].name))}

        @app.get("/change")
        async def change_now() -> None:
            change(app, log)

        return app

    return build


def _changed_first(change: Callable[[FastAPI, Journal], None]) -> Drive:
    async def drive(app: ASGIApp, journal: Journal) -> None:
        assert isinstance(app, FastAPI)
        change(app, journal)
        await in_turn(get("/"), get("/?n=x"))(app, journal)

    return drive


for _change in CHANGES:
    _name = _change.__name__[1:].replace("_", "-")
    CASES.one(f"{_name}-before-the-first-request", drive=_changed_first(_change))(_changeable(_change))
    _differs = PREPARED if _change in (_change_dependencies, _change_calls, _change_endpoint) else ""
    CASES.one(f"{_name}-after-the-first-request", "GET /", "GET /change", "GET /", "GET /?n=x", differs=_differs)(
        _changeable(_change)
    )


@CASES.many(
    "semaphore",
    slow={"nested": UNCACHED},
    kept=get("/"),
    nested=get("/nested"),
    generator=get("/generator"),
    sync=get("/sync"),
)
def _concurrency_limits(new: New, log: Journal) -> FastAPI:
    """Dependencies with a semaphore. Waiting for it is covered among the concurrent requests."""
    app = new()

    async def one() -> int:
        return 1

    def sync_one() -> int:
        return 1

    async def generator() -> AsyncIterator[int]:
        yield 1
        log("exit")

    @app.get("/")
    async def kept(value: Annotated[int, Depends(one, max_concurrency=1)]) -> int:
        return value

    @app.get("/nested")
    async def nested(
        value: Annotated[int, Depends(one, max_concurrency=1)],
        other: Annotated[int, Depends(one, max_concurrency=2, use_cache=False)],
    ) -> int:
        return value + other

    @app.get("/generator")
    async def of_generator(value: Annotated[int, Depends(generator, max_concurrency=1)]) -> int:
        return value

    @app.get("/sync")
    async def sync(value: Annotated[int, Depends(sync_one, max_concurrency=1)]) -> int:
        return value

    return app


@CASES.one("function-dependency-of-request-dependency-is-refused", "GET /")
def _refused(new: New, log: Journal) -> FastAPI:
    app = new()

    async def inner() -> AsyncIterator[int]:
        yield 1

    async def outer(value: Annotated[int, Depends(inner, scope="function")]) -> AsyncIterator[int]:
        yield value

    async def handler(value: Annotated[int, Depends(outer)]) -> int:
        return value

    try:
        app.get("/")(handler)
    except FastAPIError as error:
        log("refused", error)

    @app.get("/")
    async def instead(header: Annotated[str | None, Header()] = None) -> None:
        return None

    return app
