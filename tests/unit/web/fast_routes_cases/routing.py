"""Routing: order, prefixes, routes added and changed later, mounts, hosts, own classes, wrappers, middleware, scope."""

import warnings
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.exceptions import FastAPIDeprecationWarning
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Host, Match, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.asgi_comparison import NOTE, Builder, Call, Cases, Journal, New, get, post

CASES = Cases()
OWN_CLASS = "its class decides itself what it matches, or how it is run"
OWN_ROUTER = "its router decides itself what it matches"
WRAPPED = "its ASGI application was wrapped"


def _named(name: str, log: Journal) -> Callable[..., Any]:
    async def endpoint(request: Request) -> Any:
        log("handler", name, request.path_params, request.scope["route"], request.scope["endpoint"])
        return {"name": name, "path": request.scope["route"].path, "root": request.scope["root_path"]}

    endpoint.__name__ = name
    return endpoint


@CASES.many(
    "route",
    first_wins=get("/items/me"),
    later_is_hidden=get("/items/5"),
    method_of_the_second=Call("DELETE /items/me"),
    partial_match_of_the_first=Call("PATCH /items/me"),
    head=Call("HEAD /items/me"),
    head_declared=Call("HEAD /both"),
    get_and_head=get("/both"),
    options=Call("OPTIONS /items/me"),
    unknown_method=Call("BREW /items/me"),
    own_method=Call("PURGE /purge"),
    lower_case_method=Call("get /items/me"),
    not_found=get("/nowhere"),
    empty_path=Call("GET "),
    double_slash=get("//items/me"),
    encoded_slash=get("/items%2Fme"),
    dots=get("/items/../items/me"),
    slash_added=get("/items/me/"),
    slash_removed=get("/slash"),
    slash_with_query=get("/slash?a=1&b=ä"),
    root=get("/"),
    trailing_newline=Call("GET /items/me%0A"),
    upper_case=get("/ITEMS/me"),
    url_for=get("/url"),
    url_for_with_host=get("/url", host="other:8080"),
    unique_id=get("/url?what=id"),
    request_app=get("/app"),
    trace=Call("TRACE /trace"),
    no_state=Call("GET /items/me", scope={"state": None}),
    https=Call("GET /url", scope={"scheme": "https", "server": ("h", 443)}),
    without_raw_path=Call("GET /items/me", scope={"raw_path": None}),
    root_path=Call("GET /prefix/items/me", scope={"root_path": "/prefix"}),
    root_path_stripped_by_the_proxy=Call("GET /items/me", scope={"root_path": "/prefix"}),
    root_path_with_slash=Call("GET /prefix/items/me", scope={"root_path": "/prefix/"}),
    root_path_url_for=Call("GET /url", scope={"root_path": "/prefix"}),
    root_path_redirect=Call("GET /prefix/slash", scope={"root_path": "/prefix"}),
    root_path_validation_error=Call("GET /prefix/number/x", scope={"root_path": "/prefix"}),
    earlier_path_params=Call("GET /number/1", scope={"path_params": {"outer": "o"}}),
    earlier_route=Call("GET /number/1", scope={"route": "earlier", "endpoint": "earlier", "fastapi": {"own": 1}}),
)
def _routes(new: New, log: Journal) -> FastAPI:
    app = new()
    app.get("/items/me")(_named("me", log))
    app.get("/items/{item}")(_named("item", log))
    app.delete("/items/{item}")(_named("delete", log))
    app.get("/items/{item}")(_named("hidden", log))
    app.api_route("/both", methods=["GET", "HEAD"])(_named("both", log))
    app.api_route("/purge", methods=["purge"])(_named("purge", log))
    app.get("/slash/")(_named("slash", log))
    app.get("/")(_named("root", log))
    app.trace("/trace")(_named("trace", log))

    @app.get("/url", name="own name")
    async def url(request: Request, what: str = "") -> Any:
        route: Any = request.scope["route"]
        log("id", route.unique_id, route.name, route.operation_id)
        return [str(request.url_for("item", item="a b")), str(request.url_for("own name")), str(request.base_url), what]

    @app.get("/app")
    async def of_app(request: Request) -> Any:
        log("app", request.app is app, request.scope["router"] is app.router)
        return [route.path for route in request.app.routes]

    @app.get("/number/{n}")
    async def number(n: int, request: Request) -> Any:
        return request.path_params

    return app


@CASES.many("slashes_off", added=get("/items/"), removed=get("/slash"), exact=get("/slash/"))
def _slashes_off(new: New, log: Journal) -> FastAPI:
    app = new(redirect_slashes=False)
    app.get("/items")(_named("items", log))
    app.get("/slash/")(_named("slash", log))
    return app


@CASES.many(
    "included",
    once=get("/a/x/1"),
    again=get("/b/x/1"),
    nested=get("/a/deep/y"),
    nested_twice=get("/b/deep/y"),
    method=Call("POST /a/x/1"),
    not_found=get("/a/none"),
    redirect=get("/a/x/1/"),
    url=get("/a/url"),
    without_prefix=get("/x/1"),
    validation=get("/a/number/x"),
    parameter_in_prefix=get("/tenants/t1/x/1"),
    parameter_in_prefix_unknown=get("/tenants/t1/url"),
    root_path=Call("GET /root/a/x/1", scope={"root_path": "/root"}),
    starlette_route=get("/a/plain"),
    mount=get("/a/mounted/z"),
    added_to_the_router_later=get("/a/late"),
    tags=get("/b/number/5"),
)
def _included(new: New, log: Journal) -> FastAPI:
    async def mark() -> None:
        log("dependency of the second include")

    app, router, deep = new(), APIRouter(tags=["router"]), APIRouter(prefix="/deep")
    router.get("/x/{n}")(_named("x", log))
    deep.get("/y")(_named("y", log))
    router.include_router(deep)

    @router.get("/number/{n}")
    async def number(n: int) -> int:
        return n

    @router.get("/url", name="url")
    async def url(request: Request) -> Any:
        return [str(request.url_for("x", n="1")), str(request.url_for("y")), request.url.path]

    async def plain(request: Request) -> Response:
        return PlainTextResponse(repr(sorted(request.scope["fastapi"])))

    router.add_route("/plain", plain)
    sub = new()
    sub.get("/z")(_named("z", log))
    router.mount("/mounted", sub)
    app.include_router(router, prefix="/a")
    app.include_router(router, prefix="/b", dependencies=[Depends(mark)], tags=["b"], responses={404: {}})
    app.include_router(router, prefix="/tenants/{tenant}")
    app.include_router(router)
    router.get("/late")(_named("late", log))
    return app


@CASES.many(
    "order",
    slow={"static_with_newline": "the index does not know this first segment"},
    dynamic_before_static=get("/first/x"),
    mount_before_route=get("/m/x"),
    mount_of_everything=get("/anything"),
    starlette_route_first=get("/plain"),
    partial_in_a_router_then_full=Call("POST /split"),
    partial_in_two_places=Call("PATCH /split"),
    get_of_the_split=get("/split"),
    convertors=get("/conv/5"),
    convertors_text=get("/conv/x"),
    own_convertor=get("/own/2026"),
    own_convertor_refuses=get("/own/x"),
    same_path_other_method=Call("PUT /first/x"),
    static_with_newline=get("/static%0A"),
    static=get("/static"),
    regex_characters=get("/a.b+c"),
    regex_characters_literally=get("/aXb+c"),
    head_before_get=Call("HEAD /split"),
    two_dynamic=get("/d/1/e"),
    two_dynamic_second=get("/d/1/f"),
    unicode=get("/%C3%BC"),
)
def _order(new: New, log: Journal) -> FastAPI:
    """Static paths, dynamic paths, mounts and routers in an order in which an index could go wrong."""
    from starlette.convertors import Convertor, register_url_convertor

    class Year(Convertor[int]):
        regex = "[0-9]{4}"

        def convert(self, value: str) -> int:
            return int(value) + 1

        def to_string(self, value: int) -> str:
            return str(value)

    register_url_convertor("year", Year())
    app, router, sub = new(), APIRouter(), new()
    app.get("/first/{y}")(_named("dynamic", log))
    app.get("/first/x")(_named("static", log))
    app.put("/first/x")(_named("put", log))
    sub.get("/x")(_named("mounted", log))
    app.mount("/m", sub)
    app.get("/m/x")(_named("hidden", log))
    app.router.routes.append(Route("/plain", _plain))
    app.get("/plain")(_named("hidden", log))
    router.get("/split")(_named("get", log))
    router.delete("/split")(_named("delete", log))
    app.include_router(router)
    app.post("/split")(_named("post", log))
    app.get("/conv/{n:int}")(_named("int", log))
    app.get("/conv/{n}")(_named("str", log))
    app.get("/own/{n:year}")(_named("year", log))
    app.get("/static")(_named("static", log))
    app.get("/a.b+c")(_named("regex", log))
    app.get("/d/{a}/e")(_named("e", log))
    app.get("/d/{a}/{b}")(_named("ab", log))
    app.get("/ü")(_named("unicode", log))
    rest = new()
    rest.get("/anything")(_named("rest", log))
    app.mount("", rest)
    return app


@CASES.many(
    "server",
    differs={
        "headers_as_a_tuple": "FastAPI reads the headers of each request, and Starlette then keeps them as a list"
    },
    without_state=Call("GET /x", scope={"state": {"a": 1}}),
    without_client=Call("GET /x", scope={"client": None, "server": None}),
    http2=Call("GET /x", scope={"http_version": "2", "extensions": {}}),
    tls=Call("GET /x", scope={"extensions": {"tls": {"cipher_suite": 1}}}),
    headers_as_a_tuple=Call("GET /x", scope={"headers": ((b"host", b"h"),)}),
    task=Call("GET /task"),
    threads=Call("GET /threads"),
)
def _server(new: New, log: Journal) -> FastAPI:
    """What handlers can see of the server, of the task and of the worker threads."""
    import asyncio

    from anyio.to_thread import current_default_thread_limiter

    app = new()

    @app.middleware("http")
    async def nothing(request: Request, call_next: Any) -> Response:
        return await call_next(request)  # type: ignore[no-any-return]

    app.user_middleware.clear()

    @app.get("/x")
    async def x(request: Request) -> Any:
        log("scope", sorted(request.scope), request.client, request.scope["headers"], request.scope["state"])
        return str(request.url)

    async def watch() -> Any:
        log.same("task", asyncio.current_task())
        yield
        log.same("task", asyncio.current_task())

    @app.get("/task", dependencies=[Depends(watch)])
    async def task() -> str:
        log.same("task", asyncio.current_task())
        return "ok"

    limiter: list[Any] = []

    async def prepare() -> None:
        limiter[:] = [current_default_thread_limiter()]
        log("dependency", limiter[0].borrowed_tokens)

    def in_thread() -> Any:
        log("sync dependency", limiter[0].borrowed_tokens)
        yield
        log("sync exit", limiter[0].borrowed_tokens)

    @app.get("/threads", dependencies=[Depends(prepare), Depends(in_thread)])
    def threads() -> str:
        log("sync handler", limiter[0].borrowed_tokens)
        return "ok"

    return app


def _later(
    name: str, *calls: str | Call, slow: str = "", fast: int = 0, differs: str = ""
) -> Callable[[Builder], Builder]:
    return CASES.one(f"later-{name}", *calls, slow=slow, fast=fast, differs=differs)


@_later("added", "GET /new", "GET /add", "GET /new")
def _added_later(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.get("/add")
    async def add() -> None:
        app.get("/new")(_named("new", log))

    return app


@_later("added-to-an-included-router", "GET /r/new", "GET /r/add", "GET /r/new")
def _added_to_included(new: New, log: Journal) -> FastAPI:
    app, router = new(), APIRouter()

    @router.get("/add")
    async def add() -> None:
        router.get("/new")(_named("new", log))

    app.include_router(router, prefix="/r")
    return app


@_later("included", "GET /r/x", "GET /add", "GET /r/x")
def _included_later(new: New, log: Journal) -> FastAPI:
    app, router = new(), APIRouter()
    router.get("/x")(_named("x", log))

    @app.get("/add")
    async def add() -> None:
        app.include_router(router, prefix="/r")

    return app


@_later("removed", "GET /x", "GET /change", "GET /x")
@_later("replaced", "GET /x", "GET /change?how=replace", "GET /x")
@_later("reordered", "GET /x", "GET /change?how=reverse", "GET /x")
@_later("inserted", "GET /x", "GET /change?how=insert", "GET /x")
@_later("cleared", "GET /x", "GET /change?how=clear", "GET /x")
@_later("replaced-by-an-equal-route", "GET /x", "GET /change?how=equal", "GET /x")
@_later("new-list", "GET /x", "GET /change?how=list", "GET /x")
@_later("methods-changed", "POST /x", "GET /change?how=methods", "POST /x", slow="the index has no POST", fast=1)
@_later(
    "path-changed",
    "GET /z",
    "GET /change?how=path",
    "GET /z",
    "GET /x",
    differs="the index keeps the pattern with which the route was added",
)
def _changed_routes(new: New, log: Journal) -> FastAPI:
    app = new()
    app.get("/x")(_named("first", log))
    app.get("/{y}")(_named("second", log))
    routes = app.router.routes

    async def added() -> None:
        log("added")

    async def change(how: str = "remove") -> str:
        match how:
            case "remove":
                del routes[1]
            case "replace":
                routes[1] = APIRoute("/x", _named("replacement", log))
            case "equal":
                old: Any = routes[1]
                routes[1] = APIRoute(old.path, old.endpoint, status_code=202, dependencies=[Depends(added)])
                log("equal", routes[1] == old)
            case "reverse":
                routes.reverse()
            case "insert":
                routes.insert(0, APIRoute("/x", _named("inserted", log)))
            case "clear":
                routes.clear()
            case "list":
                app.router.routes = [Route("/x", _plain)]
            case "methods":
                routes[1].methods.add("POST")  # type: ignore[attr-defined]
            case "path":
                route: Any = routes[1]
                route.path_regex = __import__("re").compile("^/z$")
        return how

    app.get("/change")(change)
    routes.insert(0, routes.pop())
    return app


async def _plain(request: Request) -> Response:
    return PlainTextResponse("plain")


@CASES.many(
    "mount",
    slow={"routes_of_a_mount": "no application serves the routes of a Mount"},
    fastapi=get("/sub/items/1"),
    fastapi_invalid=get("/sub/items/x"),
    fastapi_not_found=get("/sub/none"),
    fastapi_method=Call("POST /sub/items/1"),
    fastapi_redirect=get("/sub/items/1/"),
    fastapi_root=get("/sub"),
    fastapi_url=get("/sub/url"),
    fastapi_in_fastapi=get("/sub/inner/items/1"),
    fastapi_with_root_path=Call("GET /root/sub/items/1", scope={"root_path": "/root"}),
    starlette=get("/starlette/hello"),
    starlette_with_fastapi=get("/starlette/api/items/1"),
    route_before=get("/sub/before"),
    route_after=get("/sub/after"),
    parameter=get("/tenants/t1/items/1"),
    routes_of_a_mount=get("/routes/items/1"),
    plain_asgi=get("/asgi/x"),
    handlers=get("/sub/fails"),
)
def _mounts(new: New, log: Journal) -> FastAPI:
    app, sub, inner = new(), new(), new()

    async def items(n: int, request: Request) -> Any:
        log("scope", {key: request.scope.get(key) for key in ("root_path", "path", "app_root_path", "path_params")})
        log("app", request.app is app, request.scope["router"] is app.router)
        return [n, request.scope["route"].path, str(request.url)]

    for each in (sub, inner):
        each.get("/items/{n}")(items)

    @sub.get("/url")
    async def url(request: Request) -> Any:
        return [str(request.url_for("items", n=1)), str(request.base_url)]

    @sub.get("/fails")
    async def fails() -> None:
        raise HTTPException(409, "of the mounted application")

    async def teapot(request: Request, error: Exception) -> Response:
        return PlainTextResponse("handled by the mounted application", 409)

    sub.add_exception_handler(409, teapot)

    async def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["root_path"])(scope, receive, send)

    app.get("/sub/before")(_named("before", log))
    sub.mount("/inner", inner)
    app.mount("/sub", sub, name="sub")
    app.get("/sub/after")(_named("after", log))
    app.mount("/starlette", Starlette(routes=[Route("/hello", hello), Mount("/api", inner)]))
    app.mount("/tenants/{tenant}", inner)
    app.router.routes.append(Mount("/routes", routes=[APIRoute("/items/{n}", items)]))
    app.mount("/asgi", asgi)
    return app


@CASES.one("mounted-by-starlette", "GET /api/x", "GET /api/none")
def _mounted_by_starlette(new: New, log: Journal) -> ASGIApp:
    app = new()
    app.get("/x")(_named("x", log))
    return Starlette(routes=[Mount("/api", app)])


@CASES.one("mounted-twice", "GET /a/x", "GET /b/x")
def _mounted_twice(new: New, log: Journal) -> FastAPI:
    app, sub = new(), new()
    sub.get("/x")(_named("x", log))
    app.mount("/a", sub)
    app.mount("/b", sub)
    return app


@CASES.one("router-as-an-application", "GET /x", "GET /none", slow="no application with fast routes serves it")
def _router_alone(new: New, log: Journal) -> ASGIApp:
    new()
    router = APIRouter()
    router.get("/x")(_named("x", log))
    return router


@CASES.one("route-shared-by-two-applications", "GET /a/x", "GET /b/x")
def _shared_route(new: New, log: Journal) -> ASGIApp:
    """The same route object in the lists of two applications."""
    first, second = new(), new()
    first.get("/x")(_named("x", log))
    second.router.routes.extend(first.routes)
    return Router(routes=[Mount("/a", first), Mount("/b", second)])


@CASES.many(
    "host",
    slow={"second": "it follows a route that could match anything"},
    first=get("/x", host="api.example.org"),
    second=get("/x", host="other.example.org:80"),
)
def _hosts(new: New, log: Journal) -> FastAPI:
    app, sub = new(), new()
    sub.get("/x")(_named("api", log))
    app.router.routes.append(Host("api.example.org", sub))
    app.get("/x")(_named("other", log))
    return app


def _socket(path: str, *messages: dict[str, Any]) -> Call:
    return Call(
        f"GET {path}",
        messages=[{"type": "websocket.connect"}, *messages, {"type": "websocket.disconnect", "code": 1000}],
        scope={"type": "websocket", "subprotocols": [], "scheme": "ws"},
    )


@CASES.one("websocket-next-to-http", "GET /x", _socket("/x", {"type": "websocket.receive", "text": "hello"}), "GET /x")
def _websocket(new: New, log: Journal) -> FastAPI:
    app = new()

    async def note() -> Any:
        log("enter")
        yield 1
        log("exit")

    @app.websocket("/x")
    async def socket(websocket: WebSocket, n: Annotated[int, Depends(note)], q: int = 5) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text() + str(n + q))
        await websocket.close()

    app.get("/x", dependencies=[Depends(note)])(_named("http", log))
    return app


@CASES.one("websocket-invalid-and-unknown", _socket("/x?q=x"), _socket("/none"), "GET /x")
def _websocket_errors(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.websocket("/x")
    async def socket(websocket: WebSocket, q: int) -> None:
        await websocket.accept()

    app.get("/x")(_named("http", log))
    return app


@CASES.one("class-overrides-get-route-handler", post("/x", b"1"))
def _own_handler(new: New, log: Journal) -> FastAPI:
    """FastAPI documents a route class with a request class of its own."""

    class OwnRequest(Request):
        async def body(self) -> bytes:
            return b"2" + await super().body()

    class OwnRoute(APIRoute):
        def get_route_handler(self) -> Any:
            original = super().get_route_handler()

            async def handler(request: Request) -> Response:
                log("own handler")
                return await original(OwnRequest(request.scope, request.receive))

            return handler

    app = new()
    app.router.route_class = OwnRoute

    @app.post("/x")
    async def x(n: Annotated[int, Body()], request: Request) -> Any:
        return [n, type(request).__name__]

    return app


@CASES.one("class-passes-other-options-to-its-handler", "GET /x", post("/y", b"1"))
def _other_options(new: New, log: Journal) -> FastAPI:
    """A route class that builds FastAPI's own handler with options that are not those of the route."""

    class OwnRoute(APIRoute):
        def get_route_handler(self) -> Any:
            kept = self.status_code, self.response_class, self.response_field, self.body_field
            self.status_code, self.response_class, self.response_field = 202, PlainTextResponse, None
            self.body_field = None
            handler = super().get_route_handler()
            self.status_code, self.response_class, self.response_field, self.body_field = kept
            return handler

    app = new()
    app.router.route_class = OwnRoute

    @app.get("/x")
    async def x() -> str:
        return "x"

    @app.post("/y")
    async def y(n: Annotated[int, Body()] = 5) -> str:
        return str(n)

    return app


class LateMatch(APIRoute):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if (b"x-refuse", b"1") in scope["headers"]:
            return Match.NONE, {}
        child["own"] = "added by matches"
        return match, child


@CASES.many("class_overrides_matches", slow=OWN_CLASS, yes=get("/x"), no=get("/x", x_refuse="1"))
def _own_matches(new: New, log: Journal) -> FastAPI:
    app = new()
    app.router.route_class = LateMatch

    @app.get("/x")
    async def x(request: Request) -> Any:
        return request.scope.get("own")

    return app


@CASES.many("class_overrides_matches_included", slow=OWN_CLASS, yes=get("/r/x"), no=get("/r/x", x_refuse="1"))
def _own_matches_included(new: New, log: Journal) -> FastAPI:
    app, router = new(), APIRouter(route_class=LateMatch)
    router.get("/x")(_named("x", log))
    app.include_router(router, prefix="/r")
    return app


@CASES.many("class_overrides_handle", slow=OWN_CLASS, yes=get("/x"), included=get("/r/x"), method=Call("POST /x"))
def _own_handle(new: New, log: Journal) -> FastAPI:
    class OwnRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            log("before handle")
            await super().handle(scope, receive, send)
            log("after handle")

    app, router = new(), APIRouter(route_class=OwnRoute)
    app.router.route_class = OwnRoute
    for each in (app, router):
        each.get("/x")(_named("x", log))
    app.include_router(router, prefix="/r")
    return app


@CASES.one("class-refuses-everything-in-handle", "GET /x", slow="its handle() answers")
def _refusing_handle(new: New, log: Journal) -> FastAPI:
    class OwnRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("own handle", 403)(scope, receive, send)

    app = new()
    app.router.route_class = OwnRoute
    app.get("/x")(_named("x", log))
    return app


@CASES.one("class-without-overrides", "GET /x")
def _empty_class(new: New, log: Journal) -> FastAPI:
    class OwnRoute(APIRoute):
        extra = 1

    app = new()
    app.router.route_class = OwnRoute
    app.get("/x")(_named("x", log))
    return app


@CASES.one("class-wraps-its-app-in-init", "GET /x", "GET /r/x", slow=WRAPPED, fast=1)
def _app_in_init(new: New, log: Journal) -> FastAPI:
    class OwnRoute(APIRoute):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.app = _logging(self.app, log)

    app, router = new(), APIRouter(route_class=OwnRoute)
    app.router.route_class = OwnRoute
    for each in (app, router):
        each.get("/x")(_named("x", log))
    app.include_router(router, prefix="/r")
    return app


def _logging(app: ASGIApp, log: Journal) -> ASGIApp:
    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        log("before", sorted(scope))
        await app(scope, receive, send)
        log("after", sorted(scope))

    return wrapper


@CASES.one("wrapped-before-the-first-request", "GET /x", slow=WRAPPED)
def _wrapped_early(new: New, log: Journal) -> FastAPI:
    app = new()
    app.get("/x")(_named("x", log))
    route: Any = app.routes[0]
    route.app = _logging(route.app, log)
    return app


@CASES.one("wrapped-after-the-first-request", "GET /x", "GET /wrap", "GET /x", slow=WRAPPED, fast=2)
def _wrapped_late(new: New, log: Journal) -> FastAPI:
    app = new()
    app.get("/x")(_named("x", log))

    @app.get("/wrap")
    async def wrap() -> None:
        route: Any = app.routes[0]
        route.app = _logging(route.app, log)

    return app


@CASES.one("wrapped-and-replaced", "GET /x", "GET /replace", "GET /x", slow="replaced by another ASGI application")
def _replaced_app(new: New, log: Journal) -> FastAPI:
    app = new()
    for path in ("/x", "/replace"):
        app.get(path)(_named("x", log))

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("other")(scope, receive, send)

    for route in app.routes:
        route.app = other  # type: ignore[attr-defined]
    return app


@CASES.one("handler-replaced-through-request-response", "GET /x")
def _rebuilt_app(new: New, log: Journal) -> FastAPI:
    """Libraries rebuild `route.app` after changing a route: fastapi-pagination, fastapi-versioning."""
    from fastapi.routing import request_response

    app = new()

    async def added() -> None:
        log("added")

    app.get("/x")(_named("x", log))
    route: Any = app.routes[0]
    from fastapi.dependencies.utils import get_parameterless_sub_dependant

    route.dependant.dependencies.append(get_parameterless_sub_dependant(depends=Depends(added), path="/x"))
    route.app = request_response(route.get_route_handler())
    return app


@CASES.many(
    "router_overrides_matches", slow=OWN_ROUTER, yes=get("/r/x"), no=get("/r/x", x_refuse="1"), other=get("/other")
)
def _router_matches(new: New, log: Journal) -> FastAPI:
    class OwnRouter(APIRouter):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            if (b"x-refuse", b"1") in scope["headers"]:
                return Match.NONE, {}
            return super().matches(scope)

    app, router = new(), OwnRouter()
    router.get("/x")(_named("x", log))
    app.include_router(router, prefix="/r")
    app.get("/other")(_named("other", log))
    return app


@CASES.many("router_overrides_handle", slow=OWN_ROUTER, yes=get("/r/x"))
def _router_handle(new: New, log: Journal) -> FastAPI:
    class OwnRouter(APIRouter):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            log("router", scope["path"])
            await super().handle(scope, receive, send)

    app, router = new(), OwnRouter()
    router.get("/x")(_named("x", log))
    app.include_router(router, prefix="/r")
    return app


@CASES.one("router-overrides-app", "GET /x", "GET /none", slow=OWN_ROUTER)
def _router_app(new: New, log: Journal) -> FastAPI:
    class OwnRouter(APIRouter):
        async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
            log("router app")
            await super().app(scope, receive, send)

    app = new()
    router = OwnRouter(dependency_overrides_provider=app)
    app.router = router
    app.get("/x")(_named("x", log))
    return app


@CASES.one("router-replaced-before-the-first-request", "GET /x")
def _router_replaced(new: New, log: Journal) -> FastAPI:
    app = new()
    app.router = APIRouter()
    app.get("/x")(_named("x", log))
    return app


@CASES.one("router-default", "GET /none", "GET /x")
def _router_default(new: New, log: Journal) -> FastAPI:
    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("default")(scope, receive, send)

    app = new()
    app.router.default = default
    app.get("/x")(_named("x", log))
    return app


@CASES.one("routes-given-to-the-constructor", "GET /x", "GET /plain")
def _given_routes(new: New, log: Journal) -> FastAPI:
    return new(routes=[APIRoute("/x", _named("x", log)), Route("/plain", _plain)])


@CASES.one("application-subclass", "GET /x", slow="the subclass is created outside the factory")
def _subclass(new: New, log: Journal) -> FastAPI:
    class OwnApp(FastAPI):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            log("own app")
            await super().__call__(scope, receive, send)

    new()
    app = OwnApp(openapi_url=None)
    app.get("/x")(_named("x", log))
    return app


@CASES.many("root_path", application=get("/x"), url=get("/url"), prefixed=get("/own/x"), docs=get("/openapi.json"))
def _root_path(new: New, log: Journal) -> FastAPI:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FastAPIDeprecationWarning)
        app = new(root_path="/own", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.get("/x")(_named("x", log))

    @app.get("/url")
    async def url(request: Request) -> Any:
        return [str(request.url_for("x")), request.scope["root_path"]]

    return app


@CASES.one("openapi", Call("GET /openapi.json"), Call("GET /docs"))
def _openapi(new: New, log: Journal) -> FastAPI:
    app = new(openapi_url="/openapi.json")

    @app.post("/x/{n}", tags=["t"], responses={404: {"description": "none"}})
    async def x(n: int, q: str, b: Annotated[list[int], Body()]) -> dict[str, int]:
        """Describe."""
        return {}

    log("routes", app.routes, [repr(route) for route in app.routes])
    return app


def _around(name: str, log: Journal) -> Any:
    class Around:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            NOTE.set(name)
            log("before", name, sorted(scope))
            try:
                await self.app(scope, receive, send)
            except BaseException as error:
                log("error", name, error)
                raise
            finally:
                log("after", name, {key: scope.get(key) for key in ("route", "endpoint", "path_params", "fastapi")})

    return Around


@CASES.many(
    "asgi_middleware",
    ok=get("/x"),
    handled=get("/http"),
    error=get("/error"),
    not_found=get("/none"),
    included=get("/r/x"),
    constructor=get("/note"),
)
def _asgi_middleware(new: New, log: Journal) -> FastAPI:
    app, router = new(middleware=[Middleware(_around("constructor", log))]), APIRouter()
    app.add_middleware(_around("added", log))
    app.get("/x")(_named("x", log))
    router.get("/x")(_named("x", log))
    app.include_router(router, prefix="/r")

    @app.get("/http")
    async def http() -> None:
        raise HTTPException(400)

    @app.get("/error")
    async def error() -> None:
        raise KeyError("error")

    @app.get("/note")
    async def note() -> str:
        return NOTE.get()

    return app


@CASES.many(
    "base_middleware",
    ok=get("/x"),
    body=post("/body", [b"1", b"2"]),
    body_read_by_the_middleware=post("/body?read=1", [b"1", b"2"]),
    error=get("/error"),
    handled=get("/http"),
    short_circuit=get("/x?stop=1"),
    background=get("/background"),
    state=get("/state"),
    exit=get("/exit"),
    context=get("/context"),
    header=get("/x?header=1"),
)
def _base_middleware(new: New, log: Journal) -> FastAPI:
    app = new()

    @app.middleware("http")
    async def around(request: Request, call_next: Any) -> Response:
        log("before", request.url.path)
        request.state.marked = True
        if "read" in request.query_params:
            log("body", await request.body())
        if "stop" in request.query_params:
            return PlainTextResponse("stopped")
        response: Response = await call_next(request)
        response.headers["x-route"] = getattr(request.scope.get("route"), "path", "none")
        log("after", response.status_code, request.scope.get("endpoint"))
        return response

    app.get("/x")(_named("x", log))

    @app.post("/body")
    async def body(n: Annotated[int, Body()]) -> int:
        return n

    @app.get("/error")
    async def error() -> None:
        raise KeyError("error")

    @app.get("/http")
    async def http() -> None:
        raise HTTPException(400)

    from fastapi import BackgroundTasks

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(log, "task")
        return "ok"

    @app.get("/state")
    async def state(request: Request) -> bool:
        return bool(request.state.marked)

    async def watch() -> Any:
        yield
        log("exit")

    @app.get("/exit", dependencies=[Depends(watch)])
    async def leaving() -> str:
        return "ok"

    @app.get("/context")
    async def context() -> str:
        NOTE.set("inside")
        return NOTE.get()

    return app


@CASES.many(
    "standard_middleware",
    gzip=get("/large", accept_encoding="gzip"),
    cors=get("/x", origin="https://a.example"),
    cors_preflight=Call("OPTIONS /x", [(b"origin", b"https://a.example"), (b"access-control-request-method", b"GET")]),
    host=get("/x", host="evil.example"),
)
def _standard_middleware(new: New, log: Journal) -> FastAPI:
    app = new()
    app.add_middleware(GZipMiddleware, minimum_size=10)
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["testserver"])
    app.get("/x")(_named("x", log))

    @app.get("/large")
    async def large() -> str:
        return "a" * 1000

    return app


@CASES.many(
    "scope_of_a_middleware",
    path=get("/rewritten"),
    copied=Call("GET /copied", hidden=True),
    method=Call("POST /method"),
)
def _scope_middleware(new: New, log: Journal) -> FastAPI:
    """Middleware that changes the scope before routing, or hands on a copy of it."""
    app = new()

    class Change:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            match scope["path"]:
                case "/rewritten":
                    scope["path"] = "/x"
                case "/copied":
                    scope = {**scope, "path": "/x", "extra": 1}
                case "/method":
                    scope["method"], scope["path"] = "GET", "/x"
            await self.app(scope, receive, send)

    app.add_middleware(Change)
    app.get("/x")(_named("x", log))
    return app


@CASES.one("base-middleware-changes-the-scope-of-call-next", "GET /x")
def _call_next(new: New, log: Journal) -> FastAPI:
    class Versions(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            request.scope["path"] = "/y"
            return await call_next(request)  # type: ignore[no-any-return]

    app = new()
    app.add_middleware(Versions)
    app.get("/y")(_named("y", log))
    return app


@CASES.one("called-with-a-route-alone", "GET /x", slow="the route is called without its application")
def _route_alone(new: New, log: Journal) -> ASGIApp:
    """A route is an ASGI application, too. Outside an application FastAPI's exit stack is missing."""
    app = new()
    app.get("/x")(_named("x", log))
    return app.routes[0]


@CASES.one("called-with-the-router-alone", "GET /x", slow="the router is called without its application")
def _router_without_app(new: New, log: Journal) -> ASGIApp:
    app = new()
    app.get("/x")(_named("x", log))
    return app.router


@CASES.one("handler-called-by-another-route", "GET /outer")
def _inner_call(new: New, log: Journal) -> FastAPI:
    """A handler calls another route's ASGI application with its own scope."""
    app = new()
    app.get("/inner")(_named("inner", log))

    @app.get("/outer")
    async def outer(request: Request) -> Response:
        route: Any = app.routes[0]
        sent: list[Any] = []

        async def keep(message: Any) -> None:
            sent.append(message)

        await route.app(request.scope, request.receive, keep)
        log("inner sent", sent)
        return JSONResponse([message["type"] for message in sent])

    return app


@CASES.one("handler-calls-another-application", "GET /x", slow="not slow: both applications count", fast=2)
def _inner_application(new: New, log: Journal) -> FastAPI:
    """A handler calls another application with its own scope, which then has that application's keys, and fails."""
    app, other = new(), new()

    class OwnError(Exception):
        pass

    async def of_app(request: Request, error: Exception) -> Response:
        return PlainTextResponse("handler of the application", 400)

    async def of_other(request: Request, error: Exception) -> Response:
        return PlainTextResponse("handler of the other application", 400)

    app.add_exception_handler(OwnError, of_app)
    other.add_exception_handler(OwnError, of_other)
    other.get("/x")(_named("x", log))

    async def watch() -> Any:
        yield
        log("exit")

    @app.get("/x", dependencies=[Depends(watch)])
    async def x(request: Request) -> None:
        async def drop(message: Any) -> None:
            log("inner sent", message["type"])

        await other(request.scope, request.receive, drop)
        raise OwnError

    return app


@CASES.one("frontend", "GET /x", "GET /", "GET /none")
def _low_priority(new: New, log: Journal) -> FastAPI:
    from pathlib import Path

    app = new()
    app.frontend("/", directory=Path(__file__).parent, fallback=None)
    app.get("/x")(_named("x", log))
    return app
