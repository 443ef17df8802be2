"""The exporter's HTTP side: `/metrics` for Prometheus, `/` for people, `/healthz` for whoever started it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from prometheus_client.exposition import choose_encoder
from sqlalchemy import URL
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from app.database.admin_connection import AdminConnection
from app.exporter.collectors.budget import BudgetCollector
from app.exporter.collectors.migrations import MigrationsCollector
from app.exporter.collectors.pgbouncer import PgBouncerCollector
from app.exporter.collectors.replicas import ReplicasCollector
from app.exporter.collectors.server import ServerCollector
from app.exporter.scraper import Collector, Scraper
from app.exporter.status.live_status import Live
from app.settings import Settings

STATIC = Path(__file__).parent / "static"
# The page is the exporter's own files and nothing else, appears in no frame, and tells nobody where it was.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def create_exporter(settings: Settings) -> Starlette:
    """The application. It looks at everything by itself, once it has started; `app.state.live` is what it saw."""
    server, console = (
        _admin_connection(settings.known_exporter_database_url()),
        _admin_connection(settings.known_pgbouncer_admin_url()),
    )
    budget = BudgetCollector(settings, server, console)
    collectors: list[Collector] = [ReplicasCollector(settings.metrics_dir)]
    if server:
        collectors += [ServerCollector(server), MigrationsCollector(server)]
    if console:
        collectors.append(PgBouncerCollector(console))
    scraper = Scraper([*collectors, budget], settings.exporter_deadline)
    live = Live(scraper, budget)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(live.run(), name="live view")
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            await scraper.close()
            for connection in (server, console):
                if connection:
                    await connection.close()

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(await scraper.scrape()), headers={"content-type": content_type})

    async def document(request: Request) -> Response:
        return JSONResponse(live.document, headers={"cache-control": "no-store"})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            *page_routes(),
            Route("/live.json", document),
            Route("/metrics", metrics),
            Route("/healthz", healthz),
        ],
        lifespan=lifespan,
    )


def page_routes() -> list[BaseRoute]:
    """The live page, and the files that it consists of."""

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    return [Route("/", page), Mount("/static", StaticFiles(directory=STATIC))]


def _admin_connection(url: URL | None) -> AdminConnection | None:
    return (
        AdminConnection(url, application_name="headroom:exporter")
        if url is not None and url.get_backend_name() == "postgresql"
        else None
    )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError where the address cannot be had."""
    with socket.create_server((settings.exporter_host, settings.exporter_port)) as listener:
        config = uvicorn.Config(
            create_exporter(settings), log_config=None, access_log=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(config).run(sockets=[listener])
