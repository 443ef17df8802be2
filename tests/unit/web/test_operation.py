"""The path template that metrics and logs have of a request."""

import pytest
from fastapi import APIRouter, FastAPI
from httpx import ASGITransport, AsyncClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.web import fast_routes
from app.web.operation import Exchange, route_template

templates: list[str] = []


class _Recorder:
    """Middleware that records the template of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        Exchange(scope, "id")
        await self.app(scope, receive, send)
        templates.append(route_template(scope))


async def _endpoint() -> str:
    return "answer"


def _application(*, fast: bool) -> FastAPI:
    async def plain(request: object) -> PlainTextResponse:
        return PlainTextResponse("plain")

    inner = APIRouter(prefix="/inner")
    inner.get("/{thing}")(_endpoint)
    outer = APIRouter(prefix="/outer")
    outer.include_router(inner)
    mounted = FastAPI()
    mounted.include_router(inner, prefix="/v2")
    app = FastAPI()
    app.get("/direct/{thing}")(_endpoint)
    app.include_router(outer, prefix="/v1")
    app.add_route("/files/{name:path}", plain)
    app.add_route("/plain", plain)
    app.mount("/tenants/{tenant}", mounted)
    app.mount("/static", Starlette(routes=[Route("/{file}", plain), Mount("/deep", app=Starlette())]))
    app.add_middleware(_Recorder)
    if fast:
        assert fast_routes.install(app)
    return app


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/direct/7", "/direct/{thing}"),
        ("/v1/outer/inner/7", "/v1/outer/inner/{thing}"),
        ("/tenants/a/v2/inner/7", "/tenants/{tenant}/v2/inner/{thing}"),
        ("/static/7", "/static/{file}"),
        ("/static/deep/7", "/static/deep/{path}"),
        ("/files/a/b", "/files/{name}"),
        ("/plain", "/plain"),
        ("/nowhere", "unmatched"),
    ],
)
async def test_route_template_has_the_prefixes_of_routers_and_mounts(path: str, template: str, *, fast: bool) -> None:
    templates.clear()
    async with AsyncClient(transport=ASGITransport(_application(fast=fast)), base_url="http://test") as client:
        await client.get(path)

    assert templates == [template]


async def test_unknown_path_of_an_application_for_a_host_is_unmatched() -> None:
    """A client may send any Host header, and each label would be a series of its own."""
    templates.clear()
    app = FastAPI()
    app.host("admin.example.com", FastAPI())
    app.add_middleware(_Recorder)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://admin.example.com") as client:
        assert (await client.get("/any/path")).status_code == 404

    assert templates == ["unmatched"]
